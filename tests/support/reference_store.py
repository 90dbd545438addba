"""The reference implementation of a store: a list of rows, scanned by every search."""

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from whet.data.filters import And, Compare, In, Not, Or, check_fields, kind
from whet.space.store.protocol import COLUMNS, SCHEMA, SearchResults
from whet.space.store.segments.records import as_row_numbers

TIE = 1e-9


@dataclass
class Row:
    id: int
    name: str
    text: str
    meta: str
    vector: np.ndarray

    def values(self):
        plain = {k: v for k, v in json.loads(self.meta).items() if isinstance(v, str | int | float)}
        return {**plain, "id": self.name}


def passes(filter, row):
    match filter:
        case None:
            return True
        case Compare(name, op, value):
            return compares(row.values().get(name), op, value)
        case In(name, values):
            return any(compares(row.values().get(name), "==", value) for value in values)
        case And(filters):
            return all(passes(part, row) for part in filters)
        case Or(filters):
            return any(passes(part, row) for part in filters)
        case Not(inner):
            return not passes(inner, row)


def compares(stored, op, value):
    if stored is None:
        return False
    if kind(value) == "number" and isinstance(stored, str) and stored.strip().isdecimal():
        stored = float(stored)
    if kind(stored) != kind(value):
        return False
    if op in ("startswith", "contains"):
        return value in stored if op == "contains" else stored.startswith(value)
    return {"==": stored == value, "<": stored < value, "<=": stored <= value,
            ">": stored > value, ">=": stored >= value}[op]  # fmt: skip


@dataclass
class ReferenceReader:
    all: tuple
    dimension: int
    fingerprint: str
    version: int

    def _rows(self, where=None):
        if where is not None:
            fields = {}
            for row in self.all:
                for name, value in row.values().items():
                    fields.setdefault(name, set()).add(kind(value))
            check_fields(where, {"id": {"text"}, **fields})
        return [row for row in self.all if passes(where, row)]

    def _named(self, ids):
        known = {row.id: row for row in self.all}
        for i in np.asarray(ids).tolist():
            if i not in known:
                raise IndexError(f"row {i} is not in the data space")
        return [known[i] for i in np.asarray(ids).tolist()]

    def search(self, queries, k, *, metric="abs_cosine", where=None, vectors=True, exact=False,
               probe_fraction=None):  # fmt: skip
        queries = np.asarray(queries, dtype=np.float64)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"queries have shape {queries.shape}")
        if not np.isfinite(queries).all() or not queries.any(axis=1).all() or k < 1:
            raise ValueError("a query is zero or not finite, or k is not positive")
        if (probe_fraction is not None and not 0 < probe_fraction <= 1) or metric not in (
            "abs_cosine",
            "cosine",
        ):
            raise ValueError("probe_fraction or metric")
        rows = self._rows(where)
        ids, scores = np.full((len(queries), k), -1), np.zeros((len(queries), k))
        stored = np.zeros((len(queries), k, self.dimension), np.float16)
        for line, query in enumerate(queries):
            near = sorted(((cosine(query, row.vector), row) for row in rows), key=order(metric))
            for place, (score, row) in enumerate(near[:k]):
                ids[line, place], scores[line, place] = row.id, score
                stored[line, place] = row.vector
        return SearchResults(ids, scores, stored if vectors else None, self.version, True)

    def ids(self, where=None):
        return np.array([row.id for row in self._rows(where)], np.int64)

    def vectors(self, ids):
        rows = [row.vector for row in self._named(ids)]
        return np.stack(rows) if rows else np.zeros((0, self.dimension), np.float16)

    def rows(self, ids, columns=COLUMNS):
        rows = [{"id": r.name, "text": r.text, "meta": r.meta} for r in self._named(ids)]
        return pa.Table.from_pylist(rows, schema=SCHEMA).select(list(columns))

    def find(self, names):
        known = {row.name: row.id for row in self.all}
        return np.array([known.get(name, -1) for name in names], np.int64)

    def count(self, where=None):
        return len(self._rows(where))

    def filter(self, where):
        return ReferenceReader(tuple(self._rows(where)), self.dimension, self.fingerprint,
                               self.version)  # fmt: skip

    def close(self):
        pass


def cosine(query, vector):
    wide = vector.astype(np.float64)
    length = np.linalg.norm(wide) * np.linalg.norm(query)
    return float(query @ wide / length) if length else 0.0


def order(metric):
    """Nearest first; ties, up to rounding, by the lowest id."""
    return lambda pair: (-round(abs(pair[0]) if metric == "abs_cosine" else pair[0], 9), pair[1].id)


@dataclass
class ReferenceWriter:
    dimension: int
    fingerprint: str
    rows: list = field(default_factory=list)
    keys: set = field(default_factory=set)
    version: int = 0
    next: int = 0

    def add(self, rows, vectors, *, key=None):
        if key is not None and key in self.keys:
            return self.version
        names = rows["id"].to_pylist()
        lengths = np.linalg.norm(vectors, axis=1)
        if len(set(names)) < len(names) or (self.snapshot().find(names) >= 0).any():
            raise ValueError("a document's id is stored already or repeated")
        if not ((lengths == 0) | (np.abs(lengths - 1) < 1e-3)).all():
            raise ValueError("a vector is not of length 1 or 0")
        if vectors.shape[1] != self.dimension:
            raise ValueError("vectors of another dimension")
        units = vectors / np.where(lengths > 0, lengths, 1)[:, None]
        for row, vector in zip(rows.to_pylist(), units.astype(np.float32), strict=True):
            added = Row(self.next, row["id"], row["text"], row["meta"], vector.astype(np.float16))
            self.rows = [*self.rows, added]
            self.next += 1
        self.version += bool(names)
        self.keys.add(key)
        return self.version

    def delete(self, *, ids=None, where=None):
        if (ids is None) == (where is None):
            raise ValueError("give ids or a filter")
        deleted = set(
            self.snapshot().ids(where).tolist() if ids is None else as_row_numbers(ids).tolist()
        )
        remaining = [row for row in self.rows if row.id not in deleted]
        self.version += len(remaining) < len(self.rows)
        self.rows = remaining
        return self.version

    def snapshot(self):
        return ReferenceReader(tuple(self.rows), self.dimension, self.fingerprint, self.version)

    def close(self):
        pass
