"""How sure a measured number is: bootstrap intervals and ratios of bits per byte.

Source: SIFT, arXiv 2410.08020, Section 5 (90 % intervals, 1,000 resamples); docs/protocol.md, "What
    is reported".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array

Statistic = Callable[[Array], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        """False where it is empty, and tells nothing: of one row, or of groups of one."""
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
    """`statistic` of `rows` with its percentile interval over resamples of the rows.

    With `groups`, rows are resampled within their group, so that each keeps its size. One row, or
    groups of one, have an empty interval.
    """
    rows = np.asarray(rows)

    def each(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        return np.array([statistic(rows[draw]) for draw in draws], np.float64)

    return resampled(len(rows), each, groups=groups, level=level, resamples=resamples, seed=seed)


def resampled(
    n: int,
    statistic: Callable[[Int[Array, "r n"]], Float[Array, " r"]],
    *,
    groups: Array | None = None,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`bootstrap` of a statistic that takes all resamples of `n` rows at once, a line of rows each.

    O(resamples · n) numbers in memory; no loop in Python but the statistic's own.
    """
    rng = np.random.default_rng(seed)
    groups = np.zeros(n) if groups is None else groups
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    draws = np.concatenate(
        [own[rng.integers(0, len(own), (resamples, len(own)))] for own in members], axis=1
    )
    tail = (1 - level) / 2
    low, high = np.quantile(statistic(draws), [tail, 1 - tail])
    [value] = statistic(np.arange(n)[None])
    return Estimate(float(value), float(low), float(high), n)


def mean_estimate(values: Any, *, seed: int = 0) -> Estimate:
    """The mean of `values` with its 90 % bootstrap interval."""
    known = np.asarray(values, dtype=np.float64)
    return resampled(len(known), lambda draws: known[draws].mean(axis=1), seed=seed)
