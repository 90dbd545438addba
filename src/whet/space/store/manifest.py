"""`meta.json` of a data space: its settings, its version, and the files that belong to it.

Only files that the manifest names belong to the data space, and the manifest is only ever replaced
as a whole; whatever a writer leaves behind before that does not count. Each replacement increments
the version; clocks are not used. The manifest contains checksums of the other files and of itself,
except in data spaces of older versions of whet, which get them when they are next written.
"""

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from secrets import token_hex
from typing import Any

from whet._version import __version__
from whet.errors import SpaceError
from whet.io import checksum, write_json

FORMAT = 2
MANIFEST_FILE = "meta.json"
STAGING = "staging"  # folder of an unfinished addition
REMOVED = "staging.removed"  # a staging folder that is being deleted
SEGMENTS = "segments"  # folder of the segments
SEGMENT_FILE = "segment.json"  # in the folder of each segment
EMBEDDER_FOLDER = "embedder"  # folder of an `lsa` embedder; `embedder-VERSION` once fitted again
FAILED_FILE = "failed.jsonl"  # documents that could not be added
DAMAGED = "it has another checksum than when written; restore it from a copy"
_SELF = "crc32"  # checksum of the manifest's other values
_NEW_FIELDS = {
    "id",
    "files",
    "addition",
    "dropped",
    "embedder_folder",
    "chunks",
    "kernel",
    "sources",
}  # absent in older data spaces


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
    id: str = ""
    """Random name of the data space, which ends the names of its segments."""
    files: dict[str, list[int]] = field(default_factory=dict)
    """Size and CRC-32 of each file that the manifest names, by its path in the folder. Only the
    first bytes of `failed.jsonl` are counted, since lines are appended before the manifest."""
    addition: str = ""
    """Name of the last addition that is complete; what is still staged of it can be removed."""
    dropped: list[str] = field(default_factory=list)
    """Segments that were named before, and whose folders may still exist."""
    embedder_folder: str = EMBEDDER_FOLDER
    """Folder of the `lsa` embedder that was fitted on the data space itself, if it has one."""
    chunks: str = ""
    """How texts are cut: a rule of `whet.data.chunking`; empty if an older version wrote it."""
    kernel: dict[str, float] = field(default_factory=dict)
    """Mean products of the vectors, see `KernelScale`; empty if they are not measured."""
    sources: str = ""
    """File with the files of each source, see `whet.space.indexing.sync`; empty if there are none."""

    @property
    def chunking(self) -> str:
        """The rule by which texts are cut, also where an older version did not store it."""
        return self.chunks or chunking_of(self.source)

    def write(self, folder: Path) -> None:
        """Replace `meta.json` atomically; the files it names must be on the disk already."""
        values = asdict(self)
        write_json(folder / MANIFEST_FILE, values | {_SELF: manifest_checksum(values)})

    def check_file(self, folder: Path, name: str) -> str | None:
        """A message if the file `name` is missing or damaged. Reads all of it."""
        if name not in self.files:
            return None
        size, crc32 = self.files[name]
        path = folder / name
        try:
            actual = path.stat().st_size
            if actual < size or (actual > size and name != FAILED_FILE):
                return f"{path} is broken: it has {actual} bytes, but {size} were written"
            return f"{path} is broken: {DAMAGED}" if checksum(path, size) != crc32 else None
        except FileNotFoundError:
            return f"{path} is missing: restore it from a copy"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"

    def read_file(self, folder: Path, name: str) -> bytes:
        """The contents of the file `name`.

        Raises:
            FileNotFoundError: If it does not exist.
            SpaceError: If it is damaged.
        """
        path = folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SpaceError(f"{path} cannot be read: {error.strerror}") from error
        if name in self.files and self.files[name] != [len(content), zlib.crc32(content)]:
            raise SpaceError(f"{path} is broken: {DAMAGED}")
        return content


