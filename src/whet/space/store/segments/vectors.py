"""Stored vectors, and the exact search for the nearest of them.

float32 products select every row that may be among the k nearest; these are scored again in
float64, and ties go to the lowest id. Results therefore depend neither on the number of threads and
the size of the batch nor on how rows are divided into files.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.errors import SpaceError
from whet.maths.arrays import Array, as_count, check_matrix, normalize_rows
from whet.space.store.protocol import Metric, SearchResults
from whet.space.store.segments.checked_file import CheckedFile, Checksums, advise, map_array

TIE = 1e-9  # relative; as in whet.select
BLOCK_ROWS = 1024  # converted to float32 at a time: blocks that fit the CPU cache are twice as fast
CACHE_BYTES = 512 * 2**20  # smaller stores keep a float32 copy in memory, which is 8 times as fast


class VectorFile:
    """float16 vectors in an `.npy` file, memory-mapped."""

    def __init__(self, path: Path, checksums: Checksums | None = None) -> None:
        """Map `path`; blocks are compared with `checksums` before they are first used."""
        self.cached = False
        """Whether to keep a float32 copy in memory after the first full scan."""
        self.normalized = True
        """Whether all rows have length 1 or 0."""
        self._file = CheckedFile(path, checksums)
        self._sequential = self._array(self._file.buffer)  # the system reads ahead
        self._buffer = self._file.map()
        self._random = self._array(self._buffer)
        advise(self._buffer, "MADV_RANDOM")  # 65 times as fast on a cold disk
        row_bytes = 2 * self.dimension
        self._header_bytes = len(self._buffer) - row_bytes * len(self)

    def _array(self, buffer: Any) -> Any:
        stored = map_array(self._file.path, buffer)
        if stored.dtype != np.float16 or stored.ndim != 2 or not stored.flags.c_contiguous:
            raise SpaceError(
                f"{self._file.path} holds {stored.dtype} of shape {stored.shape}: expected float16 "
                "rows"
            )
        return stored

    def check(self, rows: Int[Array, " n"]) -> None:
        """Compare the blocks of the given rows with their checksums. Raises SpaceError."""
        starts = self._header_bytes + 2 * self.dimension * rows
        blocks = self._file.block_of(starts)
        self._file.check(
            np.concatenate([blocks, self._file.block_of(starts + 2 * self.dimension - 1)])
        )

    def __len__(self) -> int:
        return len(self._random)

    @property
    def dimension(self) -> int:
        """Length of each row."""
        return int(self._random.shape[1])

    def gather(self, rows: Int[Array, " n"]) -> Float[Array, "n d"]:
        """The given rows as stored, in float16."""
        self.check(rows)
        return np.take(self._random, rows, axis=0)

    def release_memory(self) -> None:
        """Drop the pages read so far from memory; the file stays mapped."""
        advise(self._buffer, "MADV_DONTNEED")
        advise(self._file.buffer, "MADV_DONTNEED")

    def blocks(
        self, visible: Bool[Array, " n"] | None = None
    ) -> Iterator[tuple[Int[Array, " m"], Float[Array, "m d"]]]:
        """Yield blocks of row numbers and unit vectors in float32, of the visible rows."""
        for rows, block in self._blocks(visible):
            yield rows, block if self.normalized else normalize_rows(block, dtype=block.dtype)

    def _blocks(
        self, visible: Bool[Array, " n"] | None
    ) -> Iterator[tuple[Int[Array, " m"], Float[Array, "m d"]]]:
        step = 16 * BLOCK_ROWS if self.cached else BLOCK_ROWS
        if visible is not None and 2 * np.count_nonzero(visible) < len(self):
            chosen = np.flatnonzero(visible)
            for start in range(0, len(chosen), step):
                rows = chosen[start : start + step]
                wide = self._cache[rows] if self.cached else self.gather(rows).astype(np.float32)
                yield rows, wide
            return
        stored = self._cache if self.cached else self._sequential
        for start in range(0, len(self), step):
            if not self.cached:
                self.check(np.arange(start, min(start + step, len(self))))
            block = stored[start : start + step].astype(np.float32, copy=False)
            rows = np.arange(start, start + len(block))
            if visible is not None:
                mask = visible[start : start + step]
                rows, block = rows[mask], block[mask]
            yield rows, block

    @cached_property
    def _cache(self) -> Float[Array, "n d"]:
        self._file.check()
        return cast(Array, self._sequential.astype(np.float32))


class TopK:
    """The rows offered so far that may be among the k of largest score, given the score's error."""

    def __init__(self, k: int, dimension: int) -> None:
        self.rows = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)
        self._k, self._margin, self._threshold = k, 2 * score_error(dimension), -np.inf

    def offer(self, rows: Int[Array, " m"], scores: Float[Array, " m"]) -> None:
        """Add candidates; drop all that cannot be among the k largest."""
        new = np.flatnonzero(scores >= self._threshold)
        self.rows = np.concatenate([self.rows, rows[new]])
        self._scores = np.concatenate([self._scores, scores[new]])
        if len(self.rows) > self._k:
            kth = float(np.partition(self._scores, -self._k)[-self._k])
            self._threshold = kth - self._margin
            mask = self._scores >= self._threshold
            self.rows, self._scores = self.rows[mask], self._scores[mask]


