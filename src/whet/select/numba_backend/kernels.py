"""The exact greedy step as machine code.

Picking i conditions everything on the column k_n(·, x_i). Four things make that column cheap:

* **One pass, four columns.** Reading rows costs more than multiplying them, so a pass also makes
  the columns of the three candidates that look most like the next picks: 50 picks need 14 to 28
  passes.
* **No column twice.** A column made at step s is brought up to date by the rows of the Cholesky
  factor since s; the column of an earlier pick is such a row times a number.
* **Deflated products.** For large k the product is taken with Λ_n x_i, where Λ_n = I − Σ_r z_r z_rᵀ
  is the posterior covariance of the weights: a fresh column then needs no earlier row of the
  factor, so only the last few rows are kept and no cost grows with n k.
* **Screened passes**, for other large problems: in float32, see `whet.select.numba_backend.screen`.

Every number of row j comes from row j alone, by sums in an order fixed when compiled: identical
rows have identical bits, and neither threads nor batch mates change anything. Arguments called
`state` are `whet.select.numba_backend.state.State`; t is the number of picks so far.
"""

from typing import no_type_check

import numpy as np

from whet.select.numba_backend.jit import cast, compiled
from whet.select.numba_backend.products import begin, between, dot, four_columns, largest
from whet.select.numba_backend.screen import sharpen, widen
from whet.select.selection import TIE

BUILT_ON = "7eee683c"  # see `machine`
BLOCK = 256  # rows whose columns stay in the first cache while they are updated
AHEAD = 8  # candidates looked at for a pass's other columns

# whence a column: a pass, an earlier pass, an earlier pick, or a product a row
PASS, SPARE, AGAIN, ALONE = 0, 1, 2, 3


@compiled
@no_type_check
def _direction(state, i, t, out):
    """Λ_t x_i, or x_i itself where products are not deflated."""
    for c in range(len(out)):
        out[c] = cast(state.rows[i, c], 0.0)
    if state.deflated:
        for r in range(t):
            share = dot(state.rows, i, state.z[r])
            for c in range(len(out)):
                out[c] -= share * state.z[r, c]


@compiled
@no_type_check
def _spare(state, j, t):
    """The slot that holds a column of j which can still be brought up to date; −1: none."""
    for s in range(len(state.names)):
        if state.names[s] == j and t - state.since[s] <= len(state.factor):
            return s
    return -1


@compiled
@no_type_check
def _last_pick(state, j, t):
    """The last step that picked j, if its row of the factor is still there; −1: none."""
    for r in range(t - 1, max(0, t - len(state.factor)) - 1, -1):
        if state.picks[r] == j:
            return r
    return -1


@compiled
@no_type_check
def _free_slot(state, t, taken):
    """Not one of `taken`: an empty slot, else that of the least promising candidate."""
    slot, least = 0, np.inf
    for s in range(len(state.names)):
        free = True
        for other in taken:
            free = free and other != s
        j = state.names[s]
        worth = -1.0 if j < 0 or _spare(state, j, t) < 0 else state.gains[j]
        if free and worth < least:
            slot, least = s, worth
    return slot


@compiled
@no_type_check
def _most_promising(state, i, t, best):
    """Into `best` the candidates of largest gain that have no column; gives how many."""
    gains, count, bar = state.gains, 0, -1.0
    for j in range(len(gains)):
        if gains[j] <= bar or j == i or gains[j] < 0:
            continue
        if _spare(state, j, t) >= 0 or _last_pick(state, j, t) >= 0:
            continue
        place = min(count, len(best) - 1)
        while place > 0 and gains[best[place - 1]] < gains[j]:
            best[place] = best[place - 1]
            place -= 1
        best[place] = j
        count = min(count + 1, len(best))
        if count == len(best):
            bar = gains[best[count - 1]]
    return count


@compiled
@no_type_check
def _gain_after(state, j, i, t, first):
    """The gain of j once i is observed, whose direction is the first of `state.q`."""
    shared, noise = dot(state.rows, j, state.q[0]), state.variance[i] + state.lam
    for r in range(first, t):
        row = state.factor[r % len(state.factor)]
        shared -= row[i] * row[j]
    told = 0.0
    for a in range(len(state.goals)):
        told += (state.covariance[a, j] - shared * state.covariance[a, i] / noise) ** 2
    return told / (max(state.variance[j] - shared * shared / noise, 0.0) + state.lam)


@compiled
@no_type_check
def _plan_pass(state, i, t, first):
    """Give the pass's other columns to those who will be the most promising."""
    best, worth = np.empty(AHEAD, np.int64), np.full(AHEAD, -1.0)
    count = _most_promising(state, i, t, best)
    for place in range(count):
        worth[place] = _gain_after(state, best[place], i, t, first)
    for b in range(len(state.slots)):
        place = worth.argmax()
        j = best[place] if worth[place] >= 0 else -1
        worth[place] = -1.0
        slot = _free_slot(state, t, state.slots[:b])
        state.slots[b], state.names[slot], state.since[slot] = slot, j, first
        _direction(state, max(j, 0), t, state.q[b + 1])


