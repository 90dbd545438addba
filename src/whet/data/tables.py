"""Rows of tables: CSV, Parquet, and the tables of pandas, Arrow and Polars.

A row that cannot be read is a `SourceError` in its place, and the following rows are read.
"""

import csv
import io
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from whet.data.formats.sections import Section
from whet.data.messages import holds_conversation
from whet.errors import SourceError

MAX_FIELD_CHARACTERS = 2**31 - 1  # of CSV, whose own limit is 131,072
MAX_ROW_CHARACTERS = 2**26  # a quote that is not closed within these is a stray one
BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One record as its source holds it."""

    name: str
    """Id of a record without one."""
    where: str
    """Its position, for error messages."""
    fields: dict[str, Any]
    sections: tuple[Section, ...] = ()
    """Where the parts of its text begin."""
    path: str = ""
    """Path of its file in the folder that is read; empty outside of one."""


Records = Iterator[Record | SourceError]


def has_text(names: Collection[str], text_field: str) -> bool:
    """Whether a record with these fields has a text, or is a conversation."""
    return text_field in names or holds_conversation(names)


def csv_rows(
    lines: Iterable[bytes], name: str, where: str, separator: str, text_field: str
) -> Records:
    """The rows of a CSV whose first line names the fields; quoted fields may contain lines.

    A row with a stray quote is one line: the line after it begins the next row.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    fields: list[str] | None = None
    for row, cells in enumerate(_CSV(lines, separator)):
        place = f"{where}, row {row}"
        if fields is None:
            if isinstance(cells, str):
                yield SourceError(f"{where}: the first line cannot be read: {cells}")
                return
            fields = cells
            repeated = [field for field in fields if field and fields.count(field) > 1]
            if repeated:
                yield SourceError(
                    f"{where}: the first line has the field {repeated[0]!r} twice: rename one"
                )
                return
            if not has_text(fields, text_field):
                yield Record(name, where, dict.fromkeys(fields))  # one error for all rows
                return
        elif isinstance(cells, str):
            yield SourceError(f"{place}: {cells}")
        elif len(cells) != len(fields):
            yield SourceError(
                f"{place}: {len(cells)} fields, expected {len(fields)} as in the first line"
            )
        else:
            yield Record(f"{name}:{row}", place, dict(zip(fields, cells, strict=True)))


class _CSV:
    """Rows of cells, or of a row that cannot be read the reason."""

    def __init__(self, lines: Iterable[bytes], separator: str) -> None:
        self._lines, self._separator = iter(lines), separator
        self._again: deque[bytes] = deque()  # lines that are read a second time
        self._taken: list[bytes] = []  # lines of the current row
        self._characters = 0

    def __iter__(self) -> Iterator[list[str] | str]:
        width = 0
        reader = self._reader()
        while True:
            self._taken, self._characters = [], 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                reason = f"byte {error.start} is not UTF-8"
            except csv.Error as error:
                reason = f"a quote is not closed, or not doubled inside a field ({error})"
            else:
                if not cells:
                    continue
                if len(self._taken) == 1 or len(cells) == (width or len(cells)):
                    width = width or len(cells)
                    yield cells
                    continue
                reason = "a quote is not closed, or not doubled inside a field"
            yield reason
            self._again.extendleft(reversed(self._taken[1:]))
            reader = self._reader()

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._decoded(), delimiter=self._separator, strict=True)

    def _decoded(self) -> Iterator[str]:
        while True:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                return
            self._taken.append(line)
            self._characters += len(line)
            if self._characters > MAX_ROW_CHARACTERS and len(self._taken) > 1:
                raise csv.Error(f"no end within {MAX_ROW_CHARACTERS:,} bytes")
            yield line.decode("utf-8-sig" if len(self._taken) == 1 else "utf-8")


