"""A segment: some rows of a data space in a folder that is written once and never changed.

| file | holds |
|---|---|
| `vectors.npy` | float16 vectors |
| `ids.npy` | int64 ids, ascending |
| `rows.arrow` | id, text and metadata of each document |
| `columns.arrow` | the metadata that filters look at |
| `names.npy` | hashes of ids and texts |
| `index.faiss` | where there are many rows |
| `segment.json` | counts, sizes, checksums; written last, so a folder with it is whole |
"""

import fcntl
import json
import os
import shutil
import weakref
import zlib
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.errors import SpaceError
from whet.io import checksum, load, sync, write_json
from whet.maths.arrays import Array
from whet.space.store import ann_index as faiss_index
from whet.space.store.ann_index import AnnIndex, IndexStats, build_index
from whet.space.store.id_index import IdIndex, hash_strings, write_id_index
from whet.space.store.metadata import MetadataColumns, MetadataWriter
from whet.space.store.records import RecordFile, RecordWriter, as_strings
from whet.space.store.vectors import Vectors, write_npy_header

RECORD = "segment.json"
MAX_ROWS = 2**20  # rows of a segment


class SegmentWriter:
    """Writes a segment, some rows at a time; whole once `close` has returned."""

    def __init__(self, folder: Path, count: int, dimension: int) -> None:
        """Args:
        folder: What is there of an earlier attempt is removed.
        count: RecordFile that will be added.
        dimension: Of their vectors.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder, self._count, self._dimension = folder, count, dimension
        self._vectors = (folder / "vectors.npy").open("wb")
        write_npy_header(self._vectors, count, dimension)
        self._rows, self._columns = RecordWriter(folder / "rows.arrow"), MetadataWriter()
        self._ids: list[Array] = []
        self._names: list[Array] = []
        self._texts: list[Array] = []

    def add(
        self, ids: Int[Array, " n"], rows: pa.RecordBatch, vectors: Float[Array, "n d"]
    ) -> None:
        """Further rows, with greater ids; `vectors` as they are stored (`vectors.narrowed`)."""
        self._vectors.write(np.ascontiguousarray(vectors).data)
        self._rows.add(rows)
        self._columns.add(as_strings(rows.column("meta")))
        self._ids.append(ids)
        self._names.append(hash_strings(as_strings(rows.column("id"))))
        self._texts.append(hash_strings(as_strings(rows.column("text"))))

    def close(self, *, indexed: bool = True) -> None:
        """Write the rest: `indexed` if there are enough rows for an index to be faster."""
        folder, ids = self._folder, np.concatenate(self._ids)
        assert len(ids) == self._count and (np.diff(ids) > 0).all()
        self._vectors.close()
        self._rows.close()
        self._columns.write(folder / "columns.arrow")
        np.save(folder / "ids.npy", ids)
        write_id_index(
            folder / "names.npy", np.concatenate(self._names), np.concatenate(self._texts)
        )
        measured = None
        if indexed and self._count >= faiss_index.MIN_ROWS:
            measured = build_index(folder / "index.faiss", Vectors(folder / "vectors.npy"))
        files = {}
        for path in sorted(folder.iterdir()):
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "crc32": checksum(path)}
        record: dict[str, Any] = {"count": self._count, "dimension": self._dimension}
        record |= {"first": int(ids[0]), "last": int(ids[-1]), "starts": self._rows.starts}
        record |= {"files": files, "index": None if measured is None else asdict(measured)}
        write_json(folder / RECORD, {"crc32": _sum(record), **record})
        sync(folder.parent)


class Segment:
    """An opened segment. While it is open, its folder is not swept away.

    Opening reads `segment.json` and the files' sizes; `faults` reads everything.
    """

    def __init__(self, folder: Path) -> None:
        """Open what a `SegmentWriter` wrote.

        Raises:
            FileNotFoundError, BlockingIOError: If the segment is not there, or being removed.
            SpaceError: If a file is missing, broken, or of another size than when it was written.
        """
        self.folder, self.name = folder, folder.name
        lock = os.open(folder / RECORD, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.record = read_record(folder)
            self.count = int(self.record["count"])
            self._check_sizes()
            self.vectors = Vectors(folder / "vectors.npy")
            self.rows = RecordFile(folder / "rows.arrow", self.record["starts"])
            self.ids = _mapped(folder / "ids.npy")
        except BaseException:
            os.close(lock)
            raise
        self.close = weakref.finalize(self, os.close, lock)
        """Let the folder be swept away; what is read of it already stays readable."""

    @property
    def measured(self) -> IndexStats | None:
        """How the index does; None if there is none."""
        record = self.record["index"]
        return None if record is None else IndexStats(**record)

    @cached_property
    def index(self) -> AnnIndex:
        assert self.measured is not None
        return AnnIndex.open(self.folder / "index.faiss", self.measured)

    @cached_property
    def columns(self) -> MetadataColumns:
        names = [batch.column("id") for batch in self.rows.batches()]
        return MetadataColumns(self.folder / "columns.arrow", names)

    @cached_property
    def names(self) -> IdIndex:
        return IdIndex(self.folder / "names.npy")

    def places(self, ids: Int[Array, " n"]) -> Int[Array, " n"]:
        """Where rows are in the segment; -1 for those that are not."""
        places = np.searchsorted(self.ids, ids)
        here = self.ids[np.minimum(places, self.count - 1)] == ids
        return np.where(here, places, -1)

    def faults(self) -> list[str]:
        """Every file that is not as it was written. Reads them all."""
        return [
            f"{self.folder / name} is broken: it has another checksum than when written"
            for name, was in self.record["files"].items()
            if checksum(self.folder / name) != was["crc32"]
        ]

    def _check_sizes(self) -> None:
        for name, was in self.record["files"].items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else None
            if size is None:
                raise SpaceError(f"{path} is missing: restore it, or open the rest with partial")
            if size != was["bytes"]:
                raise SpaceError(
                    f"{path} is broken: it has {size} bytes, {was['bytes']} were written; "
                    "restore it, or open the rest with partial"
                )


def read_record(folder: Path) -> dict[str, Any]:
    """What `segment.json` says.

    Raises:
        SpaceError: If it is not as it was written.
    """
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
        was = record.pop("crc32")
    except (ValueError, KeyError, AttributeError) as error:
        raise SpaceError(f"{folder / RECORD} is broken: {error!r}") from error
    if was != _sum(record):
        raise SpaceError(f"{folder / RECORD} is broken: it has another checksum than when written")
    return record


def _sum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def removed(folder: Path) -> bool:
    """Remove a segment's folder, unless a reader has it open."""
    try:
        lock = os.open(folder / RECORD, os.O_RDONLY)
    except FileNotFoundError:  # never finished, so never opened
        shutil.rmtree(folder)
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / RECORD).unlink()  # from here on nobody opens it
        shutil.rmtree(folder)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _mapped(path: Path) -> Any:
    try:
        return load(path, mapped=True)
    except (OSError, ValueError, EOFError) as error:
        raise SpaceError(f"{path} cannot be read: {error}") from error
