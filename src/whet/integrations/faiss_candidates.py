"""Candidates from a Faiss index: every id once, every vector the one that was scored.

Faiss fills up with −1 and NaN what it does not find, gives the same id from both signs of a query,
and may hand out a vector other than the one it scored, as when an id was added twice. What leaves
this module has none of that.
"""

import warnings
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array

_INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT; Faiss itself is not imported
_SCORE_TOLERANCE = 1e-3  # of |query| |vector|: float32 sums of thousands of terms stay far below


class FaissIndex(Protocol):
    """What is asked of an index; Faiss's own have it, and so may any object."""

    d: int
    ntotal: int
    metric_type: int

    def search(self, x: Any, k: int) -> Any: ...

    def search_and_reconstruct(self, x: Any, k: int) -> Any: ...


class FaissCandidates:
    """The candidates that an index holds most like a query.

    Args:
        index: An index with `search_and_reconstruct`; with `vectors`, one with `search`.
        both_signs: Rank by the absolute inner product.
        vectors: The exact embeddings by id, in place of what the index gives back.
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
                "the index stores compressed vectors, so selection sees them only roughly: "
                "pass the exact ones as vectors=",
                stacklevel=3,
            )
        self.index: FaissIndex = index
        self._both_signs = both_signs
        self._vectors = vectors

    def nominate(
        self, query: Float[Array, " d"], k: int
    ) -> tuple[Int[Array, " found"], Float[Array, "found d"]]:
        """Ids and embeddings of the `k` best, or of all that the index finds, best first.

        Of equal scores the lowest id comes first. Two searches with both signs, else one.

        Raises:
            ValueError: If the index finds nothing, cannot give its vectors back, or gives back
                others than it scored.
        """
        ways = np.stack([query, -query] if self._both_signs else [query]).astype(np.float32)
        scores, ids, rows = self._look_up(ways, min(k, self.index.ntotal))
        found = ids >= 0
        if self.index.metric_type == _INNER_PRODUCT:
            if self._exact:
                _check_scores(ways, scores, ids, rows, found)
        else:
            scores = -scores  # a distance
        flat = ids[found]
        if len(flat) == 0:
            raise ValueError(f"the index found none of the {k} asked for: probe more of its lists")
        order = np.lexsort((flat, -scores[found]))
        _, first = np.unique(flat[order], return_index=True)  # found from both sides: kept once
        best = order[np.sort(first)][:k]
        return flat[best].astype(np.int64), rows[found][best]

    def _look_up(self, ways: Float[Array, "s d"], k: int) -> tuple[Array, Array, Array]:
        if self._vectors is not None:
            scores, ids = self.index.search(ways, k)
            _check_ids(ids, len(self._vectors))
            known = [np.asarray(self._vectors[row], dtype=np.float32) for row in np.maximum(ids, 0)]
            return scores, ids, np.stack(known)
        try:
            scores, ids, rows = self.index.search_and_reconstruct(ways, k)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            raise ValueError(
                f"{type(self.index).__name__} cannot give its vectors back: use IndexIDMap2, "
                "or pass them as vectors="
            ) from error
        return scores, ids, rows


def _check_ids(ids: Array, known: int) -> None:
    if ids.max() >= known:
        raise ValueError(f"the index found id {ids.max()}, but vectors= has {known} rows")


def _check_scores(ways: Array, scores: Array, ids: Array, rows: Array, found: Array) -> None:
    again = np.einsum("skd,sd->sk", rows, ways, dtype=np.float64)
    size = np.linalg.norm(rows, axis=2) * np.linalg.norm(ways, axis=1)[:, None]
    wrong = found & ~(np.abs(again - scores) <= _SCORE_TOLERANCE * size)
    if wrong.any():
        raise ValueError(
            f"the vector of id {ids[wrong][0]} is not finite or not the one that was scored: "
            "an id is held twice, or vectors= is in another order"
        )


def _stores_compressed(index: Any) -> bool:
    """Whether less than 16 bits a number are kept, as far as the index says."""
    while index is not None:
        size = getattr(index, "code_size", None)
        if hasattr(index, "chain") or (isinstance(size, int) and size < 2 * index.d):
            return True
        index = getattr(index, "index", None)  # what an IndexIDMap is about
    return False
