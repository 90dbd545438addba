"""Metadata of a segment's documents as typed Arrow columns, for filters.

A field whose values have several kinds gets one column per kind, so that values of different kinds
never compare. Lists, objects and texts of more than 256 characters are not stored here.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from whet.data.filters import LONGEST, OPERATORS, Value, kind
from whet.errors import SpaceError
from whet.maths.arrays import Array

MAX_COLUMNS = 128  # per segment; fields beyond these cannot be filtered by
TYPES = {"truth": pa.bool_(), "whole": pa.int64(), "real": pa.float64(), "text": pa.large_string()}
KINDS = {"truth": "truth", "whole": "number", "real": "number", "text": "text"}
COMPARE = {"==": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater}
COMPARE |= {">=": pc.greater_equal}


class MetadataWriter:
    """Collects the columns of a segment in memory, a few bytes per value, and writes them."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._schema: dict[str, pa.DataType] = {}

    def add(self, metas: list[str]) -> None:
        """Append rows, given by their metadata as JSON objects."""
        columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(metas))
        for position, meta in enumerate(metas):
            for field, value in json.loads(meta).items():
                type_ = column_type(value)
                if type_ is not None:
                    columns[f"{type_} {field}"][position] = value
        for name in columns:
            if name not in self._schema and len(self._schema) < MAX_COLUMNS:
                self._schema[name] = TYPES[name.partition(" ")[0]]
        arrays = {n: pa.array(v, self._schema[n]) for n, v in columns.items() if n in self._schema}
        arrays[" "] = pa.nulls(len(metas))  # stores the number of rows if there is no column
        self._parts.append(pa.table(arrays))

    def write(self, path: Path) -> None:
        """Write all rows to `path`."""
        schema = pa.schema([(" ", pa.null()), *self._schema.items()])
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

    def __init__(self, path: Path, ids: list[pa.Array]) -> None:
        """Open a file that a `MetadataWriter` wrote.

        Args:
            path: The file.
            ids: The document ids, which filters see as the field `id`.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise SpaceError(f"{path} cannot be read: {reason}") from error
        self._count = len(table)
        self._chunks: dict[str, dict[str, list[pa.Array]]] = {"id": {"text": ids}}
        for name in table.column_names:
            type_, _, field = name.partition(" ")
            if type_ and field != "id":
                self._chunks.setdefault(field, {})[type_] = table[name].chunks

    def __len__(self) -> int:
        return self._count

    def fields(self, visible: Bool[Array, " n"]) -> dict[str, set[str]]:
        """The kinds of value that the visible rows have in each field."""
        fields: dict[str, set[str]] = {}
        for field, types in self._chunks.items():
            for type_, chunks in types.items():
                if (_concatenate([chunk.is_valid() for chunk in chunks]) & visible).any():
                    fields.setdefault(field, set()).add(KINDS[type_])
        return fields

    def compare(self, field: str, op: str, values: tuple[Value, ...]) -> Bool[Array, " n"]:
        """Rows whose value in `field` compares with any of `values` by `op`."""
        mask = np.zeros(len(self), bool)
        for type_, chunks in self._chunks.get(field, {}).items():
            comparable = [value for value in values if kind(value) == KINDS[type_]]
            if not comparable:
                continue
            compare = _compare_numbers if KINDS[type_] == "number" else _compare_others
            parts = [compare(chunk, op, comparable) for chunk in chunks]
            mask |= np.concatenate(parts) if parts else False
        return mask


def _compare_numbers(chunk: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    """Compare in NumPy: unlike Arrow it compares integers with reals, and with integers beyond
    64 bits, without converting them."""
    filled = chunk.fill_null(0).to_numpy(zero_copy_only=False)
    valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    masks = [OPERATORS[op](filled, value) for value in values]
    mask: Bool[Array, " n"] = np.logical_or.reduce(masks) & valid
    return mask


def _compare_others(chunk: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    if op == "==" and len(values) > 1:
        matches = pc.is_in(chunk, pa.array(values, chunk.type))
    else:
        matches = COMPARE[op](chunk, pa.scalar(values[0], chunk.type)).fill_null(False)
    mask: Bool[Array, " n"] = matches.to_numpy(zero_copy_only=False)
    return mask


def _concatenate(chunks: list[pa.Array]) -> Bool[Array, " n"]:
    parts = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def column_type(value: Any) -> str | None:
    """The type of column that stores a value (a key of `TYPES`), or None if none does."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        return "whole" if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return "real" if value == value else None
    return "text" if isinstance(value, str) and len(value) <= LONGEST else None
