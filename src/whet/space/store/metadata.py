"""What filters look at: the plain values of documents' metadata, a typed column each.

A field whose values are of several kinds has a column for each kind, so that a comparison never
turns one into another. A value that is a list or an object, or a text of more than 256 characters,
is in no column.
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

MAX_COLUMNS = 128  # columns of a segment; further fields cannot be filtered by
TYPES = {"truth": pa.bool_(), "whole": pa.int64(), "real": pa.float64(), "text": pa.large_string()}
KIND = {"truth": "truth", "whole": "number", "real": "number", "text": "text"}
FUNCTIONS = {"==": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater}
FUNCTIONS |= {">=": pc.greater_equal}


class MetadataWriter:
    """Gathers the columns of a segment; a few bytes a value are held until it is written."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._schema: dict[str, pa.DataType] = {}

    def add(self, metas: list[str]) -> None:
        """The metadata of further rows, as JSON objects."""
        columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(metas))
        for place, meta in enumerate(metas):
            for field, value in json.loads(meta).items():
                type_ = type_of(value)
                if type_ is not None:
                    columns[f"{type_} {field}"][place] = value
        for name in columns:
            if name not in self._schema and len(self._schema) < MAX_COLUMNS:
                self._schema[name] = TYPES[name.partition(" ")[0]]
        kept = {n: pa.array(v, self._schema[n]) for n, v in columns.items() if n in self._schema}
        kept[" "] = pa.nulls(len(metas))  # counts the rows even where there are no columns
        self._parts.append(pa.table(kept))

    def write(self, path: Path) -> None:
        schema = pa.schema([(" ", pa.null()), *self._schema.items()])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for part in self._parts:
                have = set(part.column_names)
                arrays = [
                    part[f.name].combine_chunks() if f.name in have else pa.nulls(len(part), f.type)
                    for f in schema
                ]
                file.write_table(pa.table(arrays, schema=schema))


class MetadataColumns:
    """The columns of a segment, memory-mapped; `filters.matches` reads them."""

    def __init__(self, path: Path, names: list[pa.Array]) -> None:
        """Args:
        path: What a `MetadataWriter` wrote.
        names: The documents' own ids, which are a field as well.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise SpaceError(f"{path} cannot be read: {reason}") from error
        self._count = len(table)
        self._chunks: dict[str, dict[str, list[pa.Array]]] = {"id": {"text": names}}
        for name in table.column_names:
            type_, _, field = name.partition(" ")
            if type_ and field != "id":
                self._chunks.setdefault(field, {})[type_] = table[name].chunks

    def __len__(self) -> int:
        return self._count

    def fields(self, allowed: Bool[Array, " n"]) -> dict[str, set[str]]:
        """The kinds of value that any allowed row has in each field."""
        found: dict[str, set[str]] = {}
        for field, types in self._chunks.items():
            for type_, chunks in types.items():
                if (_stitched([chunk.is_valid() for chunk in chunks]) & allowed).any():
                    found.setdefault(field, set()).add(KIND[type_])
        return found

    def compare(self, field: str, op: str, values: tuple[Value, ...]) -> Bool[Array, " n"]:
        kept = np.zeros(len(self), bool)
        for type_, chunks in self._chunks.get(field, {}).items():
            wanted = [value for value in values if kind(value) == KIND[type_]]
            if not wanted:
                continue
            compare = _numbers if KIND[type_] == "number" else _others
            parts = [compare(chunk, op, wanted) for chunk in chunks]
            kept |= np.concatenate(parts) if parts else False
        return kept


def _numbers(chunk: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    """By NumPy, which compares whole numbers with real ones, and with large ones, as they are."""
    filled = chunk.fill_null(0).to_numpy(zero_copy_only=False)
    valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    found = [OPERATORS[op](filled, value) for value in values]
    kept: Bool[Array, " n"] = np.logical_or.reduce(found) & valid
    return kept


def _others(chunk: pa.Array, op: str, values: list[Any]) -> Bool[Array, " n"]:
    if op == "==" and len(values) > 1:
        found = pc.is_in(chunk, pa.array(values, chunk.type))
    else:
        found = FUNCTIONS[op](chunk, pa.scalar(values[0], chunk.type)).fill_null(False)
    mask: Bool[Array, " n"] = found.to_numpy(zero_copy_only=False)
    return mask


def _stitched(chunks: list[pa.Array]) -> Bool[Array, " n"]:
    parts = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def type_of(value: Any) -> str | None:
    """The kind of column that holds a value; None if none does."""
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        return "whole" if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return "real" if value == value else None
    return "text" if isinstance(value, str) and len(value) <= LONGEST else None
