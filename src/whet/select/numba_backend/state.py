"""The state of a compiled greedy selection, and the threads that share its rows."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from whet.maths.arrays import Array

CACHE_SLOTS = 16  # columns computed ahead and not yet picked
RECENT = 16  # rows of the factor kept when products are deflated,
MAX_RECENT_BYTES = 2**30  # and the memory that they may take
PARALLEL_SIZE = 2**22  # numbers from which one query's rows are shared among threads
_INITIAL_STEPS = 16  # steps that a new state has room for


class State(NamedTuple):
    """What the kernels read and write: k candidates, m targets, R rows of the factor in a ring."""

    rows: Shaped[Array, "k d"]
    targets: Float[Array, "m d"]
    available: Bool[Array, " k"]
    lam: float
    parallel: bool
    deflated: bool
    repeats: bool
    variance: Float[Array, " k"]
    covariance: Float[Array, "m k"]
    gains: Float[Array, " k"]
    """Gain of every candidate; −1 if it is not available."""
    target_variances: Float[Array, " m"]
    factor: Float[Array, "R k"]
    cache: Float[Array, "S k"]
    """Columns computed ahead."""
    cached_rows: Int[Array, " S"]
    """The candidate of each cached column; −1 for an empty slot."""
    cached_at: Int[Array, " S"]
    """The step whose factor each cached column accounts for."""
    z: Float[Array, "n d"]
    picks: Int[Array, " n"]
    scales: Float[Array, " n"]
    """√(k_n(i, i) + λ') of each pick i."""
    trace: Float[Array, " n+1"]
    pass_slots: Int[Array, " 3"]
    """Slots of the cache for the other columns of a pass."""
    pass_vectors: Float[Array, "4 d"]
    coefficients: Float[Array, "n m"]
    """Covariance of each pick with each target, divided by its scale."""
    weights: Float[Array, " R"]
    """The pick's entries in the rows of the factor that its column lacks."""
    multiple: Float[Array, " 1"]
    """Factor between a row of the factor and the column of a repeated pick."""
    plan: Int[Array, " 3"]
    """How the column of the current pick is computed: source, slot, first step it lacks."""


class NumbaGreedy:
    """Greedy selection with compiled kernels; the same bits for any number of threads.

    Memory in addition to the rows: up to 40 k numbers of float64; up to 3 n k of them for k ≤ 2 d,
    where n is the number of picks.
    """

    def __init__(
        self,
        rows: Shaped[Array, "k d"],
        targets: Float[Array, "m d"],
        available: Bool[Array, " k"],
        *,
        lam: float,
        repeats: bool,
        threads: int | None,
    ) -> None:
        from whet.select.numba_backend import kernels, products

        self._kernels = kernels
        k, d = rows.shape
        parallel = k * d >= PARALLEL_SIZE  # not by threads: one path, hence the same bits
        self._threads = (threads or num_cores()) if parallel else 1
        self.state = _new_state(_readable(rows), targets, available.copy(), lam, repeats, parallel)
        self._step = 0
        self._for_all_rows(lambda lo, hi: products.initialize(self.state, lo, hi))

    @property
    def prior(self) -> Float[Array, " k"]:
        """Squared norms of the rows; valid before the first step."""
        return self.state.variance

    @property
    def picks(self) -> Int[Array, " n"]:
        """The picks so far."""
        return self.state.picks[: self._step]

    @property
    def trace(self) -> Float[Array, " steps"]:
        """The targets' summed variance after 0, 1, … picks."""
        return self.state.trace[: self._step + 1]

    def advance(self, steps: int) -> None:
        """Make up to `steps` more picks, fewer if no candidate is left."""
        stop = self._step + steps
        self.state = _reserve(self.state, stop)
        if not self.state.parallel:
            self._step = self._kernels.advance(self.state, self._step, stop)
            return
        while self._step < stop and self._kernels.choose(self.state, self._step):
            self._for_all_rows(lambda lo, hi: self._kernels.observe(self.state, lo, hi, self._step))
            self._step += 1

    def _for_all_rows(self, work: Callable[[int, int], None]) -> None:
        k = len(self.state.rows)
        edges = [k * part // self._threads for part in range(self._threads + 1)]
        if self._threads == 1:
            work(0, k)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))


def num_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _readable(rows: Shaped[Array, "k d"]) -> Shaped[Array, "k d"]:
    """`rows` in a type that the kernels read: float16 as its bits, wider types than 64 as float64."""
    if rows.dtype == np.float16:
        return rows.view(np.uint16)
    return rows if rows.dtype == np.float32 else np.asarray(rows, np.float64)


def _aligned(m: int, d: int) -> Float[Array, "m d"]:
    """A matrix that starts at a cache line, which saves a fifth of a pass's time at k = 200."""
    size = m * d * 8
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float64).reshape(m, d)


def _new_state(
    rows: Shaped[Array, "k d"],
    targets: Float[Array, "m d"],
    available: Bool[Array, " k"],
    lam: float,
    repeats: bool,
    parallel: bool,
) -> State:
    (k, d), m = rows.shape, len(targets)
    deflated = k > 2 * d
    capacity = RECENT
    if deflated:
        capacity = min(RECENT, max(4, MAX_RECENT_BYTES // (8 * k)))
    target_variances = np.einsum("md,md->m", targets, targets)
    return State(
        rows=rows,
        targets=targets,
        available=available,
        lam=lam,
        parallel=parallel,
        deflated=deflated,
        repeats=repeats,
        variance=np.empty(k),
        covariance=np.empty((m, k)),
        gains=np.empty(k),
        target_variances=target_variances,
        factor=np.empty((capacity, k)),
        cache=np.empty((CACHE_SLOTS, k)),
        cached_rows=np.full(CACHE_SLOTS, -1),
        cached_at=np.zeros(CACHE_SLOTS, np.int64),
        z=np.empty((_INITIAL_STEPS if deflated else 0, d)),
        picks=np.empty(_INITIAL_STEPS, np.int64),
        scales=np.empty(_INITIAL_STEPS),
        trace=np.array([target_variances.sum(), *[0.0] * _INITIAL_STEPS]),
        pass_slots=np.zeros(3, np.int64),
        pass_vectors=_aligned(4, d),
        coefficients=np.empty((_INITIAL_STEPS, m)),
        weights=np.empty(capacity),
        multiple=np.empty(1),
        plan=np.empty(3, np.int64),
    )


def _reserve(state: State, steps: int) -> State:
    """Return `state` with room for `steps` picks in all."""
    room = len(state.picks)
    if steps <= room:
        return state
    room = max(steps, 2 * room)

    def extended(array: Array, rows: int) -> Array:
        copy = np.empty((rows, *array.shape[1:]), array.dtype)
        copy[: len(array)] = array
        return copy

    state = state._replace(
        picks=extended(state.picks, room),
        scales=extended(state.scales, room),
        coefficients=extended(state.coefficients, room),
        trace=extended(state.trace, room + 1),
    )
    if state.deflated:
        return state._replace(z=extended(state.z, room))
    return state._replace(factor=extended(state.factor, room), weights=np.empty(room))
