"""A segment: a folder with some rows of a data space, written once and never changed.

| file | content |
|---|---|
| `vectors.npy` | float16 vectors |
| `ids.npy` | int64 row ids, ascending |
| `rows.arrow` | id, text and metadata of each document |
| `columns.arrow` | the metadata columns that filters use |
| `names.npy` | hashes of ids and texts |
| `index.faiss` | the index, if there are many rows |
| `segment.json` | counts, sizes, checksums (of vectors and rows by blocks); written last |
"""

import json
import os
import shutil
import weakref
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.errors import SpaceError
from whet.io import checksum, fsync, write_json
from whet.locks import lock_shared, remove_unless_open
from whet.maths.arrays import Array
from whet.space.store.manifest import SEGMENT_FILE
from whet.space.store.segments import ann_index
from whet.space.store.segments.ann_index import AnnIndex, IndexStats, build_index
from whet.space.store.segments.checked_file import (
    CheckedFile,
    Checksums,
    checksums_of,
    unreadable,
)
from whet.space.store.segments.metadata import MetadataColumns, MetadataWriter
from whet.space.store.segments.records import (
    IdIndex,
    RecordFile,
    RecordWriter,
    as_strings,
    hash_strings,
    write_id_index,
)
from whet.space.store.segments.vectors import VectorFile, write_npy_header

MAX_ROWS = 2**20  # per segment
MERGED = 16  # small segments of similar size that are merged by an addition
CHECKED_BYTES = 2**17  # of vectors that have one checksum


