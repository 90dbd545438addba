"""SIFT: pick the candidates that leave the least uncertainty about the response to a query.

Source: arXiv 2410.08020, SIFT(λ') of Section 4 and Algorithm 1; Section 6 for stopping.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.maths.arrays import (
    Array,
    ArrayLike,
    as_count,
    as_indices,
    as_positive,
    as_targets,
    as_weights,
    check_matrix,
    check_noise,
    raise_bad_row,
)
from whet.select.numba_backend.state import NumbaGreedy, num_cores
from whet.select.numpy_backend import NumpyGreedy
from whet.select.selection import Selection

SMALL = 2**15  # numbers up to which NumPy is used: importing numba takes longer than the selection


def sift(
    query: ArrayLike,
    candidates: ArrayLike,
    n: int,
    *,
    lam: float = 0.01,
    weights: ArrayLike | None = None,
    exclude: ArrayLike = (),
    repeats: bool = True,
    threads: int | None = None,
) -> Selection:
    """Greedily pick the `n` candidates that leave the least variance about the response to `query`.

    With unit rows the first pick is the candidate most parallel to the query, of either sign.
    Small `lam` favors diversity; as `lam` grows, the nearest candidate is picked repeatedly.
    O(u k d) for u different picks. Each of them reads the rows at most once, so that a
    memory-mapped float16 file works as well as an array; for k > 2 d candidates at most 40 k
    numbers are kept in memory in addition to the rows.

    Args:
        query: Embedding of the query, [d], or of several targets whose summed variance counts,
            [m, d].
        candidates: Embeddings of the candidates, [k, d].
        n: Number of picks, with repetition; may exceed k.
        lam: λ' = λκ of the paper, the variance of the observation noise; λ is about 1 / step size.
        weights: Weight of each target's variance, [m]; 1 by default.
        exclude: Rows that are never picked.
        repeats: Whether a row may be picked again.
        threads: Threads that share the rows of a large problem (from 4 million numbers) [default:
            all cores]; the result is the same for any number.

    Returns:
        The picks in order, with their gains and the variance after each.

    Raises:
        ValueError: If an array is empty, not finite or of the wrong shape, `n` < 1, `lam` is not
            positive, or there are fewer than `n` rows to pick without repeats.

    >>> sift([1.0, 0.5], [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], n=3)
    Selection([1, 2, 0], σ 0.077)
    """
    selection = SIFT(
        query,
        candidates,
        lam=lam,
        weights=weights,
        exclude=exclude,
        repeats=repeats,
        threads=threads,
    )
    return selection.advance(n)


def sift_batch(
    queries: ArrayLike,
    candidates: ArrayLike,
    n: int,
    *,
    lam: float = 0.01,
    weights: ArrayLike | None = None,
    exclude: Sequence[ArrayLike] | None = None,
    repeats: bool = True,
    threads: int | None = None,
) -> list[Selection]:
    """Run `sift` for many queries, each with its own candidates.

    The result for a query does not depend on the rest of the batch. Costs the sum of the single
    selections, shared among `threads`.

    Args:
        queries: [B, d], or [B, m, d] for several targets each; or B arrays.
        candidates: [B, k, d], or B arrays, whose numbers of rows may differ.
        n: Number of picks per query.
        lam: As for `sift`.
        weights: Weight of each of the m targets, [m], the same for all queries.
        exclude: For each query the rows that are never picked.
        repeats: As for `sift`.
        threads: Queries that are worked on at the same time [default: the number of cores].

    Returns:
        One selection per query, in order.

    Raises:
        ValueError: As for `sift`, with the number of the query; or if the lengths differ.

    >>> sift_batch([[1.0, 0.0], [0.0, 1.0]], [[[1.0, 0.0], [0.0, 1.0]]] * 2, n=1)
    [Selection([0], σ 0.100), Selection([1], σ 0.100)]
    """
    size = len(queries)
    exclude = [()] * size if exclude is None else exclude
    if not size == len(candidates) == len(exclude):
        raise ValueError(
            f"there are {size} queries, {len(candidates)} sets of candidates and {len(exclude)} "
            "sets of rows to exclude: expected the same number of each"
        )

    def select(b: int) -> Selection:
        try:
            return sift(
                queries[b],
                candidates[b],
                n,
                lam=lam,
                weights=weights,
                exclude=exclude[b],
                repeats=repeats,
                threads=1,
            )
        except ValueError as error:
            raise ValueError(f"query {b}: {error}") from error

    threads = as_count(num_cores() if threads is None else threads, "threads")
    return _map(select, size, min(threads, size))


def _map(select: Callable[[int], Selection], size: int, threads: int) -> list[Selection]:
    """`select` of 0 … `size` − 1 on `threads` threads; the first error in order is raised."""
    if threads <= 1:
        return [select(b) for b in range(size)]
    pending, results = iter(range(size)), dict[int, Selection | ValueError]()

    def work() -> None:
        for b in pending:
            try:
                results[b] = select(b)
            except ValueError as error:
                results[b] = error

    with ThreadPoolExecutor(threads - 1) as pool:  # a future per query would cost a tenth
        futures = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for future in futures:
            future.result()
    return [_raise_or_return(results[b]) for b in range(size)]


def _raise_or_return(result: Selection | ValueError) -> Selection:
    if isinstance(result, ValueError):
        raise result
    return result


@dataclass(frozen=True, slots=True)
class Pick:
    """One pick of `SIFT`, with the uncertainty that remains after it."""

    index: int
    """Row of the candidate."""
    gain: float
    """How much the pick lowers the posterior variance."""
    sigma: float
    """σ_n: posterior standard deviation after this pick, as a fraction of the prior's."""


