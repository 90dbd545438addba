"""The rows of a segment in one memory-mapped Arrow file: read where they lie, nothing is loaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.store.protocol import COLUMNS, SCHEMA

BATCH_ROWS, BATCH_BYTES = 1024, 16_000_000  # a batch ends at the first of these


class RecordFile:
    """Texts and metadata, by place in the file."""

    def __init__(self, path: Path, starts: Sequence[int]) -> None:
        """Args:
        path: What a `RecordWriter` wrote.
        starts: Its `starts`.
        """
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise SpaceError(f"{path} cannot be read: {reason}") from error
        if not self._reader.schema.equals(SCHEMA):
            raise SpaceError(
                f"{path} has columns {self._reader.schema.names}, expected id, text, meta"
            )
        self._path, self._starts = path, np.array(starts, np.int64)

    def take(self, places: Int[Array, " n"], columns: Sequence[str] = COLUMNS) -> pa.Table:
        """The rows at `places`, in that order."""
        parts, order = [], []
        batches = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(batches).tolist():
            chosen = np.flatnonzero(batches == number)
            batch = self._batch(number).select(list(columns))
            parts.append(batch.take(pa.array(places[chosen] - self._starts[number])))
            order.append(chosen)
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        table = pa.Table.from_batches(parts, schema=schema)
        return table.take(pa.array(np.argsort(np.concatenate(order)))) if order else table

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Some rows at a time, as written."""
        return (self._batch(number) for number in range(len(self._starts)))

    def _batch(self, number: int) -> pa.RecordBatch:
        try:
            return self._reader.get_batch(number)
        except (pa.ArrowException, OSError) as error:
            raise SpaceError(f"{self._path} is broken at batch {number}: {error}") from error


class RecordWriter:
    """Writes rows as they come, in batches of about 1,024; whole once it is closed."""

    def __init__(self, path: Path) -> None:
        self._sink = path.open("wb")
        self._file = pa.ipc.new_file(self._sink, SCHEMA)
        self._waiting: list[pa.RecordBatch] = []
        self._count = self._bytes = 0
        self.starts: list[int] = []
        """The first row of each batch."""
        self._written = 0

    def add(self, batch: pa.RecordBatch) -> None:
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            self._waiting.append(part)
            self._count += len(part)
            self._bytes += part.nbytes
            if self._count >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._count:
            batch = pa.concat_batches(self._waiting)
            self._file.write_batch(batch)
            self.starts.append(self._written)
            self._written += len(batch)
        self._waiting, self._count, self._bytes = [], 0, 0

    def close(self) -> None:
        self._flush()
        self._file.close()
        self._sink.close()


def as_strings(column: pa.Array | pa.ChunkedArray) -> list[str]:
    return cast(list[str], column.to_pylist())


def as_row_numbers(ids: Any) -> Int[Array, " n"]:
    """Rows' numbers as an array.

    Raises:
        ValueError: If they are no whole numbers, but documents' own ids, say.
    """
    numbers = np.asarray(ids).reshape(-1)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise ValueError(f"ids is {ids!r}: expected rows' numbers, which `find` has of ids")
    return numbers.astype(np.int64)
