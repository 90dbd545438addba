"""The exact greedy step as machine code: the one module that imports numba.

Picking i conditions everything on the column k_n(·, x_i). Three things make that column cheap:

* **One pass, four columns.** Reading rows costs more than multiplying them, so a pass also makes
  the columns of the three candidates that look most like the next picks: 50 picks need 14 to 28
  passes.
* **No column twice.** A column made at step s is brought up to date by the rows of the Cholesky
  factor since s; the column of an earlier pick is such a row times a number.
* **Deflated products.** For large k the product is taken with Λ_n x_i, where Λ_n = I − Σ_r z_r z_rᵀ
  is the posterior covariance of the weights: a fresh column then needs no earlier row of the
  factor, so only the last few rows are kept and no cost grows with n k.

Every number of row j comes from row j alone, by sums in an order fixed when compiled: identical
rows have identical bits, and neither threads nor batch mates change anything. Arguments called
`state` are `whet.select.compiled.State`; t is the number of picks so far.
"""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from whet.select.selection import TIE

BLOCK = 256  # rows whose columns stay in the first cache while they are updated
NEXT = 2**14  # bytes that are fetched ahead: halves a pass over float16 rows beyond the cache
AHEAD = 8  # candidates looked at for a pass's other columns

PASS, SPARE, AGAIN = 0, 1, 2  # whence a column: a pass, an earlier pass, an earlier pick


def compiled(function: Any, **options: Any) -> Any:
    """`function` as machine code without the GIL, kept on disk where some folder can be written."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache: compile each time
        return njit(**options)(function)


def summing(function: Any) -> Any:
    """`compiled`, with sums in the order that fills the registers, fixed when compiled.

    Only for sums along a row. A loop over rows treats its last few by other instructions, which
    must give the same bits.
    """
    return compiled(function, fastmath={"reassoc", "contract", "nsz"})


@no_type_check
@intrinsic
def _wide(context, number):
    """A stored number as float64; float16 travels as its bits, since numba has no such type."""

    def generate(context, builder, signature, arguments):
        bits, kind = arguments[0], signature.args[0]
        if kind == types.float64:
            return bits
        if kind == types.uint16:
            bits = builder.bitcast(bits, ir.HalfType())
        return builder.fpext(bits, ir.DoubleType())

    return types.float64(number), generate


@no_type_check
@intrinsic
def _fetch(context, rows, j, byte):
    """Ask for the line of memory at `byte` of row j, which may lie beyond the end."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        place = builder.add(builder.mul(stride, arguments[1]), arguments[2])
        number = ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer.type],
            ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number]),
        )
        reading, keep, of_data = number(0), number(3), number(1)
        builder.call(prefetch, [builder.gep(pointer, [place]), reading, keep, of_data])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), generate


@no_type_check
@intrinsic
def _full_registers(context):
    """Compile the calling function apart, for registers as wide as the processor's.

    LLVM stops at 256 bits by itself, which halves the speed of a product that lies in cache.
    """

    def generate(context, builder, signature, arguments):
        marks = builder.function.attributes
        set.add(marks, "noinline")
        set.add(marks, '"prefer-vector-width"="512"')  # unknown to llvmlite, known to LLVM
        return context.get_dummy_value()

    return types.void(), generate


@summing
@no_type_check
def _dot(rows, j, q):
    total = 0.0
    for c in range(len(q)):
        total += _wide(rows[j, c]) * q[c]
    return total


@summing
@no_type_check
def begin(state, lo, hi):
    """The prior of rows lo … hi."""
    rows, goals = state.rows, state.goals
    for j in range(lo, hi):
        if state.shared:
            for byte in range(0, rows.shape[1] * rows.itemsize, 64):
                _fetch(rows, j, byte + NEXT)
        total, share = 0.0, 0.0
        for c in range(rows.shape[1]):
            x = _wide(rows[j, c])
            total += x * x
            share += x * goals[0, c]
        state.variance[j], state.covariance[0, j] = total, share
        told = share * share
        for a in range(1, len(goals)):
            share = _dot(rows, j, goals[a])
            state.covariance[a, j] = share
            told += share * share
        state.gains[j] = told / (total + state.lam) if state.open[j] else -1.0


