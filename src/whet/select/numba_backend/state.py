"""The state of the compiled greedy selection, and the threads that share its rows."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from whet.maths.arrays import Array

SPARES = 16  # columns made ahead and not yet picked
RECENT, MEMORY = 16, 2**30  # rows of the factor kept when products are deflated, and their bytes
SCREENED = 2**19  # numbers from which float32 passes save more than exact contenders cost
ROUGH = 1.01 * 2.0**-24  # rounding of float32, and a hundredth more for all that float64 rounds
SHARED = 2**22  # numbers from which one prompt's rows are shared among threads


class Screen(NamedTuple):
    """What `whet.select.numba_backend.screen` keeps of the picks, s at most n and k; empty where it is never on.

    `known` is how many steps of a row's factor are exact, `lower` L, `inverse` L⁻¹, `ridge` w, and
    `slack` what multiplies `rough` in the bounds.
    """

    on: Bool[Array, " 1"]
    longest: float
    rough: float
    q: Float[Array, "4 _"]
    known: Int[Array, " k"]
    lower: Float[Array, "s s"]
    inverse: Float[Array, "s s"]
    ridge: Float[Array, "s m"]
    slack: Float[Array, " 2"]


class State(NamedTuple):
    """What the kernels read and write. k candidates, m targets; R rows of the factor, a ring."""

    rows: Shaped[Array, "k d"]
    goals: Float[Array, "m d"]
    open: Bool[Array, " k"]
    lam: float
    shared: bool
    deflated: bool
    once: bool
    variance: Float[Array, " k"]
    covariance: Float[Array, "m k"]
    gains: Float[Array, " k"]
    left: Float[Array, " m"]
    factor: Float[Array, "R k"]
    spares: Float[Array, "S k"]
    names: Int[Array, " S"]
    since: Int[Array, " S"]
    z: Float[Array, "n d"]
    picks: Int[Array, " n"]
    scales: Float[Array, " n"]
    trace: Float[Array, " n+1"]
    slots: Int[Array, " 3"]
    q: Float[Array, "4 d"]
    told: Float[Array, "n m"]
    first: Int[Array, " n"]
    screen: Screen
    weights: Float[Array, " R"]
    base: Float[Array, " 1"]
    plan: Int[Array, " 3"]


class NumbaGreedy:
    """Greedy selection by `whet.select.numba_backend.kernels`; the same bits for any number of threads.

    Memory beside the rows: up to 40 k numbers of float64; up to 3 n k of them for k ≤ 2 d, where n
    is the number of picks.
    """

    def __init__(
        self,
        rows: Shaped[Array, "k d"],
        goals: Float[Array, "m d"],
        open: Bool[Array, " k"],
        *,
        lam: float,
        once: bool,
        threads: int | None,
    ) -> None:
        from whet.select.numba_backend import kernels, products

        self._kernels = kernels
        k, d = rows.shape
        shared = k * d >= SHARED  # by size, not by threads: one path, hence the same bits
        self._threads = (threads or cores()) if shared else 1
        self._state = _state(_bits(rows), goals, open.copy(), lam, once, shared)
        self.step = 0
        self._each(lambda lo, hi: products.begin(self._state, lo, hi))
        self._state = _screened(self._state)

    @property
    def prior(self) -> Float[Array, " k"]:
        """Squared norms of the rows, before the first step."""
        return self._state.variance

    @property
    def picks(self) -> Int[Array, " n"]:
        return self._state.picks[: self.step]

    @property
    def trace(self) -> Float[Array, " steps"]:
        """What is left of the targets' variance after 0, 1, … picks."""
        return self._state.trace[: self.step + 1]

    def advance(self, steps: int) -> None:
        """Up to `steps` more picks; fewer when no candidate is left."""
        stop = self.step + steps
        self._state = _reserve(self._state, stop)
        if not self._state.shared:
            self.step = self._kernels.advance(self._state, self.step, stop)
            return
        while self.step < stop and self._kernels.choose(self._state, self.step):
            self._each(lambda lo, hi: self._kernels.observe(self._state, lo, hi, self.step))
            self.step += 1

    def _each(self, work: Callable[[int, int], None]) -> None:
        k = len(self._state.rows)
        edges = [k * part // self._threads for part in range(self._threads + 1)]
        if self._threads == 1:
            work(0, k)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(work, edges[:-1], edges[1:]))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bits(rows: Shaped[Array, "k d"]) -> Shaped[Array, "k d"]:
    if rows.dtype == np.float16:
        return rows.view(np.uint16)
    return rows if rows.dtype == np.float32 else np.asarray(rows, np.float64)


