"""Writing a store in Milvus: rows first, then the record that makes them visible."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.filters import Filter, as_comparable, kind
from whet.errors import EmbedderMismatchError, SpaceError, require
from whet.maths.arrays import Array
from whet.space.milvus.filters import field_key, hex_encode
from whet.space.milvus.reader import (
    BATCH_ROWS,
    MAX_BYTES,
    MAX_ROWS,
    RECORD_PROPERTY,
    UNSUPPORTED,
    CollectionRecord,
    MilvusReader,
    connect,
    parse_address,
    read_record,
)
from whet.space.store.protocol import COLUMNS, Reader
from whet.space.store.reader import DiskReader
from whet.space.store.sealing import check_addition, rows_to_delete
from whet.space.store.segments.metadata import column_type, comparable, value_kind
from whet.space.store.segments.vectors import to_float16


class MilvusWriter:
    """Writes a collection. Only one writer at a time is allowed, which Milvus does not enforce."""

    unsupported = UNSUPPORTED

    def __init__(
        self, uri: str, collection: str = "whet", *, new: CollectionRecord | None = None
    ) -> None:
        """Open for writing, and delete what an unfinished addition left.

        Args:
            uri: See `MilvusReader.open`.
            collection: Its name.
            new: The record with which a missing collection is created.

        Raises:
            SpaceError: If it does not exist and `new` is None, or whet did not write it.
        """
        self._client, self._uri, self._collection = connect(uri), uri, collection
        if new is not None and not self._client.has_collection(collection):
            _create_collection(self._client, collection, new)
        self._record = read_record(self._client, collection)
        self._client.delete(collection, filter=f"row >= {self._record.next}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def snapshot(self) -> MilvusReader:
        """A reader of the latest version; see `UNSUPPORTED`."""
        return MilvusReader(self._client, self._uri, self._collection, self._record)

    def add(self, rows: pa.Table, vectors: Float[Array, "n d"], *, key: str | None = None) -> int:
        """See `Writer.add`. float16 vectors are stored unchanged.

        Raises:
            ValueError: If `Writer.add` raises it; if a text or metadata has more than 65,535 bytes,
                or an id more than half of that; if a number is one that Milvus cannot filter by.
        """
        record = self._record
        if key is not None and key in record.keys:
            return record.version
        check_addition(rows, vectors, self.snapshot())
        _check_sizes(rows)
        if not len(rows):
            return record.version
        fields = {name: list(kinds) for name, kinds in record.fields.items()}
        stored = vectors if vectors.dtype == np.float16 else to_float16(vectors)
        stored = stored.astype(np.float32)
        try:
            for start in range(0, len(rows), BATCH_ROWS):
                batch = _entities(rows.slice(start, BATCH_ROWS), stored[start : start + BATCH_ROWS],
                                  record.next + start, fields)  # fmt: skip
                self._client.insert(self._collection, batch)
        except BaseException:
            self._client.delete(self._collection, filter=f"row >= {record.next}")
            raise
        keys = [*record.keys, *([] if key is None else [key])]
        return self._replace(next=record.next + len(rows), keys=keys, fields=fields)

    def delete(self, *, ids: Any = None, where: Filter | None = None) -> int:
        """See `Writer.delete`. Concurrent readers may see a part of the deletions."""
        rows = rows_to_delete(self.snapshot(), ids, where)
        if not len(rows):
            return self._record.version
        for start in range(0, len(rows), BATCH_ROWS):
            batch = rows[start : start + BATCH_ROWS].tolist()
            self._client.delete(self._collection, filter=f"row in {batch}")
        return self._replace()

    def _replace(self, **changes: Any) -> int:
        record = replace(self._record, version=self._record.version + 1, **changes)
        properties = {RECORD_PROPERTY: json.dumps(asdict(record))}
        self._client.alter_collection_properties(self._collection, properties=properties)
        self._record = record
        return record.version


def copy_rows(
    store: Reader,
    uri: str,
    collection: str = "whet",
    *,
    progress: Callable[[int], None] = lambda _: None,
    **settings: Any,
) -> MilvusReader:
    """Make a collection equal to a store; it is created if it does not exist.

    Documents that changed since the last copy are replaced, and those that vanished are deleted, both
    before new ones are added. An interrupted copy can be repeated. Rows get new numbers.

    Args:
        store: The store.
        uri: See `MilvusReader.open`.
        collection: Name of the collection.
        progress: Called with the number of rows copied since the last call.
        settings: Further fields of a new collection's `CollectionRecord`.

    Raises:
        EmbedderMismatchError: If the collection contains vectors of another embedder.
        SpaceError: If the collection has other labels.
        ValueError: If a document is too large for Milvus, or two have the same id.
    """
    new = CollectionRecord(dimension=store.dimension, fingerprint=store.fingerprint, **settings)
    writer = MilvusWriter(uri, collection, new=new)
    reader = writer.snapshot()
    if reader.fingerprint != store.fingerprint:
        raise EmbedderMismatchError(
            f"collection {collection} at {uri} has vectors of another embedder, or of this one before "
            "`whet space refit`: choose another name, or drop the collection first"
        )
    if reader.record.labels != new.labels:
        raise SpaceError(
            f"collection {collection} at {uri} has labels {reader.record.labels}, but the data "
            f"space has {new.labels}: choose another name"
        )
    ids = store.ids()
    missing, obsolete = _differences(store, ids, reader)
    writer.delete(ids=obsolete)
    progress(len(ids) - len(missing))
    for start in range(0, len(missing), MAX_ROWS):
        batch = missing[start : start + MAX_ROWS]
        writer.add(store.rows(batch), store.vectors(batch))
        progress(len(batch))
    return writer.snapshot()


def _differences(
    store: Reader, ids: Int[Array, " n"], copy: MilvusReader
) -> tuple[Int[Array, " _"], Int[Array, " _"]]:
    """Rows of `store` that a copy lacks, and rows of the copy that the store no longer has.

    A document with another text or other metadata counts as both.
    """
    copied = copy.ids()
    if not len(copied):
        return ids, copied
    missing, current = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(ids), MAX_ROWS):
        batch = ids[start : start + MAX_ROWS]
        rows = store.rows(batch)
        found = copy.find(rows["id"].to_pylist())
        known = np.flatnonzero(found >= 0)
        texts = [table.select(["text", "meta"]).to_pylist()
                 for table in (rows.take(pa.array(known)), copy.rows(found[known]))]  # fmt: skip
        same = known[[one == other for one, other in zip(*texts, strict=True)]]
        missing.append(np.delete(batch, same))
        current.append(found[same])
    return np.concatenate(missing), np.setdiff1d(copied, np.concatenate(current))


def copy_space(
    path: str | Path,
    address: str,
    *,
    lists: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Copy the data space in a folder to `milvus:URI#COLLECTION`; returns the number of documents.

    Repeating it brings the collection up to date: see `copy_rows`.

    Args:
        path: The folder.
        address: The collection, which is created if it does not exist.
        lists: Number of lists of a new collection's index; 0 for none.
        progress: Called with the number of documents copied since the last call.

    Raises:
        SpaceError: If the data space cannot be opened, Milvus does not answer, or the collection has
            other labels.
        EmbedderMismatchError: If the collection contains vectors of another embedder.
        ValueError: If the address is incomplete, the vectors are not normalized, a document is too
            large for Milvus, or two documents have the same id.
    """
    uri, collection = parse_address(address)
    source = DiskReader.open(path)
    manifest = source.manifest
    if not manifest.normalized:
        raise ValueError(
            f"data space {path} has vectors of any length, but Milvus stores unit vectors only: "
            "use an embedder that normalizes"
        )
    labels = None if manifest.labels is None else asdict(manifest.labels)
    copy = copy_rows(
        source, uri, collection, progress=progress, embedder=manifest.embedder,
        source=str(Path(path).resolve()), labels=labels, lists=lists, chunks=manifest.chunking,
        kernel=manifest.kernel,
    )  # fmt: skip
    return copy.count()


