"""`meta.json` of a data space: its settings, its version, and the files that belong to it.

Only files that the manifest names belong to the data space, and the manifest is only ever replaced
as a whole; whatever a writer leaves behind before that does not count. Each replacement increments
the version; clocks are not used.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from whet._version import __version__
from whet.errors import SpaceError
from whet.io import write_json

FORMAT = 2
MANIFEST_FILE = "meta.json"
STAGING = "staging"  # folder of an unfinished addition
SEGMENTS = "segments"  # folder of the segments
EMBEDDER_FOLDER = "embedder"  # folder of an `lsa` embedder, fitted on the data space itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Access labels of the documents of a data space."""

    field: str
    """Metadata field that holds a document's access label."""
    public: str | None = None
    """Label of public documents, on which embedders may be fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The contents of `meta.json`, format 2; the field names are part of the format."""

    embedder: str
    """Specification of the embedder that made the vectors, or the name of a Python object."""
    fingerprint: str
    """Fingerprint of that embedder."""
    dimension: int
    """Length of the vectors."""
    source: str = ""
    """The source of the documents, for people."""
    whet: str = __version__
    """Version of whet that wrote it."""
    version: int = 0
    """Number of changes so far."""
    next: int = 0
    """Row number of the next document; row numbers are never reused."""
    segments: list[str] = field(default_factory=list)
    """Names of the segments."""
    deleted: str = ""
    """File with the deleted rows that segments still contain; empty if there are none."""
    keys: list[str] = field(default_factory=list)
    """Idempotency keys of the additions made so far."""
    failed: int = 0
    """Number of documents listed in `failed.jsonl`."""
    normalized: bool = True
    """Whether all vectors have length 1 or 0."""
    labels: Labels | None = None
    """Access labels, if documents have any."""
    format: int = FORMAT
    """Version of the on-disk format."""

    def write(self, folder: Path) -> None:
        """Replace `meta.json` atomically; the files it names must be on the disk already."""
        write_json(folder / MANIFEST_FILE, asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the data space in `folder`.

    Raises:
        SpaceError: If there is no data space, or it is unfinished, broken or of another format.
    """
    if folder.is_file():
        raise SpaceError(f"{folder} is a file: expected the folder that `whet index` makes of it")
    if re.match(r"[a-z]{2,}:", str(folder)):
        raise SpaceError(f"{folder} is an address: expected the folder of a data space")
    if not folder.is_dir():
        raise SpaceError(f"{folder} does not exist: make a data space with `whet index`")
    try:
        values = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
        version = values["format"]
    except FileNotFoundError:
        if (folder / STAGING).is_dir():
            raise SpaceError(
                f"{folder} is unfinished: run the same `whet index` again to resume it"
            ) from None
        raise SpaceError(f"{folder} is not a data space: it holds no {MANIFEST_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: {error!r}") from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise SpaceError(
            f"{folder} has format {version!r}, but this version of whet reads {FORMAT}: "
            + ("upgrade whet" if newer else "rebuild it with `whet index`")
        )
    return _parse(folder, values)


def _parse(folder: Path, values: dict[str, object]) -> Manifest:
    types = {name: type_ for name, type_ in Manifest.__annotations__.items() if name != "labels"}
    types = {name: list if type_ == list[str] else type_ for name, type_ in types.items()}
    for name, type_ in types.items():
        if not isinstance(values.get(name), type_):
            raise SpaceError(
                f"{folder / MANIFEST_FILE} is broken: {name} is missing or of another type"
            )
    labels = values.get("labels")
    try:
        return Manifest(
            **{name: values[name] for name in types},  # type: ignore[arg-type]  # checked above
            labels=None if labels is None else Labels(**labels),  # type: ignore[arg-type]
        )
    except TypeError as error:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: labels are {labels!r}") from error
