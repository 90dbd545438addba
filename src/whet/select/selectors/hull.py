"""HullFT: approximate the query by a convex combination of candidates, rounded to whole counts.

Source: HullFT (arXiv 2605.30337), reimplemented from its description: Frank–Wolfe over weights that
sum to one, at most n of them positive; then whole counts by rounding down, filling up greedily and
swapping. The description leaves open, and we chose: where Frank–Wolfe starts, exact line search,
filling and swapping within the support, and the order of the picks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array, ArrayLike, duplicate_groups, normalize_rows
from whet.select.selection import TIE, GreedyState, Selection, argmax_first

STEPS = 250  # of Frank–Wolfe, at most
PASSES = 2  # of swaps, at most


def hull(query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01) -> Selection:
    """Make `n` picks, with repetition, whose mean direction is as near as possible to the query's.

    The most repeated candidate comes first and copies are adjacent, so that a gradient can be
    reused. `lam` is used only for the reported variance; candidates of negative cosine are never
    useful here. O(k d s + k) for each of s ≤ n supporting candidates and of 250 steps. Raises as
    `sift`.
    """
    state = GreedyState(query, candidates, n, lam)
    distinct = np.unique(duplicate_groups(state.candidates))
    rows = normalize_rows(state.candidates[distinct])
    target = normalize_rows(state.query[None])[0]
    mixture = reconstruct(rows, target, support=state.n)
    counts = round_to_counts(rows[mixture.support], target, mixture.weights, state.n)
    for position in np.argsort(-counts, kind="stable"):
        for _ in range(counts[position]):
            state.pick(int(distinct[mixture.support[position]]))
    return state.selection()


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights that sum to one, of a few rows in ascending order, with an optimality gap."""

    support: Int[Array, " s"]
    weights: Float[Array, " s"]
    gap: float
    """Half the squared distance is at most this much above its minimum, if `support` did not bind."""


def reconstruct(rows: Float[Array, "k d"], target: Float[Array, " d"], *, support: int) -> Mixture:
    """Minimize ½‖target − Σ w_i row_i‖² by Frank–Wolfe with exact line search.

    Starts at the best single row; once `support` rows have a positive weight, no other is added.
    The gap falls as 1/steps.
    """
    alignment = rows @ target
    start = argmax_first(alignment - np.einsum("kd,kd->k", rows, rows) / 2)
    kernel = {start: rows @ rows[start]}  # one column for each row that ever had a weight
    weights = np.zeros(len(rows))
    weights[start] = 1.0
    mean = kernel[start].copy()  # products of every row with the current mixture
    gap = np.inf
    for _ in range(STEPS):
        slope = alignment - mean
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
    positive = np.flatnonzero(weights)
    return Mixture(positive, weights[positive], max(gap, 0.0))


def round_to_counts(
    rows: Float[Array, "s d"], target: Float[Array, " d"], weights: Float[Array, " s"], n: int
) -> Int[Array, " s"]:
    """Return counts that sum to `n`, near n·`weights`, with a small ‖n·target − Σ counts_i row_i‖².

    The weights are rounded down; the row that improves most is added until there are `n`; then one
    row at a time is swapped for the one that improves most, for two passes or until no swap
    improves. O(s² (d + n)).
    """
    kernel = rows @ rows.T
    square = np.diag(kernel)
    counts = np.floor(weights * n * (1 + TIE)).astype(np.int64)
    slope = n * (rows @ target) - kernel @ counts
    for _ in range(n - int(counts.sum())):
        best = argmax_first(2 * slope - square)
        counts[best] += 1
        slope -= kernel[best]
    for _ in range(PASSES):
        before = counts.copy()
        for i in np.flatnonzero(counts):
            improvement = 2 * (slope - slope[i]) - (square + square[i] - 2 * kernel[i])
            best = argmax_first(improvement)
            if improvement[best] > TIE:
                counts[i] -= 1
                counts[best] += 1
                slope += kernel[i] - kernel[best]
        if (counts == before).all():
            break
    return counts