@compiled
@no_type_check
def _direction(state, i, t, out):
    """Λ_t x_i, or x_i itself where products are not deflated."""
    for c in range(len(out)):
        out[c] = _wide(state.rows[i, c])
    if state.deflated:
        for r in range(t):
            share = _dot(state.rows, i, state.z[r])
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
    shared, noise = _dot(state.rows, j, state.q[0]), state.variance[i] + state.lam
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
def choose(state, t):
    """Pick the best candidate and plan how its column is made; False if none is open."""
    gains, capacity = state.gains, len(state.factor)
    high = gains.max()
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
    if kind == PASS:
        own = _dot(state.rows, i, state.q[0])
    else:
        own = state.spares[slot, i] if kind == SPARE else base * state.factor[slot, i]
    for r in range(first, t):
        state.weights[r - first] = state.factor[r % capacity, i]
        own -= state.factor[r % capacity, i] ** 2
    scale = np.sqrt(max(own, 0.0) + state.lam)  # not the variance: the column must fit its own row
    if state.deflated:
        for c in range(len(state.q[0])):
            state.z[t, c] = state.q[0, c] / scale
    left = 0.0
    for a in range(len(state.goals)):
        state.told[a] = state.covariance[a, i] / scale
        state.left[a] = max(state.left[a] - state.told[a] ** 2, 0.0)
        left += state.left[a]
    state.trace[t + 1] = left
    state.picks[t], state.scales[t] = i, scale
    state.plan[0], state.plan[1], state.plan[2] = kind, slot, first
    state.base[0] = base
    if state.once:
        state.open[i] = False
    return True


@summing
@no_type_check
def _pass(state, lo, hi, column):
    """One reading of rows lo … hi makes four columns, two rows at a time to halve the reads of q.

    The last of an odd number is its own partner, so that all rows go through the same instructions.
    """
    _full_registers()
    rows, q, slots = state.rows, state.q, state.slots
    one, two, three = state.spares[slots[0]], state.spares[slots[1]], state.spares[slots[2]]
    for j in range(lo, hi, 2):
        k = min(j + 1, hi - 1)
        if state.shared:
            for byte in range(0, 2 * rows.shape[1] * rows.itemsize, 64):
                _fetch(rows, j, byte + NEXT)
        s, t, u, v = 0.0, 0.0, 0.0, 0.0
        e, f, g, h = 0.0, 0.0, 0.0, 0.0
        for c in range(rows.shape[1]):
            x, y = _wide(rows[j, c]), _wide(rows[k, c])
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
def _catch_up(state, first, t, lo, hi, column):
    """Bring a column of step `first` up to date, four rows of the factor at a time."""
    factor, weights, capacity = state.factor, state.weights, len(state.factor)
    r = first
    while r + 4 <= t:
        a, b = factor[r % capacity, lo:hi], factor[(r + 1) % capacity, lo:hi]
        c, e = factor[(r + 2) % capacity, lo:hi], factor[(r + 3) % capacity, lo:hi]
        w = weights[r - first : r - first + 4]
        for j in range(hi - lo):
            column[j] -= w[0] * a[j] + w[1] * b[j] + w[2] * c[j] + w[3] * e[j]
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
        told, row = state.told[a], state.covariance[a, lo:hi]
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
            _pass(state, low, high, column)
        elif kind == SPARE:
            column[:] = state.spares[slot, low:high]
        else:
            column[:] = state.factor[slot, low:high] * state.base[0]
        _catch_up(state, first, t, low, high, column)
        _update(state, t, low, high, column)


@compiled
@no_type_check
def advance(state, t, stop):
    """Steps t … stop − 1 without a word in between; gives the step reached."""
    while t < stop and choose(state, t):
        observe(state, 0, len(state.rows), t)
        t += 1
    return t
