"""How sure a measured number is: bootstrap intervals and ratios of bits per byte.

Source: SIFT, arXiv 2410.08020, Section 5 (90 % intervals, 1,000 resamples); docs/protocol.md, "What
    is reported".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

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

    With `groups`, rows are resampled within their group, so that each keeps its size. One row has
    an empty interval.
    """
    rng = np.random.default_rng(seed)
    groups = np.zeros(len(rows)) if groups is None else groups
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    draws = np.concatenate(
        [own[rng.integers(0, len(own), (resamples, len(own)))] for own in members], axis=1
    )
    values = [statistic(rows[draw]) for draw in draws]
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Estimate(float(statistic(rows)), float(low), float(high), len(rows))


def mean_estimate(values: Any, *, seed: int = 0) -> Estimate:
    """The mean of `values` with its 90 % bootstrap interval."""
    return bootstrap(np.asarray(values, dtype=np.float64), lambda x: float(x.mean()), seed=seed)
