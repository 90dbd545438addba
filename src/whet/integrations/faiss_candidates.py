"""Candidates from a Faiss index: each id once, with the vector that the index scored.

A Faiss index pads missing results with −1 and NaN, returns the same id for both signs of a query,
and may return a vector other than the one it scored, for example when an id was added twice. This
module removes the first two and raises an error for the third.
"""

import warnings
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array

_INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT; Faiss itself is not imported
_SCORE_TOLERANCE = 1e-3  # of |query| |vector|: float32 sums of thousands of terms stay far below


class FaissIndex(Protocol):
    """The part of an index that is used; other objects than Faiss's may have it, too."""

    d: int
    ntotal: int
    metric_type: int

    def search(self, x: Any, k: int) -> Any: ...

    def search_and_reconstruct(self, x: Any, k: int) -> Any: ...


class FaissCandidates:
    """The candidates of an index that are most similar to a query.

    Args:
        index: An index with `search_and_reconstruct`, or with `search` if `vectors` is passed.
        both_signs: Rank by the absolute inner product.
        vectors: The exact embeddings by id, used instead of those that the index returns.
    """

    def __init__(self, index: Any, *, both_signs: bool, vectors: Any = None) -> None:
        if both_signs and index.metric_type != _INNER_PRODUCT:
            raise ValueError(
                f"also_query_opposite needs an index of inner products, but its metric_type is "
                f"{index.metric_type}: pass also_query_opposite=False"
            )
        self._exact = not _stores_compressed(index)
        if not self._exact and vectors is None:
            warnings.warn(
                "the index stores compressed vectors, so the selection is approximate: "
                "pass the exact ones as vectors=",
                stacklevel=3,
            )
        self.index: FaissIndex = index
        self._both_signs = both_signs
        self._vectors = vectors

    def search(
        self, query: Float[Array, " d"], k: int
    ) -> tuple[Int[Array, " found"], Float[Array, "found d"]]:
        """Ids and embeddings of the `k` best, or of all that the index finds, best first.

        Among equal scores the lowest id comes first. One search of the index, for both signs two.

        Raises:
            ValueError: If the index finds nothing, cannot return its vectors, or returns others
                than it scored.
        """
        queries = np.stack([query, -query] if self._both_signs else [query]).astype(np.float32)
        scores, ids, rows = self._look_up(queries, min(k, self.index.ntotal))
        found = ids >= 0
        if self.index.metric_type == _INNER_PRODUCT:
            if self._exact:
                _check_scores(queries, scores, ids, rows, found)
        else:
            scores = -scores  # a distance
        flat = ids[found]
        if len(flat) == 0:
            raise ValueError(f"the index found none of {k} candidates: probe more of its lists")
        order = np.lexsort((flat, -scores[found]))
        _, first = np.unique(flat[order], return_index=True)  # found for both signs: once
        best = order[np.sort(first)][:k]
        return flat[best].astype(np.int64), rows[found][best]

    def _look_up(self, queries: Float[Array, "s d"], k: int) -> tuple[Array, Array, Array]:
        if self._vectors is not None:
            scores, ids = self.index.search(queries, k)
            _check_ids(ids, len(self._vectors))
            rows = [np.asarray(self._vectors[row], dtype=np.float32) for row in np.maximum(ids, 0)]
            return scores, ids, np.stack(rows)
        try:
            scores, ids, rows = self.index.search_and_reconstruct(queries, k)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            raise ValueError(
                f"{type(self.index).__name__} cannot return its vectors: use IndexIDMap2, or pass "
                "them as vectors="
            ) from error
        return scores, ids, rows


def _check_ids(ids: Array, count: int) -> None:
    if ids.max() >= count:
        raise ValueError(f"the index found id {ids.max()}, but vectors= has {count} rows")


def _check_scores(queries: Array, scores: Array, ids: Array, rows: Array, found: Array) -> None:
    products = np.einsum("skd,sd->sk", rows, queries, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=2) * np.linalg.norm(queries, axis=1)[:, None]
    wrong = found & ~(np.abs(products - scores) <= _SCORE_TOLERANCE * lengths)
    if wrong.any():
        raise ValueError(
            f"the vector of id {ids[wrong][0]} is not finite or not the one that was scored: "
            "an id was added twice, or vectors= is in another order"
        )


def _stores_compressed(index: Any) -> bool:
    """Whether the index stores fewer than 16 bits per number, as far as it reports that."""
    while index is not None:
        size = getattr(index, "code_size", None)
        if hasattr(index, "chain") or (isinstance(size, int) and size < 2 * index.d):
            return True
        index = getattr(index, "index", None)  # the index that an IndexIDMap wraps
    return False
