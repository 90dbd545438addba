"""A screen of float32: rough columns for all rows, exact numbers for those that may be picked.

Reading rows in float32 takes half the time of float64, but a step must not depend on its rounding.
It need not: the factor L of the picks, the targets' and the picks' own numbers are kept in float64,
and a column whose products are off by at most e moves a row's share f = L⁻¹k of the factor by L⁻¹e
and its covariance with a target by w·e, w = L⁻ᵀ(L⁻¹k*). This bounds every gain. Rows whose gain may
be the largest contend: they get exact numbers, and only those are compared. Theorem and proof:
docs/method.md, "The screen".
"""

from typing import no_type_check

import numpy as np

from whet.select.numba_backend.jit import compiled, summing
from whet.select.numba_backend.products import begin, between, largest
from whet.select.selection import TIE

CROWD = 16  # one row in so many may contend


@compiled
@no_type_check
def sharpen(state, t):
    """Make exact whatever the choice of step t depends on; False if that is too much.

    Gains that stay rough are, as they stand and in truth, too low for a tie with the largest.
    """
    contenders = np.empty(len(state.gains) // CROWD, np.int64)
    count = _contenders(state, t, contenders)
    if count > len(contenders) or t == len(state.gains):
        return False
    for place in range(count):
        _sharpen_row(state, contenders[place], t)
    return True


@compiled
@no_type_check
def bounds(state):
    """How far a row's covariances with the targets, taken together, and its variance may be off."""
    off = state.screen.rough * np.sqrt(state.screen.slack[0])
    of_variance = off * (2.0 * np.sqrt(state.screen.longest) + off)
    return state.screen.rough * np.sqrt(state.screen.slack[1]), of_variance


@compiled
@no_type_check
def _contenders(state, t, out):
    """Into `out` the rows whose gain may be the largest of step t, ties included; how many."""
    gains, lam, over = state.gains, state.lam, np.empty(len(state.gains))
    of_covariance, of_variance = bounds(state)
    high, best = largest(gains), 0
    while gains[best] < high:
        best += 1
    noisy = state.variance[best] + lam
    told = max(np.sqrt(max(high, 0.0) * noisy) - of_covariance, 0.0)
    surest = told * told / (noisy + of_variance) * (1.0 - 2.0 * TIE)
    for j in range(len(gains)):
        noisy = state.variance[j] + lam
        told = np.sqrt(max(gains[j], 0.0) * noisy) + of_covariance
        over[j] = told * told - surest * max(noisy - of_variance, lam)
    count = 0
    for j in range(len(gains)):
        if over[j] >= 0 and gains[j] >= 0:
            if count < len(out):
                out[count] = j
            count += 1
    return count


@summing
@no_type_check
def _sharpen_row(state, j, t):
    """The float64 numbers of row j at step t, by one product with each pick that it lacks."""
    begin(state, j, j + 1)
    shares, known = np.empty(t), state.screen.known[j]
    for r in range(t):
        if r < known:
            shares[r] = state.factor[r, j]
        else:
            first = state.first[r]
            if first > 0:
                share = shares[first - 1] * state.lam / state.scales[first - 1]
            else:
                share = between(state.rows, j, state.picks[r])
            for s in range(first, r):
                share -= state.screen.lower[r, s] * shares[s]
            shares[r] = share / state.scales[r]
            state.factor[r, j] = shares[r]
        state.variance[j] = max(state.variance[j] - shares[r] ** 2, 0.0)
        for a in range(len(state.goals)):
            state.covariance[a, j] -= state.told[r, a] * shares[r]
    state.screen.known[j] = t
    told = 0.0
    for a in range(len(state.goals)):
        told += state.covariance[a, j] ** 2
    state.gains[j] = told / (state.variance[j] + state.lam)


@compiled
@no_type_check
def widen(state, i, t):
    """Account for the pick i of step t: a row more of L, of L⁻¹ and of w. O(t²)."""
    inverse, slack, scale = state.screen.inverse, state.screen.slack, state.scales[t]
    fresh = inverse[t, : t + 1]
    fresh[:] = 0.0
    fresh[t] = 1.0 / scale
    for r in range(t):
        state.screen.lower[t, r] = state.factor[r, i]
        weight = state.screen.lower[t, r] / scale
        for s in range(r + 1):
            fresh[s] -= weight * inverse[r, s]
    total = 0.0
    for s in range(t + 1):
        total += abs(fresh[s])
    slack[0] += total * total
    slack[1] = 0.0
    for a in range(len(state.goals)):
        state.screen.ridge[t, a], total = 0.0, 0.0
        for s in range(t + 1):
            state.screen.ridge[s, a] += state.told[t, a] * fresh[s]
            total += abs(state.screen.ridge[s, a])
        slack[1] += total * total
