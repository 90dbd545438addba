"""Reading a data space whose segments are shards on a Ray cluster, too large for one machine.

A search takes two calls, as the paper's client of many index servers does (arXiv 2410.08020): each
shard returns the ids and scores of its own nearest rows; then only the shards of the overall
nearest return the vectors of these. Shards run the code of the store on disk on the same files, so
the results are the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.filters import Filter, both, check_fields
from whet.embed.lsa import LSA
from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.ray.replicas import Replicas, Responses
from whet.space.ray.shard import Partial, ShardSpec, split_segments
from whet.space.store.manifest import Manifest
from whet.space.store.protocol import COLUMNS, Metric, SearchResults
from whet.space.store.reader import DiskReader
from whet.space.store.segments.vectors import top_k

NAMESPACE = "whet"
INLINE_BYTES = 64 * 2**10  # Ray stores results above 100 kB as objects, which is thrice as slow


@dataclass(frozen=True, slots=True, eq=False)
class SpaceDescriptor:
    """What a client needs to read one version of a served data space."""

    path: Path
    """Its folder on the machines of the cluster."""
    manifest: Manifest
    """Its manifest."""
    shards: list[ShardSpec]
    """Its shards."""
    actor_names: list[list[str]]
    """Names of each shard's replicas."""

    @classmethod
    def create(cls, reader: DiskReader, actor_names: list[list[str]]) -> "SpaceDescriptor":
        """Describe an opened version, which must stay open while clients read it."""
        shards = split_segments(reader, len(actor_names))
        return cls(reader.path, reader.manifest, shards, actor_names)


