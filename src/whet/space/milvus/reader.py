"""Reading a store in Milvus: a file of Milvus Lite, or a server.

A collection contains one row per document, with columns for its id, text and metadata. The values
that filters use are in a JSON column, with one key per field and kind of value; ids and these values
are encoded in hexadecimal. Vectors are float32 with the values of float16, since Milvus Lite has no
float16. A property of the collection contains its `CollectionRecord`. Only rows below the record's
`next` are visible, so additions are atomic; the next writer deletes what a dead one left.

`UNSUPPORTED` lists the guarantees of the protocol that Milvus cannot give. A query returns at most
16,384 rows.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.filters import Filter, both, check_fields
from whet.embed.lsa import LSA
from whet.errors import EmbedderMismatchError, SpaceError, require
from whet.maths.arrays import Array
from whet.space.milvus.filters import expression, field_path, hex_encode, literal
from whet.space.store.manifest import Labels, Manifest, read_manifest
from whet.space.store.opening import load_lsa
from whet.space.store.protocol import COLUMNS, SCHEMA, Metric, SearchResults
from whet.space.store.segments.vectors import (
    check_search,
    cosines,
    normalize_queries,
    rerank,
    score_error,
)

SCHEME = "milvus:"
UNSUPPORTED = frozenset({"snapshots", "locks"})
"""snapshots: readers do not see rows added later, but do not see rows deleted later either.
locks: a second writer is not refused."""
MAX_ROWS = 16_384  # of a query's result
MAX_BYTES = 65_535  # of a text
BATCH_ROWS = 1000  # sent or fetched at a time
RECORD_PROPERTY = "whet"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionRecord:
    """The settings and state of a collection; the field names are part of the stored format."""

    dimension: int
    """Length of the vectors."""
    fingerprint: str
    """Fingerprint of the embedder that made them."""
    embedder: str = ""
    """Specification of that embedder, or the name of a Python object; empty in collections that
    older versions of whet wrote."""
    source: str = ""
    """Folder of the data space that was copied."""
    labels: dict[str, Any] | None = None
    """Its access labels, as `Labels`."""
    lists: int = 0
    """Number of lists of the index (IVF_FLAT); 0 for none (FLAT)."""
    version: int = 0
    """Number of changes so far."""
    next: int = 0
    """Row number of the next document."""
    keys: list[str] = field(default_factory=list)
    """Idempotency keys of the additions made so far."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """Fields that filters can use, with the kinds of value of any row."""
    chunks: str = ""
    """How texts of the data space that was copied are cut."""
    kernel: dict[str, float] = field(default_factory=dict)
    """Mean products of its vectors, as `KernelScale`; empty if they are not measured."""


class MilvusReader:
    """A collection as it was when opened, except rows that were deleted since."""

    unsupported = UNSUPPORTED

    def __init__(
        self,
        client: Any,
        uri: str,
        collection: str,
        record: CollectionRecord,
        *,
        where: Filter | None = None,
        owns_client: bool = False,
    ) -> None:
        """Use `open` instead; with `owns_client`, `close` closes the client."""
        self._client, self._uri, self._collection = client, uri, collection
        self.record, self._where, self._owns_client = record, where, owns_client
        self.dimension, self.version = record.dimension, record.version
        self.fingerprint = record.fingerprint

    @classmethod
    def open(
        cls, uri: str, collection: str = "whet", *, fingerprint: str | None = None
    ) -> "MilvusReader":
        """Open the collection as it is now.

        Args:
            uri: A file whose name ends with `.db`, or the http://HOST:PORT of a server.
            collection: Its name.
            fingerprint: The expected fingerprint of the embedder.

        Raises:
            SpaceError: If it does not exist, or whet did not write it.
            EmbedderMismatchError: If another embedder made it.
        """
        client = connect(uri)
        record = read_record(client, collection)
        if fingerprint not in (None, record.fingerprint):
            raise EmbedderMismatchError(
                f"collection {collection} at {uri} was made by an embedder with fingerprint "
                f"{record.fingerprint!r}, not {fingerprint!r}: copy the data space again"
            )
        client.load_collection(collection)  # Milvus Lite releases it with the process that wrote it
        return cls(client, uri, collection, record, owns_client=True)

    @property
    def path(self) -> Path:
        """The address, as a path."""
        return Path(f"{SCHEME}{self._uri}#{self._collection}")

    @property
    def manifest(self) -> Manifest:
        """The record, as the manifest of a data space."""
        record = self.record
        return Manifest(
            embedder=record.embedder, fingerprint=record.fingerprint, dimension=record.dimension,
            source=record.source, version=record.version, next=record.next, keys=record.keys,
            labels=None if record.labels is None else Labels(**record.labels),
            chunks=record.chunks, kernel=record.kernel,
        )  # fmt: skip

    def load_lsa(self) -> LSA:
        """The `lsa` embedder, from the folder of the data space that was copied.

        Raises:
            SpaceError: If that folder no longer has it.
        """
        folder = Path(self.record.source)
        try:
            manifest = read_manifest(folder)
            if manifest.fingerprint != self.fingerprint:
                raise SpaceError(f"that of {folder} was fitted again: copy the data space again")
            return load_lsa(folder, manifest)
        except SpaceError as error:
            raise SpaceError(
                f"collection {self._collection} at {self._uri} needs the lsa embedder of the data "
                f"space that it was copied from ({error}): restore that folder, or pass it to "
                "`DataSpace.open(path, embedder)`"
            ) from error

    def close(self) -> None:
        """Close the connection, unless it belongs to a writer or to another reader."""
        if self._owns_client:
            self._client.close()

    def filter(self, where: Filter) -> "MilvusReader":
        """See `Reader.filter`. Milvus applies the filter to every query."""
        check_fields(where, self.fields)
        combined = both(self._where, where)
        return MilvusReader(self._client, self._uri, self._collection, self.record, where=combined)

    def count(self, where: Filter | None = None) -> int:
        """See `Reader.count`."""
        return self._count(self._passing(where))

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """See `Reader.ids`."""
        passing, rows = self._passing(where), []
        for first in range(0, self.record.next, MAX_ROWS):
            block = f"row >= {first} and row < {first + MAX_ROWS} and {passing}"
            rows += sorted(hit["row"] for hit in self._query(block, []))
        return np.array(rows, np.int64)

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """See `Reader.vectors`."""
        vectors = [hit["vector"] for hit in self._fetch(ids, ["vector"])]
        return np.array(vectors, np.float16).reshape(len(vectors), self.dimension)

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """See `Reader.rows`."""
        hits = self._fetch(ids, ["name" if column == "id" else column for column in columns])
        values = {name: [hit[name] for hit in hits] for name in columns if name != "id"}
        if "id" in columns:
            values["id"] = [bytes.fromhex(hit["name"]).decode() for hit in hits]
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.table({name: values[name] for name in columns}, schema=schema)

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """See `Reader.find`."""
        rows: dict[str, int] = {}
        for start in range(0, len(names), BATCH_ROWS):
            batch = ", ".join(literal(name) for name in names[start : start + BATCH_ROWS])
            for hit in self._query(f"{self._visible} and name in [{batch}]", ["name"]):
                rows[hit["name"]] = hit["row"]
        return np.array([rows.get(hex_encode(name), -1) for name in names], np.int64)

    def search(
        self,
        queries: Any,
        k: int,
        *,
        metric: Metric = "abs_cosine",
        where: Filter | None = None,
        vectors: bool = True,
        exact: bool = False,
        probe_fraction: float | None = None,
    ) -> SearchResults:
        """See `Reader.search`.

        With lists, a `probe_fraction` of None searches an eighth of them, whose recall is not
        measured.

        Raises:
            ValueError: If `Reader.search` raises it, or k is above 16,384.
        """
        units = normalize_queries(queries, self.dimension)
        check_search(k, metric, probe_fraction)
        if k > MAX_ROWS:
            raise ValueError(f"k is {k}, but Milvus returns at most {MAX_ROWS} rows: lower k")
        fraction = 1.0 if exact else 1 / 8 if probe_fraction is None else probe_fraction
        probes = max(1, math.ceil(fraction * self.record.lists))
        passing = self._passing(where)
        candidates = [self._candidates(unit, k, metric, passing, probes) for unit in units]
        pools = ((rows, stored) for rows, stored, _ in candidates)
        results = rerank(units, pools, k, metric, vectors, self.version)
        complete = all(complete for _, _, complete in candidates)
        return replace(results, exact=probes >= self.record.lists and complete)

    def _candidates(
        self, query: Float[Array, " d"], k: int, metric: Metric, passing: str, probes: int
    ) -> tuple[Int[Array, " m"], Float[Array, "m d"], bool]:
        """Rows that may be among the nearest, and whether no such row is missing.

        Milvus breaks ties arbitrarily and computes products in float32. Rows are therefore fetched
        until the last one is farther away than the k-th by more than these errors.
        """
        both_signs = metric == "abs_cosine"
        signed = np.stack([query, -query] if both_signs else [query]).astype(np.float32)
        parameters = {"metric_type": "IP", "params": {"nprobe": max(1, probes)}}
        limit = min(MAX_ROWS, k + 16)
        while True:
            lines = self._client.search(
                self._collection, data=list(signed), filter=passing, limit=limit,
                output_fields=["row", "vector"], search_params=parameters, anns_field="vector",
                consistency_level="Strong",
            )  # fmt: skip
            vectors = {hit["row"]: hit["entity"]["vector"] for hits in lines for hit in hits}
            rows = np.array(list(vectors), np.int64)
            stored = np.array(list(vectors.values()), np.float16).reshape(-1, self.dimension)
            scores = cosines(query, stored)
            sizes = np.abs(scores) if both_signs else scores
            kth = np.sort(sizes)[-k] if len(sizes) >= k else -np.inf
            ends = [hits[-1]["distance"] for hits in lines if len(hits) == limit]
            complete = bool(max(ends, default=-np.inf) < kth - 2 * score_error(self.dimension))
            if complete or not ends or limit == MAX_ROWS:
                return rows, stored, complete or not ends
            limit = min(MAX_ROWS, 4 * limit)

    @property
    def _visible(self) -> str:
        """Expression that visible rows pass."""
        added = f"row < {self.record.next}"
        return added if self._where is None else f"{added} and {expression(self._where)}"

    def _passing(self, where: Filter | None) -> str:
        if where is None:
            return self._visible
        check_fields(where, self.fields)
        return f"{self._visible} and {expression(where)}"

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """Fields that filters can use, each with the kinds of value of visible rows."""
        fields: dict[str, set[str]] = {"id": {"text"}}
        for name, kinds in self.record.fields.items():
            for kind in kinds:
                if self._count(f"{self._visible} and exists {field_path(name, kind)}"):
                    fields.setdefault(name, set()).add(kind)
        return fields

    def _count(self, passing: str) -> int:
        [answer] = self._client.query(
            self._collection, filter=passing, output_fields=["count(*)"],
            consistency_level="Strong",
        )  # fmt: skip
        return int(answer["count(*)"])

    def _query(self, passing: str, columns: list[str]) -> list[dict[str, Any]]:
        """The rows that pass, at most 16,384."""
        hits: list[dict[str, Any]] = self._client.query(
            self._collection, filter=passing, limit=MAX_ROWS, output_fields=["row", *columns],
            consistency_level="Strong",
        )  # fmt: skip
        return hits

    def _fetch(self, ids: Any, columns: list[str]) -> list[dict[str, Any]]:
        """The given rows, in the order of `ids`. Raises IndexError for an unknown row."""
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        hits: dict[int, dict[str, Any]] = {}
        for start in range(0, len(rows), BATCH_ROWS):
            batch = np.unique(rows[start : start + BATCH_ROWS]).tolist()
            for hit in self._query(f"{self._visible} and row in {batch}", columns):
                hits[hit["row"]] = hit
        for row in rows.tolist():
            if row not in hits:
                raise IndexError(f"row {row} is not in the data space")
        return [hits[row] for row in rows.tolist()]


def parse_address(address: str) -> tuple[str, str]:
    """The URI and the collection of an address `milvus:URI#COLLECTION`.

    Raises:
        ValueError: If a part is missing.
    """
    uri, _, collection = address.removeprefix(SCHEME).rpartition("#")
    if not address.startswith(SCHEME) or not uri or not collection:
        raise ValueError(
            f"the address of a data space in Milvus is {address!r}: expected milvus:URI#COLLECTION"
        )
    return re.sub(r"^(\w+):/(?!/)", r"\1://", uri), collection  # pathlib turns // into /


def open_reader(address: str, *, partial: bool = False) -> MilvusReader:
    """Open the collection at `milvus:URI#COLLECTION`; `partial` has no effect.

    Raises:
        SpaceError: If it does not exist, or whet did not write it.
        ValueError: If the address is incomplete.
    """
    return MilvusReader.open(*parse_address(address))


def connect(uri: str) -> Any:
    """Create a client.

    Raises:
        SpaceError: If Milvus does not answer.
    """
    library = require("pymilvus", "milvus")
    try:
        return library.MilvusClient(uri)
    except (library.MilvusException, OSError) as error:
        raise SpaceError(f"no Milvus answers at {uri}: {error}") from error


def read_record(client: Any, collection: str) -> CollectionRecord:
    """Read the record of a collection.

    Raises:
        SpaceError: If it does not exist, or whet did not write it.
    """
    if not client.has_collection(collection):
        raise SpaceError(f"there is no collection {collection!r}: create it with `whet space copy`")
    record = client.describe_collection(collection)["properties"].get(RECORD_PROPERTY)
    if record is None:
        raise SpaceError(f"whet did not write collection {collection!r}: choose another name")
    return CollectionRecord(**json.loads(record))
