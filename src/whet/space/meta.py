"""What a data space says of itself: `meta.json`, which names the files that hold it.

A folder is as its `meta.json` says, and that file is only ever replaced as a whole: whatever is
written beside it counts for nothing until then.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from whet.errors import SpaceError

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Format 1: float16 vectors (`.npy`), rows (Arrow file), and `embedder/` where it is `lsa`."""

    embedder: str
    fingerprint: str
    dimension: int
    count: int
    source: str
    """Where the documents came from, in words."""
    whet: str
    """Version of whet that wrote it."""
    vectors: str = "vectors.npy"
    rows: str = "rows.arrow"
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Replace `meta.json`, all or nothing, once what it names is on the disk."""
        new = folder / "meta.json.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / "meta.json")
        sync_folder(folder)


def read_meta(folder: Path) -> Meta:
    """What the data space in `folder` says of itself.

    Raises:
        SpaceError: If there is none, it is broken, or it was written by a newer whet.
    """
    if folder.is_file():
        raise SpaceError(f"{folder} is a file: expected the folder that `whet index` makes of it")
    if not folder.is_dir():
        raise SpaceError(f"{folder} does not exist: make a data space with `whet index`")
    try:
        fields = json.loads((folder / "meta.json").read_text("utf-8"))
        version = fields["format"]
    except FileNotFoundError:
        raise SpaceError(f"{folder} is not a data space: it holds no meta.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpaceError(f"{folder / 'meta.json'} is broken: {error!r}") from error
    if version != FORMAT:
        raise SpaceError(
            f"{folder} has format {version!r}, this whet reads {FORMAT}: upgrade whet, or rebuild "
            "the data space with `whet index`"
        )
    expected = Meta.__annotations__
    wrong = [key for key, kind in expected.items() if not isinstance(fields.get(key), kind)]
    if wrong:
        raise SpaceError(f"{folder / 'meta.json'} is broken: {wrong[0]} is missing or no value")
    return Meta(**{key: fields[key] for key in expected})


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