def _aligned(m: int, d: int, dtype: type) -> Float[Array, "m d"]:
    """A matrix at the start of a cache line: a fifth of a pass's time at k = 200."""
    size = m * d * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(m, d)


def _state(
    rows: Shaped[Array, "k d"],
    goals: Float[Array, "m d"],
    open: Bool[Array, " k"],
    lam: float,
    once: bool,
    shared: bool,
) -> State:
    (k, d), m = rows.shape, len(goals)
    deflated = k > 2 * d
    recent = min(RECENT, max(4, MEMORY // (8 * k))) if deflated else 16
    left = np.einsum("md,md->m", goals, goals)
    return State(
        rows=rows,
        goals=goals,
        open=open,
        lam=lam,
        shared=shared,
        deflated=deflated,
        once=once,
        variance=np.empty(k),
        covariance=np.empty((m, k)),
        gains=np.empty(k),
        left=left,
        factor=np.empty((recent, k)),
        spares=np.empty((SPARES, k)),
        names=np.full(SPARES, -1),
        since=np.zeros(SPARES, np.int64),
        z=np.empty((16 if deflated else 0, d)),
        picks=np.empty(16, np.int64),
        scales=np.empty(16),
        trace=np.array([left.sum(), *[0.0] * 16]),
        slots=np.zeros(3, np.int64),
        q=_aligned(4, d, np.float64),
        told=np.empty((16, m)),
        first=np.empty(16, np.int64),
        screen=_screen(k, d, m, 0, 0.0),
        weights=np.empty(recent),
        base=np.empty(1),
        plan=np.empty(3, np.int64),
    )


def _screen(k: int, d: int, m: int, room: int, longest: float) -> Screen:
    """For `room` picks of rows whose largest squared length is `longest`; off where room is 0."""
    return Screen(
        on=np.full(1, room > 0),
        longest=longest,
        rough=ROUGH * d * longest,
        q=_aligned(4, d if room else 0, np.float32),
        known=np.zeros(k if room else 0, np.int64),
        lower=np.empty((room, room)),
        inverse=np.empty((room, room)),
        ridge=np.empty((room, m)),
        slack=np.zeros(2),
    )


def _screened(state: State) -> State:
    """`state` with the screen on, where that pays and float32 has the range for the lengths."""
    (k, d), longest = state.rows.shape, float(state.variance.max())
    pays = k * d >= SCREENED and not state.deflated and state.rows.dtype != np.float64
    if not (pays and 1e-12 < longest < 1e12 and d <= 2**16):
        return state
    return state._replace(screen=_screen(k, d, len(state.goals), len(state.picks), longest))


def _reserve(state: State, steps: int) -> State:
    """`state` with room for `steps` picks in all."""
    room = len(state.picks)
    if steps <= room:
        return state
    room = max(steps, 2 * room)

    def longer(array: Array, rows: int) -> Array:
        fresh = np.empty((rows, *array.shape[1:]), array.dtype)
        fresh[: len(array)] = array
        return fresh

    state = state._replace(
        picks=longer(state.picks, room),
        scales=longer(state.scales, room),
        told=longer(state.told, room),
        first=longer(state.first, room),
        trace=longer(state.trace, room + 1),
    )
    if state.deflated:
        return state._replace(z=longer(state.z, room))
    state = state._replace(factor=longer(state.factor, room), weights=np.empty(room))
    screen = state.screen
    if screen.on[0]:
        side = max(len(screen.lower), min(room, len(state.rows)))  # after k picks it is given up
        wider = [np.empty((side, side)), np.empty((side, side))]
        for fresh, old in zip(wider, (screen.lower, screen.inverse), strict=True):
            fresh[: len(old), : len(old)] = old
        screen = screen._replace(lower=wider[0], inverse=wider[1], ridge=longer(screen.ridge, side))
    return state._replace(screen=screen)