def normalize_queries(queries: Any, dimension: int) -> Float[Array, "b d"]:
    """Queries as unit rows in float64.

    Raises:
        ValueError: If a query is zero, not finite or of another dimension.
    """
    rows = check_matrix(queries, "queries").astype(np.float64)
    if rows.shape[1] != dimension:
        raise ValueError(
            f"queries have {rows.shape[1]} dimensions, but the data space has {dimension}"
        )
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        raise ValueError(
            f"query {int(np.argmin(lengths))} is the zero vector, which has no neighbors"
        )
    return cast(Array, rows / lengths[:, None])


def check_search(k: int, metric: Metric, probe_fraction: float | None) -> None:
    """Check the numeric arguments of `Reader.search`.

    Raises:
        ValueError: If one of them is out of range.
    """
    as_count(k, "k")
    if metric not in ("abs_cosine", "cosine"):
        raise ValueError(f"metric is {metric!r}: expected 'abs_cosine' or 'cosine'")
    if probe_fraction is not None and not 0 < probe_fraction <= 1:
        raise ValueError(
            f"probe_fraction is {probe_fraction!r}: expected a share above 0, at most 1"
        )


Candidates = Iterable[tuple[Int[Array, " m"], Float[Array, "m d"]]]
"""For each query the ids and stored vectors of all rows that may be among its nearest."""


def rerank(
    queries: Float[Array, "b d"],
    candidates: Candidates,
    k: int,
    metric: Metric,
    vectors: bool,
    version: int,
) -> SearchResults:
    """Score the candidates in float64 and return the nearest, optionally with their vectors."""
    ids, scores = np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k))
    stored = np.zeros((len(queries), k, queries.shape[1]), np.float16) if vectors else None
    for i, (query, (own_ids, own_vectors)) in enumerate(zip(queries, candidates, strict=True)):
        own_scores = cosines(query, own_vectors)
        best = top_k(own_scores, own_ids, k, metric)
        ids[i, : len(best)], scores[i, : len(best)] = own_ids[best], own_scores[best]
        if stored is not None:
            stored[i, : len(best)] = own_vectors[best]
    return SearchResults(ids, scores, stored, version, exact=True)


def cosines(query: Float[Array, " d"], vectors: Float[Array, "m d"]) -> Float[Array, " m"]:
    """Cosines with a unit query in float64, each computed on its own; 0 for a zero row."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("md,md->m", wide, wide))
    products = np.einsum("md,d->m", wide, query)
    return _divide(products, lengths)


def top_k(
    scores: Float[Array, " m"], ids: Int[Array, " m"], k: int, metric: Metric
) -> Int[Array, " k"]:
    """Indices of the `k` largest scores, largest first; ties go to the lowest ids."""
    sizes = np.abs(scores) if metric == "abs_cosine" else scores
    if k < len(sizes):
        kth = np.partition(sizes, -k)[-k]
        slack = TIE * abs(kth)
        above = np.flatnonzero(sizes > kth + slack)
        tied = np.flatnonzero(np.abs(sizes - kth) <= slack)
        tied = tied[np.argsort(ids[tied])]
        chosen = np.concatenate([above, tied[: k - len(above)]])
    else:
        chosen = np.arange(len(sizes))
    return chosen[np.lexsort((ids[chosen], -sizes[chosen]))]


def score_error(dimension: int) -> float:
    """Bound on the error of a float32 product with a stored row, as an estimate of the cosine.

    Rounding a unit row to float16 changes its length by 2⁻¹¹ and, of tiny numbers, √d 2⁻²⁵; a sum
    of d products in float32 is off by (d + 2) 2⁻²⁴ (Higham, "Accuracy and Stability", Section 3.1).
    """
    return 2.0**-11 + math.sqrt(dimension) * 2.0**-25 + (dimension + 2) * 2.0**-23


def write_npy_header(file: IO[bytes], count: int, dimension: int) -> None:
    """Write the header of an `.npy` file of `count` float16 rows; the rows follow."""
    header = {"descr": "<f2", "fortran_order": False, "shape": (count, dimension)}
    np.lib.format.write_array_header_1_0(file, cast(Any, header))


def to_float16(rows: Float[Array, "n d"], normalized: bool = True) -> Float[Array, "n d"]:
    """Rows as they are stored; if `normalized`, with their length set to 1 before rounding."""
    wide = rows.astype(np.float32, copy=False)
    return np.ascontiguousarray(
        normalize_rows(wide, dtype=wide.dtype) if normalized else wide, dtype="<f2"
    )


def _divide(values: Array, lengths: Array) -> Array:
    """`values / lengths`, and 0 where a length is 0."""
    return cast(Array, np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0))


def non_unit_rows(rows: Float[Array, "n d"], tolerance: float = 1e-3) -> Int[Array, " m"]:
    """Indices of the rows whose length is neither 1 nor 0."""
    lengths = np.linalg.norm(rows, axis=1)
    return np.flatnonzero(~((lengths == 0) | (np.abs(lengths - 1) < tolerance)))
