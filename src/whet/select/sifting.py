"""A selection that can be continued, so that stopping early saves the work.

Source: SIFT, arXiv 2410.08020, Eq. (3) and Algorithm 1; Section 6 for stopping.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.maths.arrays import (
    Array,
    as_count,
    as_indices,
    as_positive,
    as_targets,
    as_weights,
    check_matrix,
    check_noise,
    raise_bad_row,
)
from whet.select.numba_backend.state import NumbaGreedy
from whet.select.numpy_backend import NumpyGreedy
from whet.select.selection import Selection

SMALL = 2**15  # numbers up to which NumPy is used: importing numba takes longer than the selection


@runtime_checkable
class Greedy(Protocol):
    """The picks so far, and more on demand."""

    @property
    def prior(self) -> Float[Array, " k"]: ...
    @property
    def picks(self) -> Int[Array, " n"]: ...
    @property
    def trace(self) -> Float[Array, " steps"]: ...
    def advance(self, steps: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Pick:
    """One choice, and the uncertainty that it leaves."""

    index: int
    gain: float
    sigma: float
    """σ_n: posterior standard deviation after this pick as a share of the prior's."""


class SIFT:
    """Exact SIFT, pick by pick: iterate, or `advance` by many; each pick is made once.

    The picks do not depend on how they were asked for, on the threads, or on anything else computed
    meanwhile. An object belongs to one thread at a time. Arguments as for `whet.sift`.
    """

    def __init__(
        self,
        prompt: Any,
        candidates: Any,
        *,
        lam: float = 0.01,
        weights: Any = None,
        exclude: Any = (),
        repeats: bool = True,
        threads: int | None = None,
    ) -> None:
        rows = check_matrix(candidates, "candidates", finite=False)
        goals = as_targets(prompt, "prompt", rows.shape[1])
        if weights is not None:  # w σ² is the variance of √w times the response
            goals = goals * np.sqrt(as_weights(weights, "weights", len(goals)))[:, None]
        if not goals.any():
            raise ValueError("prompt is the zero vector: no candidate tells anything about it")
        open = np.ones(len(rows), dtype=bool)
        open[as_indices(exclude, "exclude", len(rows))] = False
        if not open.any():
            raise ValueError(f"exclude names all {len(rows)} candidates: none is left to choose")
        self._once, self._open = not repeats, int(open.sum())
        self._greedy = _greedy(rows, goals, open, as_positive(lam, "lam"), self._once, threads)

    def __len__(self) -> int:
        return len(self._greedy.picks)

    def __repr__(self) -> str:
        sigma = np.sqrt(self._greedy.trace[-1] / self._greedy.trace[0])
        return f"SIFT({len(self)} picks of {self._open} candidates, σ {sigma:.3f})"

    def __iter__(self) -> Iterator[Pick]:
        """Further picks, made when asked for; endless with repeats."""
        while not self._once or len(self) < self._open:
            yield self._next()

    def advance(self, n: int) -> Selection:
        """`n` more picks; gives all so far.

        Raises:
            ValueError: If n < 1, or without repeats fewer than `n` candidates are left.
        """
        left = self._open - len(self)
        if self._once and as_count(n, "n") > left:
            raise ValueError(
                f"n is {n}, but without repeats {left} candidates are left: lower n or raise k"
            )
        self._greedy.advance(as_count(n, "n"))
        return self.selection()

    def stop_at(self, alpha: float, n: int) -> Selection:
        """ADAPTIVE SIFT(α): at most `n` picks in all, none computed beyond the first crossing."""
        as_positive(alpha, "alpha")
        while len(self) < as_count(n, "n") and len(self.selection().stop_at(alpha)) == len(self):
            if self._once and len(self) == self._open:
                break
            self._next()
        return self.selection().stop_at(alpha).first(n)

    def selection(self) -> Selection:
        """The picks so far."""
        trace = self._greedy.trace.copy()
        return Selection(self._greedy.picks.copy(), -np.diff(trace), trace)

    def _next(self) -> Pick:
        self._greedy.advance(1)
        before, after = self._greedy.trace[-2:]
        sigma = float(np.sqrt(after / self._greedy.trace[0]))
        return Pick(int(self._greedy.picks[-1]), float(before - after), sigma)


def _greedy(
    rows: Float[Array, "k d"],
    goals: Float[Array, "m d"],
    open: Bool[Array, " k"],
    lam: float,
    once: bool,
    threads: int | None,
) -> Greedy:
    threads = None if threads is None else as_count(threads, "threads")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if rows.size > SMALL and has_compiler():
            greedy: Greedy = NumbaGreedy(rows, goals, open, lam=lam, once=once, threads=threads)
        else:
            greedy = NumpyGreedy(rows, goals, open, lam=lam, once=once)
    bad = np.flatnonzero(~np.isfinite(greedy.prior))
    if len(bad):
        raise_bad_row(rows, int(bad[0]), "candidates")
    check_noise(lam, greedy.prior)
    return greedy


@cache
def has_compiler() -> bool:
    """Whether numba is installed (`pip install "whet[fast]"`); the picks are the same without."""
    return importlib.util.find_spec("numba") is not None
