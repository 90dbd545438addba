"""Metadata of a segment's documents as typed Arrow columns, for filters.

A field whose values have several kinds gets one column per kind, so that values of different kinds
never compare. Of a text, the first 257 characters are stored: a filter compares with at most 256,
so the rest never decides. Values without a column (of fields beyond the first 128, integers of more
than 64 bits) are read from the records when a filter needs them, so filters see every value. Lists,
objects, null and NaN have no kind: no comparison is true of them.

Points in time are stored in the one spelling by which they compare; those that earlier versions
stored are converted when a filter first compares their column.
"""

import json
import math
import operator
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from whet.data.filters import LONGEST, OPERATORS, TEXT_OPERATORS, Value, as_comparable, kind
from whet.data.values import TIME_PREFIX, comparable_time
from whet.maths.arrays import Array
from whet.space.store.segments.checked_file import CheckedFile, unreadable
from whet.space.store.segments.records import RecordFile, as_strings

MAX_COLUMNS = 128  # per segment, because each takes space in every row
TYPES = {"truth": pa.bool_(), "whole": pa.int64(), "real": pa.float64(), "text": pa.large_string()}
KINDS = {"truth": "truth", "whole": "number", "real": "number", "text": "text"}
_COMPARABLE = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d*[1-9])?$"  # what `comparable_time` returns
COMPARE = {"==": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater}
COMPARE |= {">=": pc.greater_equal}
COMPARE |= {
    "startswith": lambda texts, part: pc.starts_with(texts, part.as_py()),
    "contains": lambda texts, part: pc.match_substring(texts, part.as_py()),
}
COMPLETE = b"whet.complete"
"""Key of the file's metadata: `yes` if every value has a column, `no` if some have none. Files of
older versions have no such key; they lack long texts, too."""
PYTHON_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "startswith": str.startswith, "contains": operator.contains,
}  # fmt: skip
NUMERAL = r"^\s*[+-]?[0-9]{1,15}(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,3})?\s*$"
"""Texts that also compare as numbers: of up to 15 digits, which a real represents exactly."""
NUMERALS_BY = 1024  # texts of a column by which it is known to hold such texts
CACHED_FIELDS = 8  # fields whose values were read from the records


