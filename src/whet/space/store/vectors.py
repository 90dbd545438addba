"""Stored vectors, and the exact search for those nearest to a prompt.

float32 products nominate every row that could be among the k nearest; the nominees are measured
again in float64, and ties go to the lowest id. So what is found depends neither on the threads nor
on the batch of a product, nor on how rows are spread over files.
"""

import math
import mmap
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.errors import SpaceError
from whet.io import load
from whet.maths.arrays import Array, as_count, check_matrix
from whet.space.store.protocol import Metric, SearchResults

TIE = 1e-9  # relative; as in whet.select
BLOCK = 1024  # rows turned to float32 at a time: a block that stays in the cache is twice as fast
IN_MEMORY = 512 * 2**20  # bytes; a smaller space keeps a float32 copy: 8 times as fast


class Vectors:
    """float16 unit (or zero) rows, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.in_memory = False
        """Whether to keep a float32 copy once all are looked at."""
        self.normalized = True
        """Whether the rows are of length 1 or 0."""
        self._scattered = self._mapped()
        self._scattered._mmap.madvise(mmap.MADV_RANDOM)  # 65 × as fast on a cold disk

    def _mapped(self) -> Any:
        try:
            stored = load(self._path, mapped=True)
        except (OSError, ValueError, EOFError) as error:
            raise SpaceError(f"{self._path} cannot be read: {error}") from error
        if stored.dtype != np.float16 or stored.ndim != 2:
            raise SpaceError(
                f"{self._path} holds {stored.dtype} of shape {stored.shape}, expected float16 rows"
            )
        return stored

    def __len__(self) -> int:
        return len(self._scattered)

    @property
    def dimension(self) -> int:
        return int(self._scattered.shape[1])

    def gather(self, rows: Int[Array, " n"]) -> Float[Array, "n d"]:
        """As stored, in float16."""
        return np.take(self._scattered, rows, axis=0)

    def forget(self) -> None:
        """Let go of the memory that rows read so far take; the file stays mapped."""
        self._scattered._mmap.madvise(mmap.MADV_DONTNEED)
        if "_in_order" in self.__dict__:
            self._in_order._mmap.madvise(mmap.MADV_DONTNEED)

    def blocks(
        self, allowed: Bool[Array, " n"] | None = None
    ) -> Iterator[tuple[Int[Array, " m"], Float[Array, "m d"]]]:
        """Directions of the allowed rows in float32, some at a time; with their numbers."""
        for rows, block in self._blocks(allowed):
            yield rows, block if self.normalized else _unit(block)

    def _blocks(
        self, allowed: Bool[Array, " n"] | None
    ) -> Iterator[tuple[Int[Array, " m"], Float[Array, "m d"]]]:
        step = 16 * BLOCK if self.in_memory else BLOCK
        if allowed is not None and 2 * np.count_nonzero(allowed) < len(self):
            chosen = np.flatnonzero(allowed)
            for start in range(0, len(chosen), step):
                rows = chosen[start : start + step]
                yield rows, self._wide[rows] if self.in_memory else self._float32(rows)
            return
        stored = self._wide if self.in_memory else self._in_order
        for start in range(0, len(self), step):
            block = stored[start : start + step].astype(np.float32, copy=False)
            rows = np.arange(start, start + len(block))
            if allowed is not None:
                kept = allowed[start : start + step]
                rows, block = rows[kept], block[kept]
            yield rows, block

    def _float32(self, rows: Int[Array, " n"]) -> Float[Array, "n d"]:
        return self.gather(rows).astype(np.float32)

    @cached_property
    def _wide(self) -> Float[Array, "n d"]:
        return cast(Array, self._in_order.astype(np.float32))

    @cached_property
    def _in_order(self) -> Any:
        """Another map of the file, which is read ahead."""
        return self._mapped()


class TopK:
    """The rows seen so far that may be among the k of largest score, given each score's error."""

    def __init__(self, k: int, dimension: int) -> None:
        self.rows = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)
        self._k, self._margin, self._floor = k, 2 * error(dimension), -np.inf

    def offer(self, rows: Int[Array, " m"], scores: Float[Array, " m"]) -> None:
        new = np.flatnonzero(scores >= self._floor)
        self.rows = np.concatenate([self.rows, rows[new]])
        self._scores = np.concatenate([self._scores, scores[new]])
        if len(self.rows) > self._k:
            self._floor = float(np.partition(self._scores, -self._k)[-self._k]) - self._margin
            over = self._scores >= self._floor
            self.rows, self._scores = self.rows[over], self._scores[over]


