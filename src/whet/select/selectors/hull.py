"""The prompt as an average of candidates: a sparse convex reconstruction, rounded to counts.

Source: HullFT (arXiv 2605.30337), from its description alone: Frank–Wolfe over weights that sum
to one, at most n of them positive; then whole counts by rounding down, filling up greedily and
swapping. What the description leaves open is ours: where Frank–Wolfe starts, exact line search,
filling and swapping within the support, the order of the picks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array, duplicate_groups, normalize_rows
from whet.select.selection import TIE, GreedyState, Selection, argmax_first

STEPS = 250  # of Frank–Wolfe, at most
PASSES = 2  # of swaps, at most


def hull(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """`n` picks, with repetition, whose mean direction is as near as may be to the prompt's.

    The most repeated comes first and copies follow one another, so that a gradient can be reused.
    `lam` only enters the variance reported; candidates of negative cosine are of no use here.
    O(k d s + k) for each of s ≤ n supporting candidates and of 250 steps.
    """
    trial = GreedyState(prompt, candidates, n, lam)
    distinct = np.unique(duplicate_groups(trial.candidates))
    rows = normalize_rows(trial.candidates[distinct])
    goal = normalize_rows(trial.prompt[None])[0]
    mixture = reconstruct(rows, goal, support=trial.n)
    counts = whole_counts(rows[mixture.support], goal, mixture.weights, trial.n)
    for slot in np.argsort(-counts, kind="stable"):
        for _ in range(counts[slot]):
            trial.pick(int(distinct[mixture.support[slot]]))
    return trial.selection()


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights that sum to one, of a few rows in rising order, and how far from best they may be."""

    support: Int[Array, " s"]
    weights: Float[Array, " s"]
    gap: float
    """Half the squared distance is at most this much above the least, if `support` did not bind."""


def reconstruct(rows: Float[Array, "k d"], goal: Float[Array, " d"], *, support: int) -> Mixture:
    """Frank–Wolfe with exact line search for min ½‖goal − Σ w_i row_i‖² from the best single row.

    Once `support` rows carry weight, no other enters. The gap falls as 1/steps.
    """
    toward = rows @ goal
    start = argmax_first(toward - np.einsum("kd,kd->k", rows, rows) / 2)
    kernel = {start: rows @ rows[start]}  # one column for each row that ever carried weight
    weights = np.zeros(len(rows))
    weights[start] = 1.0
    mean = kernel[start].copy()  # products of every row with the current mixture
    gap = np.inf
    for _ in range(STEPS):
        slope = toward - mean
        full = np.count_nonzero(weights) >= support
        best = argmax_first(np.where(weights > 0, slope, -np.inf) if full else slope)
        gap = float(slope[best] - weights @ slope)
        if gap <= TIE:
            break
        if best not in kernel:
            kernel[best] = rows @ rows[best]
        column = kernel[best]
        length = column[best] - 2 * mean[best] + weights @ mean
        step = min(gap / length, 1.0)
        weights *= 1 - step
        weights[best] += step
        mean += step * (column - mean)
    held = np.flatnonzero(weights)
    return Mixture(held, weights[held], max(gap, 0.0))


def whole_counts(
    rows: Float[Array, "s d"], goal: Float[Array, " d"], weights: Float[Array, " s"], n: int
) -> Int[Array, " s"]:
    """Counts that sum to `n`, near n·`weights`, for a small ‖n·goal − Σ counts_i row_i‖².

    Rounded down; then the row that helps most is added until there are `n`; then one row at a time
    is exchanged for the one that helps most, for two passes or until nothing helps. O(s² (d + n)).
    """
    kernel = rows @ rows.T
    square = np.diag(kernel)
    counts = np.floor(weights * n * (1 + TIE)).astype(np.int64)
    slope = n * (rows @ goal) - kernel @ counts
    for _ in range(n - int(counts.sum())):
        best = argmax_first(2 * slope - square)
        counts[best] += 1
        slope -= kernel[best]
    for _ in range(PASSES):
        before = counts.copy()
        for held in np.flatnonzero(counts):
            better = 2 * (slope - slope[held]) - (square + square[held] - 2 * kernel[held])
            best = argmax_first(better)
            if better[best] > TIE:
                counts[held] -= 1
                counts[best] += 1
                slope += kernel[held] - kernel[best]
        if (counts == before).all():
            break
    return counts
