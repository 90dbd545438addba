"""The exact greedy step as machine code.

Picking i conditions everything on the column k_n(·, x_i). Three ideas make that column cheap:

* **Four columns per pass.** Reading the rows costs more than multiplying them, so a pass also
  computes the columns of the three candidates that look most like the next picks: 50 picks need 14
  to 28 passes.
* **No column twice.** A column computed at step s is updated with the rows of the Cholesky factor
  since s; the column of an earlier pick is such a row times a number.
* **Deflated products.** For large k the product is taken with Λ_n x_i, where Λ_n = I − Σ_r z_r z_rᵀ
  is the posterior covariance of the weights: a new column then needs no earlier row of the factor,
  so only the last few rows are kept and no cost grows with n k.

Every number of row j is computed from row j alone, by sums in an order fixed when compiled:
identical rows have identical bits, and neither threads nor other queries of a batch change
anything. Arguments called `state` are `whet.select.numba_backend.state.State`; t is the number of
picks so far.
"""

from typing import no_type_check

import numpy as np

from whet.select.numba_backend.jit import cast, compiled
from whet.select.numba_backend.products import dot, four_columns, largest
from whet.select.selection import TIE

BUILT_ON = "8289cc44"  # see `jit`
BLOCK = 256  # rows whose columns stay in the first cache while they are updated
LOOKAHEAD = 8  # candidates considered for a pass's other columns

PASS, CACHED, REPEATED = 0, 1, 2  # source of a column: a pass, an earlier pass, an earlier pick


@compiled
@no_type_check
def _direction(state, i, t, out):
    """Write Λ_t x_i into `out`, or x_i itself where products are not deflated."""
    for c in range(len(out)):
        out[c] = cast(state.rows[i, c], 0.0)
    if state.deflated:
        for r in range(t):
            product = dot(state.rows, i, state.z[r])
            for c in range(len(out)):
                out[c] -= product * state.z[r, c]


@compiled
@no_type_check
def _cached_slot(state, j, t):
    """Find the slot with a column of j that can still be updated; −1 if no slot has one."""
    for s in range(len(state.cached_rows)):
        if state.cached_rows[s] == j and t - state.cached_at[s] <= len(state.factor):
            return s
    return -1


@compiled
@no_type_check
def _last_pick(state, j, t):
    """Find the last step that picked j, if its row of the factor is still kept; −1 otherwise."""
    for r in range(t - 1, max(0, t - len(state.factor)) - 1, -1):
        if state.picks[r] == j:
            return r
    return -1


@compiled
@no_type_check
def _free_slot(state, t, taken):
    """Find a slot outside `taken`: an empty one, or that of the least promising candidate."""
    slot, least = 0, np.inf
    for s in range(len(state.cached_rows)):
        free = True
        for other in taken:
            free = free and other != s
        j = state.cached_rows[s]
        worth = -1.0 if j < 0 or _cached_slot(state, j, t) < 0 else state.gains[j]
        if free and worth < least:
            slot, least = s, worth
    return slot


@compiled
@no_type_check
def _most_promising(state, i, t, best):
    """Write the candidates of largest gain that have no column into `best`; return their number."""
    gains, count, threshold = state.gains, 0, -1.0
    for j in range(len(gains)):
        if gains[j] <= threshold or j == i or gains[j] < 0:
            continue
        if _cached_slot(state, j, t) >= 0 or _last_pick(state, j, t) >= 0:
            continue
        place = min(count, len(best) - 1)
        while place > 0 and gains[best[place - 1]] < gains[j]:
            best[place] = best[place - 1]
            place -= 1
        best[place] = j
        count = min(count + 1, len(best))
        if count == len(best):
            threshold = gains[best[count - 1]]
    return count


@compiled
@no_type_check
def _gain_after(state, j, i, t, first):
    """Compute the gain of j once i is observed, whose direction is the first vector of the pass."""
    product = dot(state.rows, j, state.pass_vectors[0])
    noisy = state.variance[i] + state.lam
    for r in range(first, t):
        row = state.factor[r % len(state.factor)]
        product -= row[i] * row[j]
    squares = 0.0
    for a in range(len(state.targets)):
        squares += (state.covariance[a, j] - product * state.covariance[a, i] / noisy) ** 2
    return squares / (max(state.variance[j] - product * product / noisy, 0.0) + state.lam)


@compiled
@no_type_check
def _plan_pass(state, i, t, first):
    """Assign the pass's other columns to the candidates that will be most promising."""
    best, worth = np.empty(LOOKAHEAD, np.int64), np.full(LOOKAHEAD, -1.0)
    count = _most_promising(state, i, t, best)
    for place in range(count):
        worth[place] = _gain_after(state, best[place], i, t, first)
    for b in range(len(state.pass_slots)):
        place = worth.argmax()
        j = best[place] if worth[place] >= 0 else -1
        worth[place] = -1.0
        slot = _free_slot(state, t, state.pass_slots[:b])
        state.pass_slots[b], state.cached_rows[slot], state.cached_at[slot] = slot, j, first
        _direction(state, max(j, 0), t, state.pass_vectors[b + 1])