@compiled
@no_type_check
def _catch_up(state, first, t, lo, hi, column):
    """Bring a column of step `first` up to date, four rows of the factor at a time."""
    factor, weights, capacity = state.factor, state.weights, len(state.factor)
    r = first
    while r + 4 <= t:
        a, b = factor[r % capacity, lo:hi], factor[(r + 1) % capacity, lo:hi]
        c, e = factor[(r + 2) % capacity, lo:hi], factor[(r + 3) % capacity, lo:hi]
        s = r - first
        of_a, of_b, of_c, of_e = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        for j in range(hi - lo):
            column[j] -= of_a * a[j] + of_b * b[j] + of_c * c[j] + of_e * e[j]
        r += 4
    while r < t:
        a, weight = factor[r % capacity, lo:hi], weights[r - first]
        for j in range(hi - lo):
            column[j] -= weight * a[j]
        r += 1


@compiled
@no_type_check
def _update(state, t, lo, hi, column):
    """Condition rows lo … hi on the pick of step t, whose column is given."""
    variance, gains = state.variance[lo:hi], state.gains[lo:hi]
    fresh, scale = state.factor[t % len(state.factor), lo:hi], state.scales[t]
    for j in range(hi - lo):
        share = column[j] / scale
        fresh[j] = share
        variance[j] = max(variance[j] - share * share, 0.0)
        gains[j] = 0.0
    for a in range(len(state.goals)):
        told, row = state.told[t, a], state.covariance[a, lo:hi]
        for j in range(hi - lo):
            row[j] -= told * fresh[j]
            gains[j] += row[j] * row[j]
    for j in range(hi - lo):
        gains[j] /= variance[j] + state.lam
    for j in range(hi - lo):
        if not state.open[lo + j]:
            gains[j] = -1.0


@compiled
@no_type_check
def observe(state, lo, hi, t):
    """Condition rows lo … hi on the pick of step t, as `choose` planned it."""
    kind, slot, first = state.plan[0], state.plan[1], state.plan[2]
    block = np.empty(BLOCK)
    for low in range(lo, hi, BLOCK):
        high = min(low + BLOCK, hi)
        column = block[: high - low]
        if kind == PASS:
            if state.screen.on[0]:
                four_columns(state, state.screen.q, low, high, column)
            else:
                four_columns(state, state.q, low, high, column)
        elif kind == SPARE:
            column[:] = state.spares[slot, low:high]
        elif kind == AGAIN:
            column[:] = state.factor[slot, low:high] * state.base[0]
        else:
            for j in range(low, high):
                column[j - low] = between(state.rows, j, state.picks[t])
        _catch_up(state, first, t, low, high, column)
        _update(state, t, low, high, column)


@compiled
@no_type_check
def _settle(state, t):
    """Give up the screen: all numbers in float64, from the picks of the steps before t."""
    state.screen.on[0] = False
    state.names[:] = -1
    begin(state, 0, len(state.rows))
    for r in range(t):
        first, i = state.first[r], state.picks[r]
        state.plan[0], state.plan[1], state.plan[2] = ALONE, first - 1, first
        if first > 0:
            state.plan[0], state.base[0] = AGAIN, state.lam / state.scales[first - 1]
        for s in range(first, r):
            state.weights[s - first] = state.factor[s, i]
        observe(state, 0, len(state.rows), r)


@compiled
@no_type_check
def choose(state, t):
    """Pick the best candidate and plan how its column is made; False if none is open."""
    if state.screen.on[0] and not sharpen(state, t):
        _settle(state, t)
    gains, capacity = state.gains, len(state.factor)
    high = largest(gains)
    if high < 0:
        return False
    i = 0
    while gains[i] < high - TIE * high:
        i += 1
    kind, slot, first, base = PASS, _spare(state, i, t), t if state.deflated else 0, 1.0
    again = _last_pick(state, i, t)
    if again >= 0:  # its own observation made the column smaller by λ' / (k_n(i, i) + λ')
        kind, slot, first = AGAIN, again % capacity, again + 1
        base = state.lam / state.scales[again]
    elif slot >= 0:
        kind, first = SPARE, state.since[slot]
        state.names[slot] = -1
    if kind == PASS or state.deflated:
        _direction(state, i, t, state.q[0])
    if kind == PASS:
        _plan_pass(state, i, t, first)
        if state.screen.on[0]:
            state.screen.q[:] = state.q
        own = dot(state.rows, i, state.q[0])
    else:
        own = state.spares[slot, i] if kind == SPARE else base * state.factor[slot, i]
    for r in range(first, t):
        state.weights[r - first] = state.factor[r % capacity, i]
        own -= state.factor[r % capacity, i] ** 2
    if state.screen.on[0]:
        own = state.variance[i]  # exact, unlike the column
    scale = np.sqrt(max(own, 0.0) + state.lam)  # not the variance: the column must fit its own row
    if state.deflated:
        for c in range(len(state.q[0])):
            state.z[t, c] = state.q[0, c] / scale
    left = 0.0
    for a in range(len(state.goals)):
        state.told[t, a] = state.covariance[a, i] / scale
        state.left[a] = max(state.left[a] - state.told[t, a] ** 2, 0.0)
        left += state.left[a]
    state.trace[t + 1] = left
    state.picks[t], state.scales[t] = i, scale
    if state.screen.on[0]:
        widen(state, i, t)
    state.plan[0], state.plan[1], state.plan[2] = kind, slot, first
    state.base[0], state.first[t] = base, first
    if state.once:
        state.open[i] = False
    return True


@compiled
@no_type_check
def advance(state, t, stop):
    """Steps t … stop − 1 without a word in between; gives the step reached."""
    while t < stop and choose(state, t):
        observe(state, 0, len(state.rows), t)
        t += 1
    return t