class SegmentWriter:
    """Writes a segment in batches; it is complete once `close` returned."""

    def __init__(self, folder: Path, count: int, dimension: int) -> None:
        """Begin a segment.

        Args:
            folder: Its folder; files of an earlier attempt are removed.
            count: Number of rows that will be added.
            dimension: Length of their vectors.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder, self._count, self._dimension = folder, count, dimension
        self._vectors = (folder / "vectors.npy").open("wb")
        write_npy_header(self._vectors, count, dimension)
        self._records, self._metadata = RecordWriter(folder / "rows.arrow"), MetadataWriter()
        self._ids: list[Array] = []
        self._id_hashes: list[Array] = []
        self._text_hashes: list[Array] = []

    def add(
        self, ids: Int[Array, " n"], rows: pa.RecordBatch, vectors: Float[Array, "n d"]
    ) -> None:
        """Append rows with greater ids; `vectors` in float16 (see `vectors.to_float16`)."""
        self._vectors.write(np.ascontiguousarray(vectors).data)
        self._records.add(rows)
        self._metadata.add(as_strings(rows.column("meta")))
        self._ids.append(ids)
        self._id_hashes.append(hash_strings(as_strings(rows.column("id"))))
        self._text_hashes.append(hash_strings(as_strings(rows.column("text"))))

    def close(self, *, indexed: bool = True) -> None:
        """Write everything else; with `indexed`, an index too if there are enough rows."""
        folder, ids = self._folder, np.concatenate(self._ids)
        assert len(ids) == self._count and (np.diff(ids) > 0).all()
        self._vectors.close()
        self._records.close()
        self._metadata.write(folder / "columns.arrow")
        np.save(folder / "ids.npy", ids)
        write_id_index(
            folder / "names.npy",
            np.concatenate(self._id_hashes),
            np.concatenate(self._text_hashes),
        )
        stats = None
        if indexed and self._count >= ann_index.MIN_ROWS:
            stats = build_index(folder / "index.faiss", VectorFile(folder / "vectors.npy"))
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.iterdir()):
            fsync(path)
            ends = self._block_ends(path)
            whole, blocks = checksums_of(path, ends)
            files[path.name] = {"bytes": ends[-1], "crc32": whole}
            if len(ends) > 1:
                files[path.name] |= {"ends": blocks.ends, "crc32s": blocks.crc32}
        record: dict[str, Any] = {"count": self._count, "dimension": self._dimension}
        record |= {"first": int(ids[0]), "last": int(ids[-1]), "starts": self._records.starts}
        record |= {"files": files, "index": None if stats is None else asdict(stats)}
        write_json(folder / SEGMENT_FILE, {"crc32": _record_checksum(record), **record})
        fsync(folder.parent)

    def _block_ends(self, path: Path) -> list[int]:
        """Where the blocks of a file end that have checksums of their own."""
        size = path.stat().st_size
        if path.name == "rows.arrow":
            return self._records.ends
        if path.name == "vectors.npy":
            return [*range(CHECKED_BYTES, size, CHECKED_BYTES), size]
        return [size]


class Segment:
    """An opened segment. Its folder is not removed while it is open, if it is locked.

    Opening reads `segment.json` and maps the files. Bytes are compared with their checksums before
    they are first used, except the lists of an index, which contain no answers; `verify` reads
    everything.
    """

    def __init__(self, folder: Path, *, locked: bool = True) -> None:
        """Open a segment that a `SegmentWriter` wrote.

        Args:
            folder: Its folder.
            locked: Whether to keep a file open and locked, so that writers do not remove the
                folder. Otherwise the files stay mapped, except an index that is not used yet.

        Raises:
            FileNotFoundError, BlockingIOError: If the segment does not exist or is being removed.
            SpaceError: If a file is missing, broken, or of another size than when it was written.
        """
        self.folder, self.name = folder, folder.name
        try:
            lock = os.open(folder / SEGMENT_FILE, os.O_RDONLY)
        except FileNotFoundError:
            raise
        except OSError as error:  # another user's, or a damaged file system
            raise unreadable(folder / SEGMENT_FILE, error) from error
        try:
            lock_shared(lock)
            self._record = read_segment_file(folder)
            self.count = int(self._record["count"])
            self._check_sizes()
            self.vectors = VectorFile(folder / "vectors.npy", self._checksums("vectors.npy"))
            if (len(self.vectors), self.vectors.dimension) != (
                self.count,
                self._record["dimension"],
            ):
                raise SpaceError(f"{folder / 'vectors.npy'} is broken: it has another shape")
            mapped = ("rows.arrow", "ids.npy", "columns.arrow", "names.npy")
            self._files = {
                name: CheckedFile(folder / name, self._checksums(name)) for name in mapped
            }
            self.records = RecordFile(self._files["rows.arrow"], self._record["starts"])
            if not locked and self.index_stats is not None:
                _ = self.index  # cannot be opened once the folder is removed
        except BaseException:
            os.close(lock)
            raise
        self.close = weakref.finalize(self, os.close, lock)
        """Allow the folder to be removed; files that are mapped already stay readable."""
        if not locked:
            self.close()

    @property
    def index_stats(self) -> IndexStats | None:
        """Layout and recall of the index; None if there is no index."""
        record = self._record["index"]
        return None if record is None else IndexStats(**record)

    @cached_property
    def index(self) -> AnnIndex:
        """The index. Requires that there is one."""
        assert self.index_stats is not None
        return AnnIndex.open(self.folder / "index.faiss", self.index_stats)

    @cached_property
    def ids(self) -> Int[Array, " n"]:
        """The row ids, ascending."""
        self._files["ids.npy"].check()
        return self._files["ids.npy"].array("int64", (self.count,))

    @property
    def last(self) -> int:
        """The largest row id."""
        return int(self._record["last"])

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return int(self._record["dimension"])

    @cached_property
    def metadata(self) -> MetadataColumns:
        """The metadata columns."""
        return MetadataColumns(self._files["columns.arrow"], self.records)

    @cached_property
    def id_index(self) -> IdIndex:
        """The index of document ids."""
        return IdIndex(self._files["names.npy"], self.count)

    def positions(self, ids: Int[Array, " n"]) -> Int[Array, " n"]:
        """Positions of rows in the segment; -1 for rows that it does not contain."""
        positions = np.searchsorted(self.ids, ids)
        contained = self.ids[np.minimum(positions, self.count - 1)] == ids
        return np.where(contained, positions, -1)

    def verify(self) -> list[str]:
        """Read all files and describe those whose checksum is wrong."""
        return [
            f"{self.folder / name} is broken: it has another checksum than when written"
            for name, written in self._record["files"].items()
            if checksum(self.folder / name) != written["crc32"]
        ]

    def _checksums(self, name: str) -> Checksums:
        """Checksums of a file: of its blocks, or in older data spaces of the file as a whole."""
        written = self._record["files"][name]
        if "ends" in written:
            return Checksums(written["ends"], written["crc32s"])
        return Checksums([written["bytes"]], [written["crc32"]])

    def _check_sizes(self) -> None:
        for name, written in self._record["files"].items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else None
            if size is None:
                raise SpaceError(f"{path} is missing: restore it, or open the rest with partial")
            if size != written["bytes"]:
                raise SpaceError(
                    f"{path} is broken: it has {size} bytes, but {written['bytes']} were written; "
                    "restore it, or open the rest with partial"
                )


def read_segment_file(folder: Path) -> dict[str, Any]:
    """Read `segment.json`.

    Raises:
        SpaceError: If it was damaged.
    """
    path = folder / SEGMENT_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        written = record.pop("crc32")
    except (IsADirectoryError, PermissionError, ValueError, KeyError, AttributeError) as error:
        raise SpaceError(f"{path} is broken: {error!r}") from error
    if written != _record_checksum(record):
        raise SpaceError(f"{path} is broken: it has another checksum than when written")
    return record


def _record_checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def is_complete_segment(folder: Path, count: int) -> bool:
    """Whether an interrupted call has written all of a segment of `count` rows, and it is intact."""
    if not (folder / SEGMENT_FILE).exists():
        return False
    try:
        segment = Segment(folder, locked=False)
        return segment.count == count and not segment.verify()
    except SpaceError:
        return False


def remove_segment(folder: Path) -> bool:
    """Remove a segment's folder, unless a reader has it open; returns whether it was removed."""
    if folder.is_symlink():  # what it refers to belongs to others
        folder.unlink()
        return True
    return remove_unless_open(folder, SEGMENT_FILE)


def segments_to_merge(segments: Sequence[Segment]) -> list[Segment]:
    """The smallest segments of similar size if there are 16 of them, else none."""
    sizes: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        sizes[segment.count.bit_length() // 4].append(segment)
    for _, similar in sorted(sizes.items()):
        total = sum(segment.count for segment in similar)
        if len(similar) >= MERGED and total < ann_index.MIN_ROWS:
            return similar
    return []
