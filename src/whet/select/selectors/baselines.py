"""The selectors that SIFT's paper compares it with; each reports σ² along its own order.

Source: arXiv 2410.08020, Section 5 (NN, NN-F, US).
"""

from typing import Any

import numpy as np

from whet.select.distinct import WithoutReplacement
from whet.select.selection import TIE, GreedyState, Selection, argmax_first


def nearest(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The `n` candidates of highest signed cosine, nearest first (NN). O(k d + n k).

    Raises:
        ValueError: As `sift`, and if `n` exceeds the number of candidates: each is chosen once.
    """
    once = WithoutReplacement(prompt, candidates, n, lam, name="nearest")
    cosines = once.trial.cosines()
    for _ in range(n):
        once.pick_best(cosines)
    return once.selection()


def nearest_repeated(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The nearest candidate, `n` times (NN-F): σ² stays above 1 − cos² for any `n` (Prop. K.1)."""
    trial = GreedyState(prompt, candidates, n, lam)
    best = argmax_first(trial.cosines())
    for _ in range(trial.n):
        trial.pick(best)
    return trial.selection()


def uncertainty(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The candidate of largest posterior variance after each pick (US); among equals the nearest.

    Looks at the prompt only through the choice of candidates. O(n k (d + n)).
    """
    trial = GreedyState(prompt, candidates, n, lam)
    closeness = np.abs(trial.cosines())
    for _ in range(trial.n):
        variance = trial.posterior.variance
        tied = variance >= variance.max() * (1 - TIE)
        trial.pick_best(np.where(tied, closeness, -1.0))
    return trial.selection()


def random(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01, seed: int = 0) -> Selection:
    """`n` different candidates, uniformly at random.

    Raises:
        ValueError: As `nearest`.
    """
    once = WithoutReplacement(prompt, candidates, n, lam, name="random")
    for index in np.random.default_rng(seed).permutation(len(once.trial.candidates))[:n]:
        once.pick(int(index))
    return once.selection()
