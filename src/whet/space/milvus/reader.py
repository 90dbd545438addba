"""The store's protocol on Milvus: a file of Milvus Lite, or a server, for those who run one.

A collection holds the rows, a column each for id, text and metadata; what filters look at is a JSON
column, a key for each field and kind of value; ids and such values are spelled in hexadecimal.
Vectors are float32 that hold float16's numbers, as Milvus Lite has no float16. The collection's
properties hold a record: what is below its `next` is in, so an addition is seen whole or not at
all, and a dead writer's rest is deleted by the next one.

What Milvus cannot do is named by `LACKS`. It gives at most 16,384 rows to a question.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.filters import Filter, both, check_fields
from whet.errors import EmbedderMismatchError, SpaceError, require
from whet.maths.arrays import Array
from whet.space.milvus.filters import column, expression, literal, spelled
from whet.space.store.protocol import COLUMNS, SCHEMA, Metric, SearchResults
from whet.space.store.vectors import check_search, cosines, error, normalize_queries, rerank

LACKS = frozenset({"snapshots", "locks"})
"""snapshots: a reader does not see what is added later, but what is deleted is gone for it as well.
locks: two writers at once are not refused."""
MOST = 16_384  # rows of an answer
LONGEST = 65_535  # bytes of a text
PIECE = 1000  # rows sent or fetched at a time
RECORD = "whet"  # the property that holds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a collection says of itself."""

    dimension: int
    fingerprint: str
    lists: int = 0
    """Of its index (IVF_FLAT); 0 looks at every row (FLAT)."""
    version: int = 0
    next: int = 0
    keys: list[str] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)
    """The kinds of value in each field of any row."""