def parquet_rows(file: io.BufferedIOBase, name: str, path: str, text_field: str) -> Records:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        parquet = pq.ParquetFile(file)
        if not has_text(parquet.schema_arrow.names, text_field):
            yield Record(name, path, dict.fromkeys(parquet.schema_arrow.names))  # one error
            return
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            for fields in arrow_rows(batch):
                row += 1
                place = f"{path}, row {row}"
                if isinstance(fields, str):
                    yield SourceError(f"{place}: {fields}")
                else:
                    yield Record(f"{name}:{row}", place, fields)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        yield SourceError(f"{path}: cannot be read as Parquet after row {row}: {reason}")


def arrow_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch of Arrow; of a row with a value that Python cannot hold the reason."""
    import pyarrow as pa

    failures = (pa.ArrowException, ValueError, OverflowError, LookupError, TypeError)
    names = batch.schema.names
    columns, reasons = [], [""] * len(batch)
    for name, column in zip(names, batch.columns, strict=True):
        column = _times_as_texts(column)
        try:
            values = column.to_pylist()
        except failures:
            values = [None] * len(column)
            for i in range(len(column)):
                try:
                    values[i] = column[i].as_py()
                except failures as error:
                    reasons[i] = reasons[i] or _reason(name, column.type, error)
        for i, value in enumerate(values):
            if isinstance(value, str) and value.startswith("<value out of range"):
                reasons[i] = reasons[i] or f"field {name!r} holds a time beyond the year 9999"
        columns.append(values)
    for i, reason in enumerate(reasons):
        yield reason or dict(zip(names, (values[i] for values in columns), strict=True))


def _reason(name: str, kind: Any, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"field {name!r} is not UTF-8 at byte {error.start}"
    message = str(error).partition("\n")[0] or type(error).__name__
    return f"field {name!r} holds a {kind} that Python cannot represent ({message})"


def _times_as_texts(column: Any) -> Any:
    """Points in time in ISO 8601, in UTC and without loss, whatever their time zone is called."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(column.type):
        return column
    zone, unit = column.type.tz, column.type.unit
    texts = column.cast(pa.timestamp(unit)).cast(pa.string())
    texts = pc.replace_substring_regex(texts, r"^(\d{4}-\d\d-\d\d) ", r"\1T")
    texts = pc.replace_substring_regex(texts, r"(T[0-9:]{8})\.0+$", r"\1")
    texts = pc.replace_substring_regex(texts, r"(T[0-9:]{8}\.\d*[1-9])0+$", r"\1")
    texts = pc.replace_substring_regex(texts, r"^(-|\d{5,}-).*", "<value out of range>")
    return pc.replace_substring_regex(texts, r"(T[0-9:]{8}.*)$", r"\1Z") if zone else texts


def table_rows(docs: Any) -> Iterator[dict[str, Any] | str] | None:
    """The rows of a table of pandas, Arrow, Polars or any library that exports Arrow streams.

    None if `docs` is not a table. The index of a pandas table is not a field.
    """
    if type(docs).__module__.partition(".")[0] == "pandas" and hasattr(docs, "itertuples"):
        names = [str(name) for name in docs.columns]
        return (
            dict(zip(names, row, strict=True)) for row in docs.itertuples(index=False, name=None)
        )
    if hasattr(docs, "to_batches"):  # pyarrow: a table or a data set
        return (row for batch in docs.to_batches() for row in _small(batch))
    if hasattr(docs, "iter_rows") and hasattr(docs, "columns"):  # Polars
        rows: Iterator[dict[str, Any]] = docs.iter_rows(named=True)
        return rows
    if hasattr(docs, "to_pylist") and hasattr(docs, "schema"):
        return _small(docs)
    if hasattr(docs, "read_next_batch"):
        return (row for batch in docs for row in _small(batch))
    if hasattr(docs, "__arrow_c_stream__") and not hasattr(docs, "to_pylist"):
        import pyarrow as pa

        return table_rows(pa.table(docs)) if hasattr(docs, "columns") else None
    return None


def _small(batch: Any) -> Iterator[dict[str, Any] | str]:
    for start in range(0, len(batch), BATCH_ROWS):
        yield from arrow_rows(batch.slice(start, BATCH_ROWS))
