"""Ids, texts and metadata of a segment in one memory-mapped Arrow file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.store.protocol import COLUMNS, SCHEMA

BATCH_ROWS, BATCH_BYTES = 1024, 16_000_000  # a batch ends when it reaches either


class RecordFile:
    """Random access to records by their position in the file; nothing is loaded in advance."""

    def __init__(self, path: Path, starts: Sequence[int]) -> None:
        """Open a file that a `RecordWriter` wrote.

        Args:
            path: The file.
            starts: `RecordWriter.starts`: the first position of each batch.
        """
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise SpaceError(f"{path} cannot be read: {reason}") from error
        if not self._reader.schema.equals(SCHEMA):
            raise SpaceError(
                f"{path} has columns {self._reader.schema.names}: expected id, text, meta"
            )
        self._path, self._starts = path, np.array(starts, np.int64)

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
        try:
            return self._reader.get_batch(number)
        except (pa.ArrowException, OSError) as error:
            raise SpaceError(f"{self._path} is broken at batch {number}: {error}") from error


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
            self.starts.append(self._written)
            self._written += len(batch)
        self._buffer, self._count, self._bytes = [], 0, 0

    def close(self) -> None:
        """Write the buffered records and the file's footer."""
        self._flush()
        self._file.close()
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
