"""Writing a collection of Milvus: rows first, then the record that lets them be seen."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from whet.data.filters import Filter, kind
from whet.errors import require
from whet.maths.arrays import Array
from whet.space.milvus.filters import key, spelled
from whet.space.milvus.reader import (
    LACKS,
    LONGEST,
    MOST,
    PIECE,
    RECORD,
    MilvusReader,
    Record,
    connected,
    read_record,
)
from whet.space.store.metadata import type_of
from whet.space.store.protocol import COLUMNS, Reader
from whet.space.store.records import as_row_numbers
from whet.space.store.vectors import non_unit_rows, to_float16


class MilvusWriter:
    """Writes a collection. There must be one writer at a time, which Milvus does not see to."""

    lacks = LACKS

    def __init__(self, uri: str, collection: str = "whet", *, new: Record | None = None) -> None:
        """Open for writing; deletes what an unfinished addition left.

        Args:
            uri: As `MilvusReader.open`.
            collection: Its name.
            new: What a collection that is not there yet is made as.

        Raises:
            SpaceError: If there is none and none is to be made, or it is not whet's.
        """
        self._client, self._collection = connected(uri), collection
        if new is not None and not self._client.has_collection(collection):
            _make(self._client, collection, new)
        self._record = read_record(self._client, collection)
        self._client.delete(collection, filter=f"row >= {self._record.next}")

    def close(self) -> None:
        self._client.close()

    def snapshot(self) -> MilvusReader:
        """What is there now; see `LACKS`."""
        return MilvusReader(self._client, self._collection, self._record)

    def add(self, rows: pa.Table, vectors: Float[Array, "n d"], *, key: str | None = None) -> int:
        """See `Writer.add`. Vectors of float16 are kept as they are.

        Raises:
            ValueError: If a text or metadata has more than 65,535 bytes, too, or an id half of it.
        """
        record = self._record
        if key is not None and key in record.keys:
            return record.version
        self._check(rows, vectors)
        if not len(rows):
            return record.version
        fields = {name: list(kinds) for name, kinds in record.fields.items()}
        stored = (vectors if vectors.dtype == np.float16 else to_float16(vectors)).astype(
            np.float32
        )
        try:
            for start in range(0, len(rows), PIECE):
                piece = _entities(rows.slice(start, PIECE), stored[start : start + PIECE],
                                  record.next + start, fields)  # fmt: skip
                self._client.insert(self._collection, piece)
        except BaseException:
            self._client.delete(self._collection, filter=f"row >= {record.next}")
            raise
        keys = [*record.keys, *([] if key is None else [key])]
        return self._replace(next=record.next + len(rows), keys=keys, fields=fields)

    def delete(self, *, ids: Any = None, where: Filter | None = None) -> int:
        """See `Writer.delete`. Whoever reads meanwhile may see a part of it done."""
        if (ids is None) == (where is None):
            raise ValueError("delete takes either ids or a filter: give one of them")
        live = self.snapshot().ids(where)
        if ids is not None:
            live = np.intersect1d(live, as_row_numbers(ids))
        if not len(live):
            return self._record.version
        for start in range(0, len(live), PIECE):
            some = live[start : start + PIECE].tolist()
            self._client.delete(self._collection, filter=f"row in {some}")
        return self._replace()

    def _replace(self, **changes: Any) -> int:
        record = replace(self._record, version=self._record.version + 1, **changes)
        _write_record(self._client, self._collection, record)
        self._record = record
        return record.version

    def _check(self, rows: pa.Table, vectors: Float[Array, "n d"]) -> None:
        if vectors.shape != (len(rows), self._record.dimension):
            raise ValueError(
                f"vectors have shape {vectors.shape}: expected {len(rows)} rows of dimension "
                f"{self._record.dimension}"
            )
        odd = non_unit_rows(vectors.astype(np.float32))
        if len(odd):
            length = np.linalg.norm(vectors[odd[0]])
            raise ValueError(f"vector {odd[0]} has length {length}: expected 1, or 0")
        names = rows["id"].to_pylist()
        there = np.flatnonzero(self.snapshot().find(names) >= 0)
        if len(there):
            raise ValueError(f"document {names[there[0]]!r} is there already: delete it first")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"document {twice!r} comes twice: ids must differ")
        for row in rows.to_pylist():
            sizes = {name: len(row[name].encode()) for name in COLUMNS}
            for name, most in {"id": LONGEST // 2, "text": LONGEST, "meta": LONGEST}.items():
                if sizes[name] > most:
                    raise ValueError(
                        f"document {row['id'][:80]!r} has {sizes[name]} bytes of {name}, but "
                        f"Milvus holds at most {most}: cut it"
                    )


def copied(source: Reader, uri: str, collection: str = "whet", *, lists: int = 0) -> MilvusReader:
    """All rows of `source` in a collection, which is made if it is not there; may be done again
    after it was killed. Rows are numbered anew."""
    new = Record(dimension=source.dimension, fingerprint=source.fingerprint, lists=lists)
    writer = MilvusWriter(uri, collection, new=new)
    ids = source.ids()
    for start in range(0, len(ids), MOST):
        own = ids[start : start + MOST]
        key = f"{source.fingerprint} {source.version} {own[0]}-{own[-1]}"
        writer.add(source.rows(own), source.vectors(own), key=key)
    return writer.snapshot()


def _write_record(client: Any, collection: str, record: Record) -> None:
    told = json.dumps(asdict(record))
    client.alter_collection_properties(collection, properties={RECORD: told})


def _make(client: Any, collection: str, record: Record) -> None:
    kinds = require("pymilvus", "milvus").DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", kinds.INT64, is_primary=True)
    for name in ("name", "text", "meta"):
        schema.add_field(name, kinds.VARCHAR, max_length=LONGEST)
    schema.add_field("fields", kinds.JSON)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=record.dimension)
    index = client.prepare_index_params()
    chosen = {"index_type": "IVF_FLAT", "params": {"nlist": record.lists}}
    chosen = chosen if record.lists else {"index_type": "FLAT"}
    index.add_index("vector", metric_type="IP", **chosen)
    client.create_collection(
        collection, schema=schema, index_params=index, consistency_level="Strong",
        properties={RECORD: json.dumps(asdict(record))},
    )  # fmt: skip


def _entities(
    rows: pa.Table, vectors: Float[Array, "n d"], first: int, fields: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Rows as Milvus takes them; `fields` learns of new ones."""
    made = []
    for place, row in enumerate(rows.to_pylist()):
        plain = {n: v for n, v in json.loads(row["meta"]).items() if n != "id" and _filterable(v)}
        for name, value in plain.items():
            if kind(value) not in fields.setdefault(name, []):
                fields[name].append(kind(value))
        columns = {key(name, kind(v)): spelled(v) if isinstance(v, str) else v
                   for name, v in plain.items()}  # fmt: skip
        made.append({"row": first + place, "name": spelled(row["id"]), "text": row["text"],
                     "meta": row["meta"], "fields": columns, "vector": vectors[place]})  # fmt: skip
    return made


def _filterable(value: Any) -> bool:
    return type_of(value) is not None and not (isinstance(value, float) and math.isinf(value))
