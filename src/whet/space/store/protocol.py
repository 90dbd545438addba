"""Protocols of a store of texts and vectors: `Reader` and `Writer`.

Implementations: segments on disk (`store.reader`, `store.writer`), shards on a Ray cluster
(`space.ray`) and Milvus collections (`space.milvus`). All of them guarantee the following, which
`tests/support/store_conformance.py` tests:

* Every row has an id, an int64 that is never reused, not even after the row is deleted.
* A reader is a snapshot: it answers as of one version, whatever is written later.
* Filters apply before the search, so rows that fail a filter do not displace candidates.
* A filtered reader exposes only rows that pass its filter, through every method.
* Writes are atomic, and a write with a key that was used before has no effect.
* If a part of the store does not answer, that is an error, unless partial results were requested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.filters import Filter
from whet.maths.arrays import Array

Metric = Literal["abs_cosine", "cosine"]
COLUMNS = ("id", "text", "meta")
SCHEMA = pa.schema({name: pa.large_string() for name in COLUMNS})
"""A record: the document's own id, its text, and its metadata as a JSON object."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """The nearest rows of one query, by ascending row, so that selectors break ties by row."""

    rows: Int[Array, " k"]
    """Row ids in the store."""
    vectors: Float[Array, "k d"]
    """Vectors of the rows, in float32."""
    scores: Float[Array, " k"]
    """Cosines with the query; negative for opposite vectors."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResults:
    """The nearest rows of several queries, nearest first; `results[i]` has those of query i."""

    ids: Int[Array, "n k"]
    """Row ids; padded with -1 if fewer than k rows pass the filter."""
    scores: Float[Array, "n k"]
    """Cosines with the query; padded with 0."""
    vectors: Float[Array, "n k d"] | None
    """Vectors as stored, padded with 0; None if they were not requested."""
    version: int
    """Version of the store that was searched."""
    exact: bool
    """Whether these are certainly the nearest rows."""
    shards_ok: int = 1
    """Number of shards, or segments, that answered."""
    shards: int = 1
    """Number of shards, or segments, of the store."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, query: int) -> Neighbors:
        """The neighbors of one query, without padding. Needs `vectors`."""
        assert self.vectors is not None, "searched without vectors"
        count = int((self.ids[query] >= 0).sum())
        order = np.argsort(self.ids[query, :count])
        return Neighbors(
            self.ids[query, order],
            self.vectors[query, order].astype(np.float32),
            self.scores[query, order],
        )


@runtime_checkable
class Reader(Protocol):
    """A snapshot of a store."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the embedder that made the vectors."""
        ...

    @property
    def version(self) -> int:
        """Version of the store; it increases with every write."""
        ...

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
        """Find the `k` nearest rows of each query.

        An index, if there is one, proposes candidates, which are scored by their stored vectors.
        Scores within 1e-9 are a tie, which the lowest id wins. The cosine of a zero row is 0.

        Args:
            queries: One row per query, of any length but 0.
            k: Number of rows per query.
            metric: `abs_cosine` also finds vectors opposite to the query, as SIFT can use them.
            where: Filter that rows must pass.
            vectors: Whether to return the vectors of the rows.
            exact: Search every row, without an index.
            probe_fraction: Share of an index to search, above 0, at most 1; None takes the share
                that had a recall of 0.95 when the index was built.

        Raises:
            ValueError: If a query is zero, not finite or of another dimension, a number is out of
                range, or the filter has a field that no row has.
        """
        ...

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """Ids of all rows, or of those that pass a filter, ascending."""
        ...

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """Vectors as stored, in the order of `ids`. Raises IndexError for an unknown id."""
        ...

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Records, in the order of `ids`. Raises IndexError for an unknown id."""
        ...

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """Row ids of documents given by their own ids; -1 for documents that are not stored."""
        ...

    def count(self, where: Filter | None = None) -> int:
        """Number of rows, or of those that pass a filter."""
        ...

    def filter(self, where: Filter) -> "Reader":
        """The same snapshot, restricted to rows that pass `where`.

        Raises:
            ValueError: If the filter has a field that no row has.
        """
        ...

    def close(self) -> None:
        """Release the reader's resources."""
        ...


@runtime_checkable
class Writer(Protocol):
    """The exclusive right to write in a store, until closed."""

    def add(self, rows: pa.Table, vectors: Float[Array, "n d"], *, key: str | None = None) -> int:
        """Add records with their unit (or zero) vectors, all or none.

        Args:
            rows: Records of `SCHEMA`.
            vectors: Their vectors.
            key: Idempotency key: adding again with the same key has no effect.

        Returns:
            The version that contains them.

        Raises:
            ValueError: If a document's id is stored already or is repeated, or a vector has neither
                length 1 nor 0.
        """
        ...

    def delete(self, *, ids: Any = None, where: Filter | None = None) -> int:
        """Delete rows by id or by filter; unknown ids are ignored.

        Returns:
            The version without them.

        Raises:
            ValueError: If both or neither of `ids` and `where` are given, or the filter has a field
                that no row has.
        """
        ...

    def snapshot(self) -> Reader:
        """A reader of the latest version."""
        ...

    def close(self) -> None:
        """Release the right to write."""
        ...