class SIFT:
    """Exact SIFT, one pick at a time: iterate, or `advance` by many; each pick is computed once.

    The picks do not depend on how they were requested, on the number of threads, or on concurrent
    computations. An object must be used by one thread at a time. Arguments, errors and cost are
    those of `whet.sift`.

    >>> selection = SIFT([1.0, 0.5], [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> next(iter(selection)).index
    1
    >>> selection.advance(2)
    Selection([1, 2, 0], σ 0.077)
    """

    def __init__(
        self,
        query: ArrayLike,
        candidates: ArrayLike,
        *,
        lam: float = 0.01,
        weights: ArrayLike | None = None,
        exclude: ArrayLike = (),
        repeats: bool = True,
        threads: int | None = None,
    ) -> None:
        rows = check_matrix(candidates, "candidates", finite=False)
        targets = as_targets(query, "query", rows.shape[1])
        if weights is not None:  # w σ² is the variance of √w times the response
            targets = targets * np.sqrt(as_weights(weights, "weights", len(targets)))[:, None]
        if not targets.any():
            raise ValueError("query is the zero vector: every candidate is equally uninformative")
        available = np.ones(len(rows), dtype=bool)
        available[as_indices(exclude, "exclude", len(rows))] = False
        if not available.any():
            raise ValueError(f"exclude contains all {len(rows)} candidates: none is left to pick")
        self._repeats, self._num_available = repeats, int(available.sum())
        lam = as_positive(lam, "lam")
        self._greedy = _greedy(rows, targets, available, lam, repeats, threads)

    def __len__(self) -> int:
        return len(self._greedy.picks)

    def __repr__(self) -> str:
        sigma = np.sqrt(self._greedy.trace[-1] / self._greedy.trace[0])
        return f"SIFT({len(self)} picks of {self._num_available} candidates, σ {sigma:.3f})"

    def __iter__(self) -> Iterator[Pick]:
        """Yield further picks, each computed when requested; endless if repeats are allowed."""
        while self._repeats or len(self) < self._num_available:
            yield self._next()

    def advance(self, n: int) -> Selection:
        """Make `n` more picks and return all so far.

        Raises:
            ValueError: If n < 1, or fewer than `n` candidates are left without repeats.
        """
        num_left = self._num_available - len(self)
        if not self._repeats and as_count(n, "n") > num_left:
            raise ValueError(
                f"n is {n}, but without repeats {num_left} candidates are left: lower n or raise k"
            )
        self._greedy.advance(as_count(n, "n"))
        return self.selection()

    def stop_at(self, alpha: float, n: int) -> Selection:
        """Run ADAPTIVE SIFT(α) for at most `n` picks in all; see `Selection.stop_at`.

        At most one pick beyond the stopping point is computed.
        """
        as_positive(alpha, "alpha")
        while len(self) < as_count(n, "n") and len(self.selection().stop_at(alpha)) == len(self):
            if not self._repeats and len(self) == self._num_available:
                break
            self._next()
        return self.selection().stop_at(alpha).head(n)

    def selection(self) -> Selection:
        """Return the picks so far."""
        trace = self._greedy.trace.copy()
        return Selection(self._greedy.picks.copy(), -np.diff(trace), trace)

    def _next(self) -> Pick:
        self._greedy.advance(1)
        before, after = self._greedy.trace[-2:]
        sigma = float(np.sqrt(after / self._greedy.trace[0]))
        return Pick(int(self._greedy.picks[-1]), float(before - after), sigma)


@runtime_checkable
class Greedy(Protocol):
    """What a backend offers: the picks so far, and more on demand."""

    @property
    def prior(self) -> Float[Array, " k"]: ...
    @property
    def picks(self) -> Int[Array, " n"]: ...
    @property
    def trace(self) -> Float[Array, " steps"]: ...
    def advance(self, steps: int) -> None: ...


def _greedy(
    rows: Float[Array, "k d"],
    targets: Float[Array, "m d"],
    available: Bool[Array, " k"],
    lam: float,
    repeats: bool,
    threads: int | None,
) -> Greedy:
    threads = None if threads is None else as_count(threads, "threads")
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite raise below
        if rows.size > SMALL and has_numba():
            greedy: Greedy = NumbaGreedy(
                rows, targets, available, lam=lam, repeats=repeats, threads=threads
            )
        else:
            greedy = NumpyGreedy(rows, targets, available, lam=lam, repeats=repeats)
    bad = np.flatnonzero(~np.isfinite(greedy.prior))
    if len(bad):
        raise_bad_row(rows, int(bad[0]), "candidates")
    check_noise(lam, greedy.prior)
    return greedy


@cache
def has_numba() -> bool:
    """Whether numba is installed (`pip install "whet[fast]"`); the picks are the same without it."""
    return importlib.util.find_spec("numba") is not None