def manifest_checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of the values of a manifest except the checksum itself."""
    rest = {name: value for name, value in values.items() if name != _SELF}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def file_checksums(
    folder: Path, names: Iterable[str], known: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """Size and CRC-32 of the files `names`, read only if they are not `known`."""
    files = {}
    for name in names:
        path = folder / name
        files[name] = known.get(name) or [path.stat().st_size, checksum(path)]
    return files


def chunking_of(source: str) -> str:
    """The rule that versions without `Manifest.chunks` wrote at the end of the source.

    >>> chunking_of("texts.jsonl in tokens:256"), chunking_of("texts.jsonl")
    ('tokens:256', 'whole')
    """
    rule = source.rpartition(" in ")[2]
    return rule if re.fullmatch(r"(tokens|paragraph):[1-9]\d*", rule) else "whole"


def segment_record(name: str) -> str:
    """Path of the record of a segment, within the data space."""
    return f"{SEGMENTS}/{name}/{SEGMENT_FILE}"


def segment_name(manifest: Manifest, number: int) -> str:
    """Name of a segment of the next version. It ends with the id of the data space."""
    return f"{manifest.version + 1:08d}-{number:05d}-{manifest.id}"


def is_own_segment(name: str, manifest: Manifest) -> bool:
    """Whether a segment of this name was written for the data space of `manifest`."""
    return bool(re.fullmatch(rf"\d+-\d+-{re.escape(manifest.id)}", name)) and bool(manifest.id)


def is_embedder_folder(name: str) -> bool:
    """Whether `name` is that of a folder of an `lsa` embedder, complete or not."""
    return bool(re.fullmatch(rf"{EMBEDDER_FOLDER}(-\d{{8}}(\.new)?)?", name))


def refuse_links(path: Path) -> None:
    """Check that the folders of a data space are not links: what they refer to may be others'.

    Raises:
        SpaceError: If one is a link.
    """
    for name in (SEGMENTS, STAGING, REMOVED, EMBEDDER_FOLDER):
        if (path / name).is_symlink():
            raise SpaceError(
                f"{path / name} is a symbolic link, through which other folders could be removed: "
                f"replace it by a folder, or link {path} as a whole; reading works as it is"
            )


def new_id() -> str:
    """A random name for a data space or an addition."""
    return token_hex(4)


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: {error!r}") from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise SpaceError(
            f"{folder} has format {version!r}, but this version of whet reads {FORMAT}: "
            + ("upgrade whet" if newer else "rebuild it with `whet index`")
        )
    _check_manifest(folder / MANIFEST_FILE, values)
    return _parse(folder, values)


def _check_manifest(path: Path, values: dict[str, Any]) -> None:
    """Compare a manifest with its own checksum, which those of older versions do not have."""
    if _SELF in values:
        if values[_SELF] != manifest_checksum(values):
            raise SpaceError(f"{path} is broken: {DAMAGED}")
    elif unknown := set(values) - (set(_field_types()) - _NEW_FIELDS):
        raise SpaceError(
            f"{path} is broken: it has {min(unknown)!r}, but not the checksum that belongs to it"
        )


def _field_types() -> dict[str, Any]:
    return {field.name: field.type for field in fields(Manifest)}


def _parse(folder: Path, values: dict[str, Any]) -> Manifest:
    types = {name: type_ for name, type_ in _field_types().items() if name != "labels"}
    types = {name: getattr(type_, "__origin__", type_) for name, type_ in types.items()}
    types = {
        name: type_ for name, type_ in types.items() if name in values or name not in _NEW_FIELDS
    }
    for name, type_ in types.items():
        if type(values.get(name)) is not type_:
            raise SpaceError(
                f"{folder / MANIFEST_FILE} is broken: {name} is missing or of another type"
            )
    names = [*values["segments"], *values.get("dropped", []), *values["keys"], values["deleted"]]
    if not all(isinstance(name, str) for name in names):
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: a name in it is not a string")
    paths = [*values["segments"], *values.get("dropped", [])]
    paths += [values.get("embedder_folder", EMBEDDER_FOLDER), values["deleted"]]
    named = [*paths, values.get("sources", "")]
    outside = [name for name in named if name in (".", "..") or "/" in name or "\\" in name]
    if outside or "" in paths[:-1] or len(set(values["segments"])) < len(values["segments"]):
        raise SpaceError(
            f"{folder / MANIFEST_FILE} is broken: a segment or file occurs twice or is elsewhere"
        )
    labels = values.get("labels")
    try:
        return Manifest(
            **{name: values[name] for name in types},  # checked above
            labels=None if labels is None else Labels(**labels),
        )
    except TypeError as error:
        raise SpaceError(f"{folder / MANIFEST_FILE} is broken: labels are {labels!r}") from error
