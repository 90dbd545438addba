"""Rivals that spread their picks: each candidate once, by the directions of the embeddings alone.

Sources: MMR, Carbonell & Goldstein (SIGIR 1998), Section 2. Farthest first, Gonzalez (1985), the
core-set rule of Sener & Savarese (arXiv 1708.00489). k-means++ seeding, Arthur & Vassilvitskii
(SODA 2007), BADGE's rule (arXiv 1906.03671). Facility location, greedily, Nemhauser, Wolsey &
Fisher (1978).
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array, normalize_rows
from whet.select.distinct import WithoutReplacement
from whet.select.selection import Selection

SAME = 1e-12  # squared distances of unit vectors below this are rounding


def mmr(
    prompt: Any, candidates: Any, n: int, *, lam: float = 0.01, balance: float = 0.5
) -> Selection:
    """Maximal marginal relevance: close to the prompt, far from every earlier pick. O(n k d).

    Picks the largest `balance`·cos(x, prompt) − (1 − `balance`)·max cos(x, earlier pick), so 1 is
    `nearest` and 0 looks at the prompt for its first pick only.

    Raises:
        ValueError: As `nearest`, and if `balance` is not in [0, 1].
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance is {balance!r}: expected a number from 0 to 1")
    once = WithoutReplacement(prompt, candidates, n, lam, name="mmr")
    rows, relevance = normalize_rows(once.trial.candidates), once.trial.cosines()
    last = once.pick_best(relevance)
    redundancy = np.full(len(rows), -1.0)
    for _ in range(n - 1):
        redundancy = np.maximum(redundancy, rows @ rows[last])
        last = once.pick_best(balance * relevance - (1 - balance) * redundancy)
    return once.selection()


def farthest_first(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The nearest candidate, then always the one farthest from all earlier picks. O(n k d).

    No point is then farther from its pick than twice the least radius possible with `n` picks.

    Raises:
        ValueError: As `nearest`.
    """
    once = WithoutReplacement(prompt, candidates, n, lam, name="farthest-first")
    rows = normalize_rows(once.trial.candidates)
    distance = np.full(len(rows), np.inf)
    last = once.pick_best(once.trial.cosines())
    for _ in range(n - 1):
        distance = np.minimum(distance, _squared_distances(rows, last))
        last = once.pick_best(distance)
    return once.selection()


def kmeanspp(
    prompt: Any, candidates: Any, n: int, *, lam: float = 0.01, seed: int = 0
) -> Selection:
    """The nearest candidate, then each drawn by its squared distance to the earlier picks.

    O(n k d). Where every candidate equals an earlier pick, the first that is left is taken.

    Raises:
        ValueError: As `nearest`.
    """
    once = WithoutReplacement(prompt, candidates, n, lam, name="kmeanspp")
    rows = normalize_rows(once.trial.candidates)
    distance = np.full(len(rows), np.inf)
    rng = np.random.default_rng(seed)
    last = once.pick_best(once.trial.cosines())
    for _ in range(n - 1):
        distance = np.minimum(distance, _squared_distances(rows, last))
        if distance.any():
            drawn = rng.choice(len(rows), p=distance / distance.sum())
            last = once.pick(int(once.first[drawn]))
        else:
            last = once.pick_best(distance)
    return once.selection()


def facility_location(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """Picks that stand for all candidates: greedy Σ_j max(0, max over picks of cos(j, pick)).

    The objective is submodular, so greedy reaches 1 − 1/e of the best. Looks at the prompt only
    through the choice of candidates. O(k² (d + n)), memory O(k²).

    Raises:
        ValueError: As `nearest`.
    """
    once = WithoutReplacement(prompt, candidates, n, lam, name="facility")
    rows = normalize_rows(once.trial.candidates)
    similar = rows @ rows.T
    served = np.zeros(len(rows))
    for _ in range(n):
        pick = once.pick_best(np.maximum(similar, served).sum(axis=1))
        served = np.maximum(served, similar[pick])
    return once.selection()


def _squared_distances(rows: Float[Array, "k d"], pick: int) -> Float[Array, " k"]:
    apart = rows - rows[pick]
    squared = np.einsum("kd,kd->k", apart, apart)
    return np.where(squared < SAME, 0.0, squared)
