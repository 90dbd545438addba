"""Bootstrap intervals of measured numbers.

Source: SIFT, arXiv 2410.08020, Section 5 (90 % intervals, 1,000 resamples); docs/protocol.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array, ArrayLike

Statistic = Callable[[Array], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval and the number of rows that it was computed from."""

    value: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        """Whether the interval has a width; a single row, or groups of one row, give none."""
        return self.low < self.high

    @property
    def half(self) -> float:
        """Half the width of the interval: the ± of a table."""
        return (self.high - self.low) / 2


def bootstrap(
    rows: Float[Array, "n ..."],
    statistic: Statistic,
    *,
    groups: Array | None = None,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return `statistic` of `rows` with its percentile interval over resamples of the rows.

    With `groups`, rows are resampled within their group, so that each group keeps its size. One
    row, or groups of one row, give an interval of width zero.
    """
    rows = np.asarray(rows)

    def statistics(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        return np.array([statistic(rows[draw]) for draw in draws], np.float64)

    return resampled(
        len(rows), statistics, groups=groups, level=level, resamples=resamples, seed=seed
    )


def resampled(
    n: int,
    statistic: Callable[[Int[Array, "r n"]], Float[Array, " r"]],
    *,
    groups: Array | None = None,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Like `bootstrap`, with a vectorized statistic that takes one resample of row numbers per line.

    Needs memory for O(resamples · n) numbers; the only Python loop is the statistic's own.
    """
    rng = np.random.default_rng(seed)
    groups = np.zeros(n) if groups is None else groups
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    draws = np.concatenate(
        [rows[rng.integers(0, len(rows), (resamples, len(rows)))] for rows in members], axis=1
    )
    tail = (1 - level) / 2
    low, high = np.quantile(statistic(draws), [tail, 1 - tail])
    [value] = statistic(np.arange(n)[None])
    return Estimate(float(value), float(low), float(high), n)


def mean_estimate(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the mean of `values` with its 90 % bootstrap interval.

    >>> mean_estimate([1.0, 2.0, 3.0]).value
    2.0
    """
    array = np.asarray(values, dtype=np.float64)
    return resampled(len(array), lambda draws: array[draws].mean(axis=1), seed=seed)
