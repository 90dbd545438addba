"""Sums along the rows: inner products, prior variances, and passes that compute four columns."""

from typing import no_type_check

import numpy as np

from whet.select.numba_backend.jit import (
    cast,
    compiled,
    compiled_sum,
    prefetch,
    use_widest_registers,
)

BUILT_ON = "7cae0edd"  # see `jit`

AHEAD = 2**14  # bytes to prefetch: halves a pass over float16 rows that are not in the cache


@compiled_sum
@no_type_check
def dot(rows, j, vector):
    """Inner product of row j with a float64 vector."""
    total = 0.0
    for c in range(len(vector)):
        total += cast(rows[j, c], 0.0) * vector[c]
    return total


@compiled_sum
@no_type_check
def initialize(state, lo, hi):
    """Set the prior variance, covariance and gains of rows lo … hi."""
    rows, targets = state.rows, state.targets
    for j in range(lo, hi):
        if state.parallel:
            for byte in range(0, rows.shape[1] * rows.itemsize, 64):
                prefetch(rows, j, byte + AHEAD)
        total, product = 0.0, 0.0
        for c in range(rows.shape[1]):
            x = cast(rows[j, c], 0.0)
            total += x * x
            product += x * targets[0, c]
        state.variance[j], state.covariance[0, j] = total, product
        squares = product * product
        for a in range(1, len(targets)):
            product = dot(rows, j, targets[a])
            state.covariance[a, j] = product
            squares += product * product
        state.gains[j] = squares / (total + state.lam) if state.available[j] else -1.0


@compiled_sum
@no_type_check
def four_columns(state, lo, hi, column):
    """Multiply rows lo … hi with the four vectors of a pass: one into `column`, three into the cache.

    Two rows at a time halve the reads of the vectors. The last of an odd number of rows is its own
    partner, so that all rows go through the same instructions.
    """
    use_widest_registers()
    rows, slots, q = state.rows, state.pass_slots, state.pass_vectors
    one, two, three = state.cache[slots[0]], state.cache[slots[1]], state.cache[slots[2]]
    for j in range(lo, hi, 2):
        k = min(j + 1, hi - 1)
        if state.parallel:
            for byte in range(0, 2 * rows.shape[1] * rows.itemsize, 64):
                prefetch(rows, j, byte + AHEAD)
        s, t, u, v = 0.0, 0.0, 0.0, 0.0
        e, f, g, h = 0.0, 0.0, 0.0, 0.0
        for c in range(rows.shape[1]):
            x, y = cast(rows[j, c], 0.0), cast(rows[k, c], 0.0)
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
    """Largest of `values`; −∞ if there are none."""
    high = -np.inf
    for value in values:
        high = max(high, value)
    return high
