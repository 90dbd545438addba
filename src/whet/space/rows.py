"""What is known of each row of a data space, in one memory-mapped Arrow file."""

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from whet.errors import SpaceError
from whet.space.documents import Document

SCHEMA = pa.schema({name: pa.large_string() for name in ("id", "text", "meta")})
ROWS, CHARACTERS = 1024, 16_000_000  # a batch ends at the first of these


class Rows:
    """The rows of an Arrow file: read where they lie, nothing is loaded."""

    def __init__(self, path: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if not reader.schema.equals(SCHEMA):
                raise SpaceError(
                    f"{path} has columns {reader.schema.names}, expected id, text, meta"
                )
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise SpaceError(f"{path} cannot be read: {reason}") from error
        self._starts = np.cumsum([0] + [len(batch) for batch in self._batches])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def text(self, row: int) -> str:
        return self._value("text", row)

    def document(self, row: int) -> Document:
        meta = json.loads(self._value("meta", row))
        return Document(self._value("id", row), self.text(row), meta)

    @cached_property
    def ids(self) -> list[str]:
        return [name for batch in self._batches for name in batch.column("id").to_pylist()]

    @property
    def texts(self) -> Sequence[str]:
        """All texts, each read when asked for."""
        return _Texts(self)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """A few rows at a time, as written."""
        return iter(self._batches)

    def _value(self, column: str, row: int) -> str:
        row = range(len(self))[row]  # an IndexError beyond the end; negative counts from there
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        value: str = self._batches[batch].column(column)[row - int(self._starts[batch])].as_py()
        return value


class _Texts(Sequence[str]):
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._rows.text(row)


class RowsWriter:
    """Writes an Arrow file of rows, a batch at a time; whole once it is closed."""

    def __init__(self, path: Path) -> None:
        self._sink = path.open("wb")
        self._file = pa.ipc.new_file(self._sink, SCHEMA)
        self._waiting: list[dict[str, str]] = []
        self._characters = 0
        self.count = 0

    def add(self, document: Document) -> None:
        meta = json.dumps(document.meta, ensure_ascii=True, default=str)
        self._waiting.append({"id": document.id, "text": document.text, "meta": meta})
        self._characters += len(document.text)
        self.count += 1
        if len(self._waiting) == ROWS or self._characters >= CHARACTERS:
            self._flush()

    def copy(self, rows: Rows) -> None:
        """All of another file's rows."""
        self._flush()
        for batch in rows.batches():
            self._file.write_batch(batch)
            self.count += len(batch)

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=SCHEMA))
        self._waiting, self._characters = [], 0

    def __enter__(self) -> "RowsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._sink:
            if error is None:
                self._flush()
                self._file.close()
                self._sink.flush()
                os.fsync(self._sink.fileno())
