"""Slow references for the selectors that SIFT is compared with, in a few obvious lines each."""

import itertools

import numpy as np
from support.reference import TIE, argmax_first, cosines


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def without_replacement(k, n, value):
    """Greedy without repeats, by `value(chosen, j)` of each candidate j that is left."""
    chosen = []
    for _ in range(n):
        chosen.append(
            argmax_first([-np.inf if j in chosen else value(chosen, j) for j in range(k)])
        )
    return chosen


def mmr(query, candidates, n, balance):
    rows, near = unit(candidates), cosines(query, candidates)

    def value(chosen, j):
        if not chosen:
            return near[j]
        return balance * near[j] - (1 - balance) * max(rows[j] @ rows[i] for i in chosen)

    return without_replacement(len(rows), n, value)


def mixture(query, rows, support, steps=250):
    """Frank–Wolfe on the vectors themselves: toward the best vertex, as far as it improves."""
    start = argmax_first([-np.sum((query - x) ** 2) for x in rows])
    weights = np.eye(len(rows))[start]
    for _ in range(steps):
        mean = weights @ rows
        slope = rows @ (query - mean)
        if np.count_nonzero(weights) >= support:
            slope[weights == 0] = -np.inf
        best = argmax_first(slope)
        gap = (rows[best] - mean) @ (query - mean)
        if gap <= TIE:
            break
        step = min(1, gap / np.sum((rows[best] - mean) ** 2))
        weights = (1 - step) * weights + step * np.eye(len(rows))[best]
    return weights, gap


def nearest_mixture(query, rows):
    """The least ½ squared distance to a mixture, from trying every face of the hull."""
    best = np.inf
    for size in range(1, len(rows) + 1):
        for face in itertools.combinations(rows, size):
            base, edges = face[0], np.array(face) - face[0]  # the first edge is zero
            inner = np.linalg.pinv(edges.T) @ (query - base)
            if min(1 - sum(inner[1:]), *inner[1:], 1) >= 0:
                best = min(best, np.sum((query - base - inner @ edges) ** 2) / 2)
    return best


def round_to_counts(query, rows, weights, n, passes=2):
    """Round down, fill, swap: every change is judged by its distance."""

    def score(counts):
        return -np.sum((n * query - np.array(counts) @ rows) ** 2)

    one = np.eye(len(rows), dtype=int)
    counts = np.floor(weights * n + 1e-9).astype(int)
    while counts.sum() < n:
        now = score(counts)
        counts = counts + one[np.argmax([score(counts + e) - now for e in one])]
    for i in [i for _ in range(passes) for i in range(len(rows))]:
        if counts[i]:
            moved = [counts - one[i] + e for e in one]
            best = np.argmax([score(m) for m in moved])
            counts = moved[best] if score(moved[best]) > score(counts) + TIE else counts
    return counts


def squared_distance(query, candidates, counts):
    """HullFT's objective: squared distance from the query to the mean of the counted rows."""
    mean = np.array(counts) @ unit(candidates) / sum(counts)
    return np.sum((unit(query) - mean) ** 2)


def all_counts(k, n):
    """Every way of distributing `n` picks among `k` candidates."""
    for bars in itertools.combinations(range(n + k - 1), k - 1):
        ends = (-1, *bars, n + k - 1)
        yield [b - a - 1 for a, b in itertools.pairwise(ends)]
