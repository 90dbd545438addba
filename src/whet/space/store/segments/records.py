"""Ids, texts and metadata of a segment in one memory-mapped Arrow file, and an index of the ids."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt64

from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.store.protocol import COLUMNS, SCHEMA
from whet.space.store.segments.checked_file import CheckedFile, unreadable

BATCH_ROWS, BATCH_BYTES = 1024, 16_000_000  # a batch ends when it reaches either


class RecordFile:
    """Random access to records by their position in the file; nothing is loaded in advance."""

    def __init__(self, file: CheckedFile, starts: Sequence[int]) -> None:
        """Use a file that a `RecordWriter` wrote.

        Args:
            file: The file. If each batch has a checksum, its blocks are the batches in their order
                and then the footer.
            starts: `RecordWriter.starts`: the first position of each batch.
        """
        self._file, self._starts = file, np.array(starts, np.int64)

    @cached_property
    def _reader(self) -> Any:
        file = self._file
        file.check(file.block_of(np.array([0, len(file.buffer) - 1])))  # the schema and the footer
        try:
            reader = pa.ipc.open_file(pa.BufferReader(file.buffer))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file.path, error) from error
        if not reader.schema.equals(SCHEMA):
            raise SpaceError(
                f"{file.path} has columns {reader.schema.names}: expected id, text, meta"
            )
        return reader

    def take(self, positions: Int[Array, " n"], columns: Sequence[str] = COLUMNS) -> pa.Table:
        """The records at `positions`, in that order."""
        parts, order = [], []
        batches = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(batches).tolist():
            in_batch = np.flatnonzero(batches == number)
            batch = self._batch(number).select(list(columns))
            parts.append(batch.take(pa.array(positions[in_batch] - self._starts[number])))
            order.append(in_batch)
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        table = pa.Table.from_batches(parts, schema=schema)
        return table.take(pa.array(np.argsort(np.concatenate(order)))) if order else table

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All records, in the batches in which they were written."""
        return (self._batch(number) for number in range(len(self._starts)))

    def _batch(self, number: int) -> pa.RecordBatch:
        reader = self._reader
        self._file.check(np.array([min(number, self._file.blocks - 1)]))
        try:
            batch: pa.RecordBatch = reader.get_batch(number)
        except (pa.ArrowException, OSError) as error:
            raise SpaceError(f"{self._file.path} is broken at batch {number}: {error}") from error
        return batch


class RecordWriter:
    """Writes records in batches of about 1,024; the file is complete once `close` returned."""

    def __init__(self, path: Path) -> None:
        self._sink = path.open("wb")
        self._file = pa.ipc.new_file(self._sink, SCHEMA)
        self._buffer: list[pa.RecordBatch] = []
        self._count = self._bytes = 0
        self._written = 0
        self.starts: list[int] = []
        """The first position of each batch."""
        self.ends: list[int] = []
        """The last byte of each batch, and then that of the file, plus one."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Append records."""
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            self._buffer.append(part)
            self._count += len(part)
            self._bytes += part.nbytes
            if self._count >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._count:
            batch = pa.concat_batches(self._buffer)
            self._file.write_batch(batch)
            self.ends.append(self._sink.tell())
            self.starts.append(self._written)
            self._written += len(batch)
        self._buffer, self._count, self._bytes = [], 0, 0

    def close(self) -> None:
        """Write the buffered records and the file's footer."""
        self._flush()
        self._file.close()
        self.ends.append(self._sink.tell())
        self._sink.close()


def as_strings(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """An Arrow column of strings as a list."""
    return cast(list[str], column.to_pylist())


def as_row_numbers(ids: Any) -> Int[Array, " n"]:
    """Row numbers as an array.

    Raises:
        ValueError: If they are not integers (document ids, for example).
    """
    numbers = np.asarray(ids).reshape(-1)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise ValueError(f"ids is {ids!r}: expected row numbers; `find` converts document ids")
    return numbers.astype(np.int64)


def hash_strings(strings: Sequence[str]) -> UInt64[Array, " n"]:
    """The first 64 bits of each string's BLAKE2 digest."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in strings)
    return np.frombuffer(digests, "<u8")


def write_id_index(
    path: Path, id_hashes: UInt64[Array, " n"], text_hashes: UInt64[Array, " n"]
) -> None:
    """Write the index of all rows of a segment, whose hashes are given in row order."""
    order = np.argsort(id_hashes, kind="stable")
    np.save(path, np.stack([id_hashes[order], order.astype(np.uint64), text_hashes[order]]))


class IdIndex:
    """Memory-mapped index from document ids to positions in the segment."""

    def __init__(self, file: CheckedFile, count: int) -> None:
        """Open what `write_id_index` wrote for `count` rows."""
        file.check()
        self._columns = file.array("uint64", (3, count))

    def candidates(self, id_hashes: UInt64[Array, " m"]) -> list[Int[Array, " _"]]:
        """Positions of the rows with each hash; compare their ids, since hashes may collide."""
        hashes, positions = self._columns[0], self._columns[1]
        first = np.searchsorted(hashes, id_hashes, side="left")
        last = np.searchsorted(hashes, id_hashes, side="right")
        return [positions[a:b].astype(np.int64) for a, b in zip(first, last, strict=True)]

    def text_hashes(self) -> UInt64[Array, " n"]:
        """The hash of each row's text, in row order."""
        hashes = np.empty(self._columns.shape[1], np.uint64)
        hashes[self._columns[1].astype(np.int64)] = self._columns[2]
        return cast(Array, hashes)
