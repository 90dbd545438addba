"""The slow truth of SIFT's rivals: each in a few obvious float64 lines, O(everything)."""

import itertools

import numpy as np
from support.reference import TIE, argmax_first, cosines, variance


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def covariance(a, b, observed, lam):
    """Eq. (2) for two points, through the variance of their sum and difference."""
    return (variance(a + b, observed, lam) - variance(a - b, observed, lam)) / 4


def once(k, n, value):
    """Greedy without repeats: `value(chosen, j)` of each candidate j that is left."""
    chosen = []
    for _ in range(n):
        chosen.append(
            argmax_first([-np.inf if j in chosen else value(chosen, j) for j in range(k)])
        )
    return chosen


def again(k, n, value):
    """Greedy with repeats."""
    chosen = []
    for _ in range(n):
        chosen.append(argmax_first([value(chosen, j) for j in range(k)]))
    return chosen


def mmr(prompt, candidates, n, balance):
    rows, near = unit(candidates), cosines(prompt, candidates)

    def value(chosen, j):
        if not chosen:
            return near[j]
        return balance * near[j] - (1 - balance) * max(rows[j] @ rows[i] for i in chosen)

    return once(len(rows), n, value)


def farthest_first(prompt, candidates, n):
    rows, near = unit(candidates), cosines(prompt, candidates)

    def value(chosen, j):
        if not chosen:
            return near[j]
        return min(np.sum((rows[j] - rows[i]) ** 2) for i in chosen)

    return once(len(rows), n, value)


def served(candidates, chosen):
    """Facility location's objective."""
    rows = unit(candidates)
    return sum(max(0.0, *(rows[j] @ rows[i] for i in chosen)) for j in range(len(rows)))


def facility_location(candidates, n):
    return once(len(candidates), n, lambda chosen, j: served(candidates, [*chosen, j]))


def ctl(prompt, candidates, n, lam):
    def value(chosen, j):
        observed = candidates[chosen]
        spread = variance(candidates[j], observed, lam) * variance(prompt, observed, lam)
        return covariance(candidates[j], prompt, observed, lam) / np.sqrt(spread)

    return again(len(candidates), n, value)


def total_variance(candidates, chosen, lam):
    """The objective of undirected VTL: what is left over all candidates."""
    return sum(variance(x, candidates[chosen], lam) for x in candidates)


def undirected_vtl(candidates, n, lam):
    def value(chosen, j):  # the gain, as a tie is relative to it
        before = total_variance(candidates, chosen, lam)
        return before - total_variance(candidates, [*chosen, j], lam)

    return again(len(candidates), n, value)


def information_density(prompt, candidates, n, lam, beta):
    near = np.maximum(cosines(prompt, candidates), 0)

    def value(chosen, j):
        return variance(candidates[j], candidates[chosen], lam) * near[j] ** beta

    return again(len(candidates), n, value)


def information(prompt, row, observed, lam):
    """I(f(x*); y_x | observed) in nats, from the determinants of a joint Gaussian."""
    a = variance(prompt, observed, lam)
    b = variance(row, observed, lam) + lam
    c = covariance(prompt, row, observed, lam)
    return np.log(a * b / (a * b - c * c)) / 2


def mixture(prompt, rows, support, steps=250):
    """Frank–Wolfe on the vectors themselves: towards the best vertex, as far as it helps."""
    start = argmax_first([-np.sum((prompt - x) ** 2) for x in rows])
    weights = np.eye(len(rows))[start]
    for _ in range(steps):
        mean = weights @ rows
        slope = rows @ (prompt - mean)
        if np.count_nonzero(weights) >= support:
            slope[weights == 0] = -np.inf
        best = argmax_first(slope)
        gap = (rows[best] - mean) @ (prompt - mean)
        if gap <= TIE:
            break
        step = min(1, gap / np.sum((rows[best] - mean) ** 2))
        weights = (1 - step) * weights + step * np.eye(len(rows))[best]
    return weights, gap


def nearest_mixture(prompt, rows):
    """The least ½ squared distance to a mixture, by trying every face of the hull."""
    best = np.inf
    for size in range(1, len(rows) + 1):
        for face in itertools.combinations(rows, size):
            base, edges = face[0], np.array(face) - face[0]  # the first edge is zero and has no say
            inner = np.linalg.pinv(edges.T) @ (prompt - base)
            if min(1 - sum(inner[1:]), *inner[1:], 1) >= 0:
                best = min(best, np.sum((prompt - base - inner @ edges) ** 2) / 2)
    return best


def whole_counts(prompt, rows, weights, n, passes=2):
    """Round down, fill, exchange: every trial measured by its distance."""

    def score(counts):
        return -np.sum((n * prompt - np.array(counts) @ rows) ** 2)

    one = np.eye(len(rows), dtype=int)
    counts = np.floor(weights * n + 1e-9).astype(int)
    while counts.sum() < n:
        now = score(counts)
        counts = counts + one[np.argmax([score(counts + e) - now for e in one])]
    for held in [i for _ in range(passes) for i in range(len(rows))]:
        if counts[held]:
            moved = [counts - one[held] + e for e in one]
            best = np.argmax([score(m) for m in moved])
            counts = moved[best] if score(moved[best]) > score(counts) + TIE else counts
    return counts


def apart(prompt, candidates, counts):
    """HullFT's objective: squared distance from the prompt to the mean of the counted rows."""
    mean = np.array(counts) @ unit(candidates) / sum(counts)
    return np.sum((unit(prompt) - mean) ** 2)


def all_counts(k, n):
    """Every way of sharing `n` picks among `k` candidates."""
    for bars in itertools.combinations(range(n + k - 1), k - 1):
        ends = (-1, *bars, n + k - 1)
        yield [b - a - 1 for a, b in itertools.pairwise(ends)]