def _check_sizes(rows: pa.Table) -> None:
    limits = {"id": MAX_BYTES // 2, "text": MAX_BYTES, "meta": MAX_BYTES}
    for row in rows.to_pylist():
        for name in COLUMNS:
            size = len(row[name].encode())
            if size > limits[name]:
                raise ValueError(
                    f"document {row['id'][:80]!r} has {size} bytes of {name}, but Milvus stores at "
                    f"most {limits[name]}: shorten it, or split documents with --chunks"
                )
        for name, value in json.loads(row["meta"]).items():
            if value_kind(value) is not None and not _is_filterable(value):
                raise ValueError(
                    f"document {row['id'][:80]!r} has {name} = {value}, but Milvus filters by "
                    "finite numbers and by integers of 64 bits only: store it as a text"
                )


def _create_collection(client: Any, collection: str, record: CollectionRecord) -> None:
    types = require("pymilvus", "milvus").DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", types.INT64, is_primary=True)
    for name in ("name", "text", "meta"):
        schema.add_field(name, types.VARCHAR, max_length=MAX_BYTES)
    schema.add_field("fields", types.JSON)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=record.dimension)
    index = client.prepare_index_params()
    options: dict[str, Any] = {"index_type": "FLAT"}
    if record.lists:
        options = {"index_type": "IVF_FLAT", "params": {"nlist": record.lists}}
    index.add_index("vector", metric_type="IP", **options)
    client.create_collection(
        collection, schema=schema, index_params=index, consistency_level="Strong",
        properties={RECORD_PROPERTY: json.dumps(asdict(record))},
    )  # fmt: skip


def _entities(
    rows: pa.Table, vectors: Float[Array, "n d"], first: int, fields: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Rows in Milvus's form; fields and kinds that are new are added to `fields`."""
    entities = []
    for i, row in enumerate(rows.to_pylist()):
        values = {}
        for name, value in json.loads(row["meta"]).items():
            if name == "id" or not _is_filterable(value):
                continue
            kinds = fields.setdefault(name, [])
            if kind(value) not in kinds:
                kinds.append(kind(value))
            value = comparable(as_comparable(name, value))
            encoded = hex_encode(value) if isinstance(value, str) else value
            values[field_key(name, kind(value))] = encoded
        entities.append({"row": first + i, "name": hex_encode(row["id"]), "text": row["text"],
                         "meta": row["meta"], "fields": values, "vector": vectors[i]})  # fmt: skip
    return entities


def _is_filterable(value: Any) -> bool:
    finite = not (isinstance(value, float) and math.isinf(value))
    return column_type(value) is not None and finite