@compiled
@no_type_check
def _update_column(state, first, t, lo, hi, column):
    """Update a column of step `first` to step t, with four rows of the factor at a time."""
    factor, weights, capacity = state.factor, state.weights, len(state.factor)
    r = first
    while r + 4 <= t:
        a, b = factor[r % capacity, lo:hi], factor[(r + 1) % capacity, lo:hi]
        c, e = factor[(r + 2) % capacity, lo:hi], factor[(r + 3) % capacity, lo:hi]
        s = r - first
        weight_a, weight_b = weights[s], weights[s + 1]
        weight_c, weight_e = weights[s + 2], weights[s + 3]
        for j in range(hi - lo):
            column[j] -= weight_a * a[j] + weight_b * b[j] + weight_c * c[j] + weight_e * e[j]
        r += 4
    while r < t:
        a, weight = factor[r % capacity, lo:hi], weights[r - first]
        for j in range(hi - lo):
            column[j] -= weight * a[j]
        r += 1


@compiled
@no_type_check
def _condition(state, t, lo, hi, column):
    """Condition rows lo … hi on the pick of step t, given its column."""
    variance, gains = state.variance[lo:hi], state.gains[lo:hi]
    row, scale = state.factor[t % len(state.factor), lo:hi], state.scales[t]
    for j in range(hi - lo):
        entry = column[j] / scale
        row[j] = entry
        variance[j] = max(variance[j] - entry * entry, 0.0)
        gains[j] = 0.0
    for a in range(len(state.targets)):
        coefficient, covariance = state.coefficients[t, a], state.covariance[a, lo:hi]
        for j in range(hi - lo):
            covariance[j] -= coefficient * row[j]
            gains[j] += covariance[j] * covariance[j]
    for j in range(hi - lo):
        gains[j] /= variance[j] + state.lam
    for j in range(hi - lo):
        if not state.available[lo + j]:
            gains[j] = -1.0


@compiled
@no_type_check
def observe(state, lo, hi, t):
    """Condition rows lo … hi on the pick of step t, as planned by `choose`."""
    source, slot, first = state.plan[0], state.plan[1], state.plan[2]
    block = np.empty(BLOCK)
    for low in range(lo, hi, BLOCK):
        high = min(low + BLOCK, hi)
        column = block[: high - low]
        if source == PASS:
            four_columns(state, low, high, column)
        elif source == CACHED:
            column[:] = state.cache[slot, low:high]
        else:
            column[:] = state.factor[slot, low:high] * state.multiple[0]
        _update_column(state, first, t, low, high, column)
        _condition(state, t, low, high, column)


@compiled
@no_type_check
def _best(gains):
    """Find the first row whose gain ties with the largest; −1 if no row is available."""
    high = largest(gains)
    if high < 0:
        return -1
    i = 0
    while gains[i] < high - TIE * high:
        i += 1
    return i


@compiled
@no_type_check
def _plan_column(state, i, t):
    """Decide how the column of i is computed; return the part of its own entry known so far."""
    capacity = len(state.factor)
    slot, first = _cached_slot(state, i, t), t if state.deflated else 0
    last = _last_pick(state, i, t)
    if last >= 0:  # its own observation shrank the column by λ' / (k_n(i, i) + λ')
        source, slot, first = REPEATED, last % capacity, last + 1
        state.multiple[0] = state.lam / state.scales[last]
        entry = state.multiple[0] * state.factor[slot, i]
    elif slot >= 0:
        source, first = CACHED, state.cached_at[slot]
        state.cached_rows[slot] = -1
        entry = state.cache[slot, i]
    else:
        source = PASS
    if source == PASS or state.deflated:
        _direction(state, i, t, state.pass_vectors[0])
    if source == PASS:
        _plan_pass(state, i, t, first)
        entry = dot(state.rows, i, state.pass_vectors[0])
    state.plan[0], state.plan[1], state.plan[2] = source, slot, first
    return entry


@compiled
@no_type_check
def choose(state, t):
    """Pick the best candidate and plan how its column is computed; False if none is available."""
    i = _best(state.gains)
    if i < 0:
        return False
    entry = _plan_column(state, i, t)
    first, capacity = state.plan[2], len(state.factor)
    for r in range(first, t):
        state.weights[r - first] = state.factor[r % capacity, i]
        entry -= state.factor[r % capacity, i] ** 2
    scale = np.sqrt(max(entry, 0.0) + state.lam)  # not the variance: it must fit its own column
    if state.deflated:
        for c in range(len(state.pass_vectors[0])):
            state.z[t, c] = state.pass_vectors[0, c] / scale
    total = 0.0
    for a in range(len(state.targets)):
        state.coefficients[t, a] = state.covariance[a, i] / scale
        state.target_variances[a] = max(
            state.target_variances[a] - state.coefficients[t, a] ** 2, 0.0
        )
        total += state.target_variances[a]
    state.trace[t + 1] = total
    state.picks[t], state.scales[t] = i, scale
    if not state.repeats:
        state.available[i] = False
    return True


@compiled
@no_type_check
def advance(state, t, stop):
    """Run steps t … stop − 1 in one call; return the step reached."""
    while t < stop and choose(state, t):
        observe(state, 0, len(state.rows), t)
        t += 1
    return t