class MetadataWriter:
    """Collects the columns of a segment in memory, a few bytes per value, and writes them."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._schema: dict[str, pa.DataType] = {}
        self._complete = True

    def add(self, metas: list[str]) -> None:
        """Append rows, given by their metadata as JSON objects."""
        columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(metas))
        for position, meta in enumerate(metas):
            for field, value in json.loads(meta).items():
                type_ = column_type(value)
                if type_ is not None:
                    name = f"{type_} {field}"
                    if name in self._schema or len(self._schema) < MAX_COLUMNS:
                        self._schema.setdefault(name, TYPES[type_])
                        columns[name][position] = comparable(as_comparable(field, value))
                        continue
                self._complete &= value_kind(value) is None
        arrays = {name: pa.array(column, self._schema[name]) for name, column in columns.items()}
        arrays[" "] = pa.nulls(len(metas))  # stores the number of rows if there is no column
        self._parts.append(pa.table(arrays))

    def write(self, path: Path) -> None:
        """Write all rows to `path`."""
        metadata = {COMPLETE: b"yes" if self._complete else b"no"}
        schema = pa.schema([(" ", pa.null()), *self._schema.items()], metadata)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for part in self._parts:
                names = set(part.column_names)
                arrays = [
                    part[f.name].combine_chunks()
                    if f.name in names
                    else pa.nulls(len(part), f.type)
                    for f in schema
                ]
                file.write_table(pa.table(arrays, schema=schema))


class MetadataColumns:
    """The columns of a segment, memory-mapped: the `Table` that `filters.matches` evaluates."""

    def __init__(self, file: CheckedFile, records: RecordFile) -> None:
        """Open a file that a `MetadataWriter` wrote.

        Args:
            file: The file.
            records: The records of the same segment.
        """
        file.check()
        try:
            table = pa.ipc.open_file(pa.BufferReader(file.buffer)).read_all()
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file.path, error) from error
        self._count, self._records = len(table), records
        self._chunks: dict[str, dict[str, list[pa.Array]]] = {}
        names = [name for name in table.column_names if name != " "]
        for name in names:
            type_, _, field = name.partition(" ")
            if field != "id":
                self._chunks.setdefault(field, {})[type_] = table[name].chunks
        self._names = set(names)
        self._complete = (table.schema.metadata or {}).get(COMPLETE)
        self._full = len(names) >= MAX_COLUMNS
        self._read: dict[tuple[str, str], list[Value]] = {}
        self._converted: set[str] = set()  # fields whose points in time have one spelling

    def __len__(self) -> int:
        return self._count

    def fields(self, visible: Bool[Array, " n"]) -> dict[str, set[str]]:
        """The kinds of value that the visible rows have in each field."""
        fields: dict[str, set[str]] = {"id": {"text"}} if visible.any() else {}
        for field, types in self._chunks.items():
            for type_, chunks in types.items():
                if (_concatenate([chunk.is_valid() for chunk in chunks]) & visible).any():
                    fields.setdefault(field, set()).add(KINDS[type_])
                    if type_ == "text" and any(
                        pc.any(_numerals(chunk.drop_null()[:NUMERALS_BY])).as_py()
                        for chunk in chunks[:1]
                    ):
                        fields[field].add("number")
        for (field, kind_), rows in self._without_column.items():
            if visible[rows].any():
                fields.setdefault(field, set()).add(kind_)
        return fields

    def compare(self, field: str, op: str, values: tuple[Value, ...]) -> Bool[Array, " n"]:
        """Rows whose value in `field` compares with any of `values` by `op`."""
        mask = self._compare(field, op, values)
        if op == "contains":
            self._find_in_long_texts(field, str(values[0]), mask)
        numbers = [value for value in values if kind(value) == "number"]
        if not numbers or field == "id":
            return mask
        chunks = self._chunks.get(field, {}).get("text", ())
        parts = [_compare_numerals(chunk, op, numbers) for chunk in chunks]
        mask |= np.concatenate(parts) if parts else False
        if (rows := self._without_column.get((field, "text"))) is not None:
            texts = pa.array(self._values(field, "text", rows), pa.large_string())
            mask[rows] |= _compare_numerals(texts, op, numbers)
        return mask

    def _find_in_long_texts(self, field: str, part: str, mask: Bool[Array, " n"]) -> None:
        """Set `mask` in rows whose text contains `part` beyond what the column stores."""
        if field == "id":
            return
        chunks = self._chunks.get(field, {}).get("text", ())
        long = [pc.greater(pc.utf8_length(c), LONGEST).fill_null(False) for c in chunks]
        rows = np.flatnonzero(_concatenate(long)) if long else np.zeros(0, np.int64)
        further = self._without_column.get((field, "text"), np.zeros(0, np.int64))
        rows = np.union1d(rows, further).astype(np.int64)
        if len(rows):
            metas = as_strings(self._records.take(rows, ["meta"])["meta"])
            mask[rows] = [
                part in str(as_comparable(field, json.loads(meta)[field])) for meta in metas
            ]

    def _compare(self, field: str, op: str, values: tuple[Value, ...]) -> Bool[Array, " n"]:
        mask = np.zeros(len(self), bool)
        types = self._chunks.get(field, {})
        if field == "id":
            types = {"text": [batch.column("id") for batch in self._records.batches()]}
        for type_, chunks in types.items():
            same_kind = [_sought(field, op, v) for v in values if kind(v) == KINDS[type_]]
            if not same_kind:
                continue
            if type_ == "text" and field not in self._converted and field != "id":
                chunks = [_with_comparable_times(chunk) for chunk in chunks]
                self._chunks[field][type_] = chunks
                self._converted.add(field)
            compare = _compare_numbers if KINDS[type_] == "number" else _compare_others
            parts = [compare(chunk, op, same_kind) for chunk in chunks]
            mask |= np.concatenate(parts) if parts else False
        for kind_ in {kind(value) for value in values}:
            rows = self._without_column.get((field, kind_))
            if rows is not None:
                same_kind = [_sought(field, op, v) for v in values if kind(v) == kind_]
                passes = PYTHON_OPERATORS[op]
                mask[rows] |= np.fromiter(
                    (any(passes(have, value) for value in same_kind)
                     for have in self._values(field, kind_, rows)),
                    bool, len(rows),
                )  # fmt: skip
        return mask

    @cached_property
    def _without_column(self) -> dict[tuple[str, str], Int[Array, " _"]]:
        """The rows that have a value without a column, by field and kind."""
        if self._complete == b"yes":
            return {}
        rows: dict[tuple[str, str], list[int]] = defaultdict(list)
        start = 0
        for batch in self._records.batches():
            metas = batch.column("meta")
            for i in np.flatnonzero(self._may_lack_columns(metas)).tolist():
                for field, value in json.loads(metas[i].as_py()).items():
                    kind_ = value_kind(value)
                    if kind_ is not None and field != "id" and not self._has_column(field, value):
                        rows[field, kind_].append(start + i)
            start += len(metas)
        return {key: np.array(positions, np.int64) for key, positions in rows.items()}

    def _may_lack_columns(self, metas: pa.Array) -> Bool[Array, " n"]:
        """Rows that have to be parsed: all, or only those with a long text or integer."""
        if self._full:
            return np.ones(len(metas), bool)
        long = pc.greater(pc.binary_length(metas), LONGEST)
        digits = pc.match_substring_regex(metas, "[0-9]{19}")
        mask: Bool[Array, " n"] = pc.or_(long, digits).to_numpy(zero_copy_only=False)
        return mask

    def _has_column(self, field: str, value: Any) -> bool:
        type_ = column_type(value)
        if type_ is None or f"{type_} {field}" not in self._names:
            return False
        return self._complete is not None or not isinstance(value, str) or len(value) <= LONGEST

    def _values(self, field: str, kind_: str, rows: Int[Array, " n"]) -> list[Value]:
        """The values of `field` in the given rows, from the records."""
        values = self._read.get((field, kind_))
        if values is None:
            metas = as_strings(self._records.take(rows, ["meta"])["meta"])
            values = [comparable(as_comparable(field, json.loads(meta)[field])) for meta in metas]
            if len(self._read) >= CACHED_FIELDS:
                self._read = {}
            self._read[field, kind_] = values
        return values


def _sought(field: str, op: str, value: Value) -> Value:
    """What values of `field` are compared with; a part of a text is not read as a point in time."""
    return value if op in TEXT_OPERATORS else as_comparable(field, value)


def _numerals(texts: pa.Array) -> pa.Array:
    """Which texts spell a number."""
    return pc.match_substring_regex(texts, NUMERAL).fill_null(False)


def _compare_numerals(texts: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    """Compare texts that spell a number as numbers; others fail."""
    spelled = _numerals(texts)
    mask: Bool[Array, " n"] = spelled.to_numpy(zero_copy_only=False).copy()
    numbers = pc.utf8_trim_whitespace(texts.filter(spelled)).cast(pa.float64())
    mask[mask] = _compare_numbers(numbers, op, values)
    return mask


def _compare_numbers(chunk: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    """Compare in NumPy: unlike Arrow it compares integers with integers beyond 64 bits."""
    filled = chunk.fill_null(0).to_numpy(zero_copy_only=False)
    valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    masks = [_compare_exactly(filled, op, value) for value in values]
    mask: Bool[Array, " n"] = np.logical_or.reduce(masks) & valid
    return mask


def _compare_exactly(column: Array, op: str, value: int | float) -> Bool[Array, " n"]:
    """Compare as Python does: not by rounding an integer to a real, nor one too large for a real.

    A number that the column cannot hold is replaced by its neighbors that it can.
    """
    if column.dtype.kind == "f" and isinstance(value, int):
        below, above = _neighbors(value)
    elif column.dtype.kind == "i" and isinstance(value, float) and math.isfinite(value):
        below, above = math.floor(value), math.ceil(value)
    else:
        below = above = value
    if op == "==" and below != above:
        return np.zeros(len(column), bool)
    bound = above if op in ("<", ">=") else below
    mask: Bool[Array, " n"] = OPERATORS[op](column, bound)
    return mask


def _neighbors(value: int) -> tuple[float, float]:
    """The largest real that is at most `value`, and the smallest that is at least `value`."""
    largest = sys.float_info.max
    try:
        nearest = float(value)
    except OverflowError:
        return (largest, math.inf) if value > 0 else (-math.inf, -largest)
    if nearest == value:
        return nearest, nearest
    if nearest < value:
        return nearest, math.nextafter(nearest, math.inf)
    return math.nextafter(nearest, -math.inf), nearest


def _compare_others(chunk: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    if op == "==" and len(values) > 1:
        matches = pc.is_in(chunk, pa.array(values, chunk.type))
    else:
        matches = COMPARE[op](chunk, pa.scalar(values[0], chunk.type)).fill_null(False)
    mask: Bool[Array, " n"] = matches.to_numpy(zero_copy_only=False)
    return mask


def _with_comparable_times(chunk: pa.Array) -> pa.Array:
    """The texts with each point in time in the spelling by which it compares."""
    times = pc.match_substring_regex(chunk, TIME_PREFIX)
    comparable_already = pc.match_substring_regex(chunk, _COMPARABLE)
    pending = pc.and_not(times, comparable_already).fill_null(False)
    if not pc.any(pending).as_py():
        return chunk
    texts = chunk.filter(pending)
    unique = {text: comparable_time(text) or text for text in texts.unique().to_pylist()}
    converted = pa.array([unique[text] for text in texts.to_pylist()], chunk.type)
    return pc.replace_with_mask(chunk, pending, converted)


def _concatenate(chunks: list[pa.Array]) -> Bool[Array, " n"]:
    parts = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def value_kind(value: Any) -> str | None:
    """The kind of a value (see `filters.kind`), or None if no comparison is true of it."""
    if isinstance(value, str | int) or (isinstance(value, float) and value == value):
        return kind(value)
    return None


def column_type(value: Any) -> str | None:
    """The type of column that stores a value (a key of `TYPES`), or None if none does."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        return "whole" if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return "real" if value == value else None
    return "text" if isinstance(value, str) else None


def comparable(value: Any) -> Any:
    """`value`, of a text only as much as decides each comparison with a filter's constant."""
    return value[: LONGEST + 1] if isinstance(value, str) else value
