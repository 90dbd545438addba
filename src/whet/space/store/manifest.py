"""What a data space says of itself: `meta.json`, which names the files that hold it.

A folder is as its `meta.json` says, and that file is only ever replaced as a whole: whatever is
written beside it counts for nothing until then. The version counts up with each replacement; no
clock is asked.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from whet._version import __version__
from whet.errors import SpaceError
from whet.io import write_json

FORMAT = 2
MANIFEST_FILE = "meta.json"
STAGING = "staging"  # what an unfinished addition has got so far
SEGMENTS = "segments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """How a data space keeps apart what not everybody may read."""

    field: str
    """The field of metadata whose value is a document's label."""
    public: str | None = None
    """The label of what everybody may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Format 2: immutable segments, the rows deleted from them, `embedder/` where it is `lsa`."""

    embedder: str
    fingerprint: str
    dimension: int
    source: str = ""
    """Where the documents came from, in words."""
    whet: str = __version__
    """Version of whet that wrote it."""
    version: int = 0
    next: int = 0
    """The id of the next row: ids are never given again."""
    segments: list[str] = field(default_factory=list)
    deleted: str = ""
    """The file of the deleted rows' ids that segments still hold; empty if there are none."""
    keys: list[str] = field(default_factory=list)
    """Keys of the additions that are in."""
    failed: int = 0
    """Documents that could not be added, told in `failed.jsonl`."""
    normalized: bool = True
    """Whether the vectors are of length 1 or 0."""
    labels: Labels | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Replace `meta.json`, all or nothing, once what it names is on the disk."""
        write_json(folder / MANIFEST_FILE, asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """What the data space in `folder` says of itself.

    Raises:
        SpaceError: If there is none, it is unfinished or broken, or of another format.
    """
    if folder.is_file():
        raise SpaceError(f"{folder} is a file: expected the folder that `whet index` makes of it")
    if not folder.is_dir():
        raise SpaceError(f"{folder} does not exist: make a data space with `whet index`")
    try:
        fields = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
        version = fields["format"]
    except FileNotFoundError:
        if (folder / STAGING).is_dir():
            raise SpaceError(
                f"{folder} is unfinished: run the same `whet index` again, it goes on"
            ) from None
        raise SpaceError(f"{folder} is not a data space: it holds no {MANIFEST_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: {error!r}") from error
    if version != FORMAT:
        advice = "upgrade whet" if isinstance(version, int) and version > FORMAT else "rebuild it"
        raise SpaceError(
            f"{folder} has format {version!r}, this whet reads {FORMAT}: {advice}, or make another "
            "with `whet index`"
        )
    return _checked(folder, fields)


def _checked(folder: Path, fields: dict[str, object]) -> Manifest:
    expected = {k: v for k, v in Manifest.__annotations__.items() if k != "labels"}
    kinds = {name: list if kind == list[str] else kind for name, kind in expected.items()}
    wrong = [name for name, kind in kinds.items() if not isinstance(fields.get(name), kind)]
    if wrong:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: {wrong[0]} is missing or no value")
    labels = fields.get("labels")
    try:
        return Manifest(
            **{name: fields[name] for name in expected},  # type: ignore[arg-type]  # checked above
            labels=None if labels is None else Labels(**labels),  # type: ignore[arg-type]
        )
    except TypeError as error:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: labels are {labels!r}") from error