class MilvusReader:
    """A collection as it was when opened, but for what was deleted since."""

    lacks = LACKS

    def __init__(
        self, client: Any, collection: str, record: Record, bound: Filter | None = None,
        connection: Any = None,
    ) -> None:  # fmt: skip
        """Use `open`; the `connection` is what `close` ends."""
        self._connection = connection
        self._client, self._collection = client, collection
        self._record, self._bound = record, bound
        self.dimension, self.version = record.dimension, record.version
        self.fingerprint = record.fingerprint

    @classmethod
    def open(
        cls, uri: str, collection: str = "whet", *, fingerprint: str | None = None
    ) -> "MilvusReader":
        """The collection as it is now.

        Args:
            uri: A file that ends with `.db`, or a server's http://HOST:PORT.
            collection: Its name.
            fingerprint: Of the embedder that will be used.

        Raises:
            SpaceError: If there is none, or it is not whet's.
            EmbedderMismatchError: If another embedder made it.
        """
        client = connected(uri)
        record = read_record(client, collection)
        if fingerprint not in (None, record.fingerprint):
            raise EmbedderMismatchError(
                f"collection {collection} at {uri} was made by an embedder with fingerprint "
                f"{record.fingerprint!r}, not {fingerprint!r}: copy the data space anew"
            )
        return cls(client, collection, record, connection=client)

    def close(self) -> None:
        """End the connection, if it is the reader's own."""
        if self._connection is not None:
            self._connection.close()

    def filter(self, where: Filter) -> "MilvusReader":
        """See `Reader.filter`. Milvus applies the filter to whatever is asked."""
        check_fields(where, self.fields)
        bound = both(self._bound, where)
        return MilvusReader(self._client, self._collection, self._record, bound)

    def count(self, where: Filter | None = None) -> int:
        return self._count(self._passing(where))

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """See `Reader.ids`."""
        passing, found = self._passing(where), []
        for first in range(0, self._record.next, MOST):
            own = f"row >= {first} and row < {first + MOST} and {passing}"
            found += sorted(hit["row"] for hit in self._some(own, []))
        return np.array(found, np.int64)

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """See `Reader.vectors`."""
        found = [hit["vector"] for hit in self._named(ids, ["vector"])]
        return np.array(found, np.float16).reshape(len(found), self.dimension)

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """See `Reader.rows`."""
        hits = self._named(ids, ["name" if column == "id" else column for column in columns])
        own = {name: [hit[name] for hit in hits] for name in columns if name != "id"}
        if "id" in columns:
            own["id"] = [bytes.fromhex(hit["name"]).decode() for hit in hits]
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.table({name: own[name] for name in columns}, schema=schema)

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """See `Reader.find`."""
        known: dict[str, int] = {}
        for start in range(0, len(names), PIECE):
            some = ", ".join(literal(name) for name in names[start : start + PIECE])
            for hit in self._some(f"{self._seen} and name in [{some}]", ["name"]):
                known[hit["name"]] = hit["row"]
        return np.array([known.get(spelled(name), -1) for name in names], np.int64)

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
        """See `Reader.search`. With lists, a `probe_fraction` of None is an eighth of them: what
        recall that has is not measured.

        Raises:
            ValueError: If k is above 16,384, too.
        """
        aims = normalize_queries(queries, self.dimension)
        check_search(k, metric, probe_fraction)
        if k > MOST:
            raise ValueError(f"k is {k}, but Milvus gives at most {MOST} rows: lower k")
        share = 1.0 if exact else 1 / 8 if probe_fraction is None else probe_fraction
        probes = max(1, math.ceil(share * self._record.lists))
        passing = self._passing(where)
        near = [self._near(aim, k, metric, passing, probes) for aim in aims]
        pools = ((rows, stored) for rows, stored, _ in near)
        found = rerank(aims, pools, k, metric, vectors, self.version)
        sure = probes >= self._record.lists and all(all_ties for _, _, all_ties in near)
        return replace(found, exact=sure)

    def _near(
        self, aim: Float[Array, " d"], k: int, metric: Metric, passing: str, probes: int
    ) -> tuple[Int[Array, " m"], Float[Array, "m d"], bool]:
        """Rows that may be among the nearest, and whether none that may be is left out.

        Milvus breaks ties as it likes, and its products are float32: so as many more are fetched as
        it takes for the last to be farther than the k-th by more than that can hide.
        """
        asked = np.stack([aim, -aim] if metric == "abs_cosine" else [aim]).astype(np.float32)
        parameters = {"metric_type": "IP", "params": {"nprobe": max(1, probes)}}
        limit = min(MOST, k + 16)
        while True:
            lines = self._client.search(
                self._collection, data=list(asked), filter=passing, limit=limit,
                output_fields=["row", "vector"], search_params=parameters, anns_field="vector",
                consistency_level="Strong",
            )  # fmt: skip
            known = {hit["row"]: hit["entity"]["vector"] for hits in lines for hit in hits}
            rows = np.array(list(known), np.int64)
            stored = np.array(list(known.values()), np.float16).reshape(-1, self.dimension)
            sizes = cosines(aim, stored)
            sizes = np.abs(sizes) if metric == "abs_cosine" else sizes
            kth = np.sort(sizes)[-k] if len(sizes) >= k else -np.inf
            ends = [hits[-1]["distance"] for hits in lines if len(hits) == limit]
            whole = bool(max(ends, default=-np.inf) < kth - 2 * error(self.dimension))
            if whole or not ends or limit == MOST:
                return rows, stored, whole or not ends
            limit = min(MOST, 4 * limit)

    @property
    def _seen(self) -> str:
        """What a row must pass to be seen, in Milvus's language."""
        added = f"row < {self._record.next}"
        return added if self._bound is None else f"{added} and {expression(self._bound)}"

    def _passing(self, where: Filter | None) -> str:
        if where is None:
            return self._seen
        check_fields(where, self.fields)
        return f"{self._seen} and {expression(where)}"

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """The kinds of value that any row that can be seen has in each field."""
        found: dict[str, set[str]] = {"id": {"text"}}
        for name, kinds in self._record.fields.items():
            for one in kinds:
                if self._count(f"{self._seen} and exists {column(name, one)}"):
                    found.setdefault(name, set()).add(one)
        return found

    def _count(self, passing: str) -> int:
        [answer] = self._client.query(
            self._collection, filter=passing, output_fields=["count(*)"],
            consistency_level="Strong",
        )  # fmt: skip
        return int(answer["count(*)"])

    def _some(self, passing: str, columns: list[str]) -> list[dict[str, Any]]:
        """The rows that pass, at most 16,384."""
        found: list[dict[str, Any]] = self._client.query(
            self._collection, filter=passing, limit=MOST, output_fields=["row", *columns],
            consistency_level="Strong",
        )  # fmt: skip
        return found

    def _named(self, ids: Any, columns: list[str]) -> list[dict[str, Any]]:
        """The rows, in the order of `ids`."""
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        known: dict[int, dict[str, Any]] = {}
        for start in range(0, len(wanted), PIECE):
            some = np.unique(wanted[start : start + PIECE]).tolist()
            for hit in self._some(f"{self._seen} and row in {some}", columns):
                known[hit["row"]] = hit
        for row in wanted.tolist():
            if row not in known:
                raise IndexError(f"row {row} is not in the data space")
        return [known[row] for row in wanted.tolist()]


def connected(uri: str) -> Any:
    """A client. Raises SpaceError if nothing answers."""
    library = require("pymilvus", "milvus")
    try:
        return library.MilvusClient(uri)
    except (library.MilvusException, OSError) as error:
        raise SpaceError(f"no Milvus answers at {uri}: {error}") from error


def read_record(client: Any, collection: str) -> Record:
    """What a collection says of itself.

    Raises:
        SpaceError: If there is none, or it is not whet's.
    """
    if not client.has_collection(collection):
        raise SpaceError(f"there is no collection {collection!r}: copy a data space there first")
    told = client.describe_collection(collection)["properties"].get(RECORD)
    if told is None:
        raise SpaceError(f"collection {collection!r} is not whet's: choose another name")
    return Record(**json.loads(told))
