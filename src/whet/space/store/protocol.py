"""What every store of texts and vectors can do, whether a folder, a cluster or another's server.

A store is a `Reader` and, where it can be written, a `Writer`. Rules that all obey, and that
`tests/support/store_conformance.py` holds them to:

* A row has an id, an int64 that is never given again, not even after the row is deleted.
* A reader is pinned: it answers as of one version, whatever is written meanwhile.
* A filter is applied before the search, so what fails it takes no candidate's place.
* A restricted reader sees what passes its filter and nothing else, by whatever way it is asked.
* Writes are atomic, and those of a known key are done once.
* A part of the store that does not answer is an error, unless asked for otherwise.
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
"""A row: the document's own id, its text, and the rest of it as a JSON object."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """The candidates of one prompt, in ascending order: of equals, a selector takes the lowest."""

    rows: Int[Array, " k"]
    """Their ids in the store."""
    vectors: Float[Array, "k d"]
    scores: Float[Array, " k"]
    """Signed cosines to the prompt."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResults:
    """The candidates of several prompts, a line each, the nearest first."""

    ids: Int[Array, "n k"]
    """-1 where there are fewer than asked for: always last."""
    scores: Float[Array, "n k"]
    """Signed cosines, 0 in the padding."""
    vectors: Float[Array, "n k d"] | None
    """As stored, 0 in the padding; None if not asked for."""
    version: int
    exact: bool
    """Whether these are the nearest for certain."""
    shards_ok: int = 1
    shards: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, line: int) -> Neighbors:
        """The candidates of one query, without the padding."""
        assert self.vectors is not None, "searched without vectors"
        count = int((self.ids[line] >= 0).sum())
        order = np.argsort(self.ids[line, :count])
        return Neighbors(
            self.ids[line, order],
            self.vectors[line, order].astype(np.float32),
            self.scores[line, order],
        )


@runtime_checkable
class Reader(Protocol):
    """A version of a store."""

    @property
    def dimension(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Of the embedder that made the vectors."""
        ...

    @property
    def version(self) -> int: ...

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
        """For each query the `k` rows of largest |cosine|, or of largest cosine (`positive`).

        Candidates are nominated by whatever index there is; their scores are of the stored vectors.
        Scores within 1e-9 are a tie, and the lowest id wins. The cosine of a zero row is 0.

        Args:
            queries: A row a prompt, of any length but 0.
            k: If more than pass the filter, the lines are padded.
            metric: `abs_cosine` counts rows opposite to the query too, as SIFT does.
            where: What a row must pass besides.
            vectors: Whether to give the vectors as well.
            exact: Look at every row.
            probe_fraction: Share of an index to search, above 0, at most 1; None takes the share
                that had a recall of 0.95 when the index was built.

        Raises:
            ValueError: If a query is zero, not finite or of another dimension, a number is out of
                range, or the filter has a field that no row has.
        """
        ...

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """Every row's id, ascending."""
        ...

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """As stored, in the order of `ids`. Raises IndexError for an id that is not there."""
        ...

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """In the order of `ids`. Raises IndexError for an id that is not there."""
        ...

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """The row of each document by its own id; -1 where there is none."""
        ...

    def count(self, where: Filter | None = None) -> int: ...

    def filter(self, where: Filter) -> "Reader":
        """The same version, of which only what passes `where` can be seen, whatever is asked."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Writer(Protocol):
    """The sole right to write in a store, until closed."""

    def add(self, rows: pa.Table, vectors: Float[Array, "n d"], *, key: str | None = None) -> int:
        """Add rows of `SCHEMA` with their unit (or zero) vectors; gives the version that has them.

        All or none; twice with one `key` is once.

        Raises:
            ValueError: If a document's id is there already or comes twice, or a vector is not of
                length 1 or 0.
        """
        ...

    def delete(self, *, ids: Any = None, where: Filter | None = None) -> int:
        """Delete rows by id or by filter; gives the version without them. An id not there is none.

        Raises:
            ValueError: Unless one of the two is given, or if the filter's field is in no row.
        """
        ...

    def snapshot(self) -> Reader:
        """The latest version."""
        ...

    def close(self) -> None: ...
