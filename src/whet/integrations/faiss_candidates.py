"""Candidates from a Faiss index: each id once, with the vector that the index scored.

A Faiss index pads missing results with −1 and NaN, returns the same id for both signs of a query,
and may return a vector other than the one it scored, for example when an id was added twice. This
module removes the first two and raises an error for the third.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array

_INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT; Faiss itself is not imported
_PADDING = 1e38  # Faiss pads with scores of the largest float32 or infinity, and NaN vectors
_SCORE_TOLERANCE = 1e-3  # of |query| |vector|: float32 sums of thousands of terms stay far below


class FaissIndex(Protocol):
    """The part of an index that is used; other objects than Faiss's may have it, too."""

    d: int
    ntotal: int
    metric_type: int

    def search(self, x: Any, k: int) -> Any: ...

    def search_and_reconstruct(self, x: Any, k: int) -> Any: ...

    def reconstruct(self, key: int) -> Any: ...


class FaissCandidates:
    """The candidates of an index that are most similar to a query.

    Args:
        index: An index with `search_and_reconstruct`, or with `search` if `vectors` is passed.
        both_signs: Rank by the absolute inner product.
        vectors: The exact embeddings, used instead of those that the index returns: rows by id, a
            dictionary from id to vector, or, if ids of an IndexIDMap are not row numbers, one row
            per vector in the order of adding.
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
        found = (ids != -1) | (np.abs(scores) < _PADDING)  # -1 may be an id of the caller's
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
            found = (ids != -1) | (np.abs(scores) < _PADDING)
            rows = np.full((*ids.shape, queries.shape[1]), np.nan, np.float32)
            rows[found] = self._vectors_of(ids[found])
            return scores, ids, rows
        try:
            scores, ids, rows = self.index.search_and_reconstruct(queries, k)
            negative = (ids < 0) & (np.abs(scores) < _PADDING)  # Faiss takes these for padding
            if negative.any():
                rows[negative] = [self.index.reconstruct(i) for i in ids[negative].tolist()]
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            raise ValueError(
                f"{type(self.index).__name__} cannot return its vectors: use IndexIDMap2, or pass "
                "them as vectors="
            ) from error
        return scores, ids, rows

    def _vectors_of(self, ids: Int[Array, " n"]) -> Float[Array, "n d"]:
        """The rows of `vectors=` that belong to ids of the index."""
        vectors, positions = self._vectors, ids.tolist()
        if not isinstance(vectors, Mapping):
            positions = self._positions(ids)
        try:
            rows = [np.asarray(vectors[i], dtype=np.float32) for i in positions]
        except KeyError as error:
            raise ValueError(f"the index found id {error}, which vectors= does not have") from error
        return np.stack(rows) if rows else np.empty((0, self.index.d), np.float32)

    def _positions(self, ids: Int[Array, " n"]) -> list[int]:
        """The rows of `vectors=`: by id, or in the order of adding if ids are not row numbers."""
        count, id_map = len(self._vectors), getattr(self.index, "id_map", None)
        added = ids
        if id_map is not None:
            import faiss

            added = faiss.vector_to_array(id_map)
        if not len(added) or (0 <= added.min() and added.max() < count):
            positions: list[int] = ids.tolist()
            return positions
        if id_map is None or count != self.index.ntotal:
            raise ValueError(
                f"the index has ids from {added.min()} to {added.max()}, but vectors= has {count} "
                "rows: pass a dictionary from id to vector, or one row per vector of the index, in "
                "the order of adding"
            )
        places = {id_: position for position, id_ in enumerate(added.tolist())}
        return [places[i] for i in ids.tolist()]


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
