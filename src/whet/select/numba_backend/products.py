"""Sums along the rows: products, priors, and the passes that make four columns at a time."""

from typing import no_type_check

import numpy as np

from whet.select.numba_backend.jit import cast, compiled, fetch, full_registers, summing

BUILT_ON = "2c9556f9"  # see `machine`

NEXT = 2**14  # bytes that are fetched ahead: halves a pass over float16 rows beyond the cache


@summing
@no_type_check
def dot(rows, j, q):
    total = 0.0
    for c in range(len(q)):
        total += cast(rows[j, c], 0.0) * q[c]
    return total


@summing
@no_type_check
def between(rows, i, j):
    """The product of two rows, in float64."""
    total = 0.0
    for c in range(rows.shape[1]):
        total += cast(rows[i, c], 0.0) * cast(rows[j, c], 0.0)
    return total


@summing
@no_type_check
def begin(state, lo, hi):
    """The prior of rows lo … hi."""
    rows, goals = state.rows, state.goals
    for j in range(lo, hi):
        if state.shared:
            for byte in range(0, rows.shape[1] * rows.itemsize, 64):
                fetch(rows, j, byte + NEXT)
        total, share = 0.0, 0.0
        for c in range(rows.shape[1]):
            x = cast(rows[j, c], 0.0)
            total += x * x
            share += x * goals[0, c]
        state.variance[j], state.covariance[0, j] = total, share
        told = share * share
        for a in range(1, len(goals)):
            share = dot(rows, j, goals[a])
            state.covariance[a, j] = share
            told += share * share
        state.gains[j] = told / (total + state.lam) if state.open[j] else -1.0


@summing
@no_type_check
def four_columns(state, q, lo, hi, column):
    """One reading of rows lo … hi makes four columns, two rows at a time to halve the reads of q.

    Sums are of the type of q. The last of an odd number of rows is its own partner, so that all
    rows go through the same instructions.
    """
    full_registers()
    rows, slots, zero = state.rows, state.slots, q.dtype.type(0)
    one, two, three = state.spares[slots[0]], state.spares[slots[1]], state.spares[slots[2]]
    for j in range(lo, hi, 2):
        k = min(j + 1, hi - 1)
        if state.shared:
            for byte in range(0, 2 * rows.shape[1] * rows.itemsize, 64):
                fetch(rows, j, byte + NEXT)
        s, t, u, v = zero, zero, zero, zero
        e, f, g, h = zero, zero, zero, zero
        for c in range(rows.shape[1]):
            x, y = cast(rows[j, c], zero), cast(rows[k, c], zero)
            s += x * q[0, c]
            t += x * q[1, c]
            u += x * q[2, c]
            v += x * q[3, c]
            e += y * q[0, c]
            f += y * q[1, c]
            g += y * q[2, c]
            h += y * q[3, c]
        column[j - lo], one[j], two[j], three[j] = s, t, u, v
        column[k - lo], one[k], two[k], three[k] = e, f, g, h


@compiled
@no_type_check
def largest(values):
    high = -np.inf
    for value in values:
        high = max(high, value)
    return high