def normalize_queries(queries: Any, dimension: int) -> Float[Array, "b d"]:
    """Queries as float64 rows of length one.

    Raises:
        ValueError: If a query is zero, not finite or of another dimension.
    """
    aims = check_matrix(queries, "queries").astype(np.float64)
    if aims.shape[1] != dimension:
        raise ValueError(
            f"queries have {aims.shape[1]} dimensions, but the data space has {dimension}"
        )
    lengths = np.linalg.norm(aims, axis=1)
    if not lengths.all():
        raise ValueError(f"query {int(np.argmin(lengths))} is the zero vector: near to nothing")
    return cast(Array, aims / lengths[:, None])


def check_search(k: int, metric: Metric, probe_fraction: float | None) -> None:
    """What `Reader.search` is asked for, but for its queries and filter.

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


Nominees = Iterable[tuple[Int[Array, " m"], Float[Array, "m d"]]]
"""For each query the ids and stored vectors of rows, all that may be among its nearest."""


def rerank(
    aims: Float[Array, "b d"],
    nominees: Nominees,
    k: int,
    metric: Metric,
    wanted: bool,
    version: int,
) -> SearchResults:
    """The nearest of the nominees, measured in float64, with their vectors if `wanted`."""
    ids, scores = np.full((len(aims), k), -1, np.int64), np.zeros((len(aims), k))
    vectors = np.zeros((len(aims), k, aims.shape[1]), np.float16) if wanted else None
    for line, (aim, (own, stored)) in enumerate(zip(aims, nominees, strict=True)):
        measured = cosines(aim, stored)
        kept = top_k(measured, own, k, metric)
        ids[line, : len(kept)], scores[line, : len(kept)] = own[kept], measured[kept]
        if vectors is not None:
            vectors[line, : len(kept)] = stored[kept]
    return SearchResults(ids, scores, vectors, version, exact=True)


def cosines(aim: Float[Array, " d"], stored: Float[Array, "m d"]) -> Float[Array, " m"]:
    """In float64, each row by itself; 0 for a zero row."""
    wide = stored.astype(np.float64)
    lengths = np.sqrt(np.einsum("md,md->m", wide, wide))
    products = np.einsum("md,d->m", wide, aim)
    return _divided(products, lengths)


def top_k(
    scores: Float[Array, " m"], ids: Int[Array, " m"], k: int, metric: Metric
) -> Int[Array, " k"]:
    """Places of the `k` largest, the nearest first; of those tied with the k-th the lowest ids."""
    sizes = np.abs(scores) if metric == "abs_cosine" else scores
    if k < len(sizes):
        kth = np.partition(sizes, -k)[-k]
        slack = TIE * abs(kth)
        over = np.flatnonzero(sizes > kth + slack)
        tied = np.flatnonzero(np.abs(sizes - kth) <= slack)
        tied = tied[np.argsort(ids[tied])]
        kept = np.concatenate([over, tied[: k - len(over)]])
    else:
        kept = np.arange(len(sizes))
    return kept[np.lexsort((ids[kept], -sizes[kept]))]


def error(d: int) -> float:
    """By how much a float32 product with a stored row may miss the cosine.

    Rounding a unit row to float16 changes its length by 2⁻¹¹ and, of tiny numbers, √d 2⁻²⁵; a sum
    of d products in float32 is off by (d + 2) 2⁻²⁴ (Higham, "Accuracy and Stability", Section 3.1).
    """
    return 2.0**-11 + math.sqrt(d) * 2.0**-25 + (d + 2) * 2.0**-23


def write_npy_header(file: IO[bytes], count: int, dimension: int) -> None:
    """The head of an `.npy` file of `count` float16 rows, which then follow."""
    head = {"descr": "<f2", "fortran_order": False, "shape": (count, dimension)}
    np.lib.format.write_array_header_1_0(file, cast(Any, head))


def to_float16(rows: Float[Array, "n d"], normalized: bool = True) -> Float[Array, "n d"]:
    """float16; of unit rows, the length is corrected to 1 before the rounding."""
    wide = rows.astype(np.float32, copy=False)
    return np.ascontiguousarray(_unit(wide) if normalized else wide, dtype="<f2")


def _unit(wide: Float[Array, "n d"]) -> Float[Array, "n d"]:
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return _divided(wide, lengths)


def _divided(values: Array, lengths: Array) -> Array:
    """0 where a length is 0."""
    return cast(Array, np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0))


def non_unit_rows(rows: Float[Array, "n d"], slack: float = 1e-3) -> Int[Array, " m"]:
    """Which rows are neither of length 1 nor 0."""
    lengths = np.linalg.norm(rows, axis=1)
    return np.flatnonzero(~((lengths == 0) | (np.abs(lengths - 1) < slack)))