class RayReader:
    """One version of a store whose segments are shards on Ray. Thread-safe.

    Shards whose actor dies are restarted and called again; a shard that does not respond in time is
    an error.
    """

    def __init__(
        self,
        descriptor: SpaceDescriptor,
        shards: Replicas,
        *,
        partial: bool = False,
        where: Filter | None = None,
    ) -> None:
        """Use `cluster.open_reader` or `connect` instead.

        Args:
            descriptor: What the server returned.
            shards: The client of the shards.
            partial: Whether to answer from the shards that respond, instead of raising.
            where: See `filter`.
        """
        self.descriptor, self.partial = descriptor, partial
        self.path, self.manifest = descriptor.path, descriptor.manifest
        self.dimension, self.version = self.manifest.dimension, self.manifest.version
        self.fingerprint = self.manifest.fingerprint
        self._shards, self._where = shards, where

    @classmethod
    def connect(
        cls, descriptor: SpaceDescriptor, ray: Any, *, partial: bool = False, timeout_s: float
    ) -> "RayReader":
        """Look up the actors of a descriptor; `timeout_s` is the time for each call."""
        names = descriptor.actor_names
        actors = [[ray.get_actor(n, namespace=NAMESPACE) for n in replicas] for replicas in names]
        shards = Replicas(ray, descriptor.shards, actors, timeout_s)
        return cls(descriptor, shards, partial=partial)

    def filter(self, where: Filter) -> "RayReader":
        """See `Reader.filter`. Each shard applies the filter before anything leaves it."""
        check_fields(where, self.fields)
        combined = both(self._where, where)
        return RayReader(self.descriptor, self._shards, partial=self.partial, where=combined)

    def load_lsa(self) -> LSA:
        """The `lsa` embedder that is stored in the folder.

        Raises:
            SpaceError: If the first shard does not respond.
        """
        responses = self._call("load_lsa", {0: ()})
        if responses.errors:
            raise SpaceError(f"shard 0 did not return the embedder: {responses.errors[0]}: retry")
        return cast(LSA, responses.results[0])

    def close(self) -> None:
        """Does nothing: the shards belong to their server and go on running."""

    def count(self, where: Filter | None = None) -> int:
        """See `Reader.count`."""
        return sum(self._call_all("count", self._checked(where)))

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """See `Reader.ids`."""
        return np.sort(np.concatenate(self._call_all("ids", self._checked(where))))

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """Fields that filters can use, each with the kinds of its values."""
        fields: dict[str, set[str]] = {}
        for shard_fields in self._call_all("fields"):
            for field, kinds in shard_fields.items():
                fields.setdefault(field, set()).update(kinds)
        return fields

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """See `Reader.find`."""
        rows: Array = np.max(self._call_all("find", list(names)), axis=0)
        return rows

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """See `Reader.vectors`."""
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        vectors = np.empty((len(rows), self.dimension), np.float16)
        for part in self._collect("vectors", rows):
            vectors[part.indices] = part.values
        return vectors

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """See `Reader.rows`."""
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        parts = self._collect("rows", rows, tuple(columns))
        order = np.argsort(np.concatenate([part.indices for part in parts]))
        table = pa.concat_tables([part.values for part in parts])
        return table.take(pa.array(order))

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

        With indexes, each shard proposes as many candidates as a whole store would, so the results
        are at least as near.
        """
        where = self._checked(where)
        responses = self._call(
            "search", self._every_shard(queries, k), metric=metric, where=where, vectors=False,
            exact=exact, probe_fraction=probe_fraction,
        )  # fmt: skip
        while True:
            self._check_responses(responses)
            ids, scores, owners = _merge(responses.results, k, metric)
            if not vectors:
                stored = None
                break
            stored, errors = self._fetch_vectors(ids, owners)
            if not errors:
                break
            responses.errors |= errors
            responses.results = {s: r for s, r in responses.results.items() if s not in errors}
        results = responses.results
        all_exact = not responses.errors and all(result.exact for result in results.values())
        return SearchResults(
            ids, scores, stored, self.version, all_exact, len(results), len(self._shards)
        )

    def _fetch_vectors(
        self, ids: Int[Array, "n k"], owners: Int[Array, "n k"]
    ) -> tuple[Float[Array, "n k d"], dict[int, str]]:
        """The vectors of search results, and the errors of shards that did not return theirs."""
        by_shard = {int(s): np.unique(ids[owners == s]) for s in np.unique(owners[owners >= 0])}
        largest = max((len(rows) for rows in by_shard.values()), default=0)
        blocks = math.ceil(largest * 2 * self.dimension / INLINE_BYTES) + 1
        args = {shard: (rows, blocks) for shard, rows in by_shard.items()}
        responses = self._call("vector_blocks", args, parts=blocks)
        stored = np.zeros((*ids.shape, self.dimension), np.float16)
        for shard, vectors in responses.results.items():
            mask = owners == shard
            stored[mask] = np.concatenate(vectors)[np.searchsorted(by_shard[shard], ids[mask])]
        return stored, responses.errors

    def _checked(self, where: Filter | None) -> Filter | None:
        if where is not None:
            check_fields(where, self.fields)
        return where

    def _collect(self, method: str, rows: Int[Array, " n"], *args: Any) -> list[Partial]:
        """The shards' parts of a request for rows. Raises IndexError if a row is unknown."""
        parts: list[Partial] = self._call_all(method, rows, *args)
        indices = np.concatenate([part.indices for part in parts])
        missing = np.setdiff1d(np.arange(len(rows)), indices)
        if len(missing):
            raise IndexError(f"row {rows[missing[0]]} is not in the data space")
        return parts

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        """Results of every shard, or with `partial` of those that respond."""
        responses = self._call(method, self._every_shard(*args))
        self._check_responses(responses)
        return [responses.results[shard] for shard in sorted(responses.results)]

    def _every_shard(self, *args: Any) -> dict[int, tuple[Any, ...]]:
        return dict.fromkeys(range(len(self._shards)), args)

    def _call(self, method: str, args: Mapping[int, tuple[Any, ...]], **kwargs: Any) -> Responses:
        return self._shards.call(method, args, self._where, **kwargs)

    def _check_responses(self, responses: Responses) -> None:
        if responses.errors and not (self.partial and responses.results):
            shard, reason = min(responses.errors.items())
            raise SpaceError(
                f"{len(responses.errors)} of {len(self._shards)} shards did not respond, such as "
                f"shard {shard}: {reason}. Retry, or open it with partial to read the others"
            )


def _merge(
    results: Mapping[int, SearchResults], k: int, metric: Metric
) -> tuple[Int[Array, "n k"], Float[Array, "n k"], Int[Array, "n k"]]:
    """The nearest rows over all shards: ids, scores, and the shards of each (-1 in padding)."""
    order = sorted(results)
    ids = np.concatenate([results[shard].ids for shard in order], axis=1)
    scores = np.concatenate([results[shard].scores for shard in order], axis=1)
    shards = np.repeat(order, [results[shard].ids.shape[1] for shard in order])
    best_ids = np.full((len(ids), k), -1, np.int64)
    owners, best_scores = best_ids.copy(), np.zeros((len(ids), k))
    for i in range(len(ids)):
        valid = np.flatnonzero(ids[i] >= 0)
        best = valid[top_k(scores[i, valid], ids[i, valid], k, metric)]
        best_ids[i, : len(best)], best_scores[i, : len(best)] = ids[i, best], scores[i, best]
        owners[i, : len(best)] = shards[best]
    return best_ids, best_scores, owners
