"""A single thread owns the weights and advances all running requests by one step per iteration.

Retrieval runs in a thread pool before a request is given a slot, so a slow search does not delay
other requests, as long as no more than `THREADS_PER_CLIENT` searches of its client, and
`RETRIEVAL_THREADS` of all, are slow at once. Clients get slots in turn (`whet.engine.fair_queue`).
In each iteration the scheduler asks every request's coroutine (`whet.engine.request`) for its next
action, takes all updates together, then one token of every generated text, and more of them if the
updates took long. The slot of a finished request goes to the next one in the same iteration.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from functools import partial

from whet.adapt.decoding.sampling import SequenceGroup, TextPiece
from whet.adapt.slots import Slots
from whet.adapt.updates import Update
from whet.engine.fair_queue import FairPool, FairQueue
from whet.engine.planning import Planner, TrainingPlan
from whet.engine.request import Action, RequestCoroutine, RequestState, run_request
from whet.errors import EngineClosedError, ModelError, QueueFullError

RETRIEVAL_THREADS, THREADS_PER_CLIENT = 8, 4
STEP_TIME_DECAY = 0.9  # per request, so that one slow step does not end all training
DECODING_SHARE = 0.1
"""Time for further tokens after a training step, relative to that step: otherwise each token of an
answer waits for a step of all other requests (benchmarks/LOG.md)."""
MAX_PREFETCH = 16  # waiting requests of a client that have a plan, which holds vectors

Results = dict[int, list[float] | list[TextPiece] | Exception]


def set_niceness(niceness: int) -> None:
    """Set the Unix niceness (0 to 19) of this thread and of those that it starts.

    Does nothing on systems other than Linux, where a thread has no niceness of its own.
    """
    if niceness and sys.platform == "linux":
        nice = max(niceness, os.getpriority(os.PRIO_PROCESS, 0))
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class Scheduler:
    """Takes requests from any thread and runs them in its own, which ends when none are left."""

    def __init__(
        self,
        make_slots: Callable[[], Slots],
        planner: Planner,
        max_waiting: int,
        niceness: int,
    ) -> None:
        self._make_slots, self._planner, self._max_waiting = make_slots, planner, max_waiting
        self._set_niceness = partial(set_niceness, niceness)
        self._retrieval_threads = FairPool(
            RETRIEVAL_THREADS, THREADS_PER_CLIENT, "whet-plan", self._set_niceness
        )
        self._slots: Slots | None = None
        self._waiting: FairQueue[RequestState] = FairQueue()
        self._active: dict[int, tuple[RequestState, RequestCoroutine]] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._step_time_s = 0.0  # about how long an iteration with training takes
        _LIVE.add(self)

    def submit(self, state: RequestState, *, wait: bool = False) -> None:
        """Queue a request; with `wait`, block until the queue has room for it.

        Raises:
            QueueFullError: If the queue is full.
            EngineClosedError: If `close` was called.
        """
        with self._change:
            while wait and len(self._waiting) >= self._max_waiting and not self._closed:
                self._change.wait()
            if self._closed:
                raise EngineClosedError("engine is closed: make a new one")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(
                    f"queue is full ({len(self._waiting)} waiting): retry later or raise "
                    "`max_queue_size`"
                )
            self._waiting.push(state.client, state, state.weight)
            self._plan_ahead(state.client)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="whet-engine", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def cancel(self, state: RequestState) -> None:
        """Stop a request before its next step."""
        with self._change:
            state.cancelled = True
            self._change.notify_all()

    def cancel_and_wait(self, states: Iterable[RequestState]) -> None:
        """Cancel requests and wait for those that run.

        Afterwards the model is restored, unless other requests use it.
        """
        states = list(states)
        started = [state.output for state in states if not state.output.cancel()]
        for state in states:
            self.cancel(state)
        wait(started)
        with self._change:
            self._change.wait_for(lambda: not self._thread or self._active or self._waiting)

    def close(self) -> None:
        """Accept no more requests and wait until the accepted ones are finished."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._retrieval_threads.shutdown()

    def stop(self) -> None:
        """Cancel all requests and wait for the current step."""
        with self._change:
            self._closed = True
            thread, active = self._thread, list(self._active.values())
            for state in (*self._waiting, *(state for state, _ in active)):
                state.cancelled = True
            self._change.notify_all()
        if thread is not None:
            thread.join()

    def _plan_ahead(self, client: str) -> None:
        """Start planning the next requests of `client`."""
        for state in self._waiting.of(client)[:MAX_PREFETCH]:
            if state.plan is None:
                plan = partial(self._plan, state)
                state.plan = self._retrieval_threads.submit(client, plan, weight=state.weight)
                state.plan.add_done_callback(self._wake)

    def _plan(self, state: RequestState) -> TrainingPlan:
        return TrainingPlan() if state.cancelled else self._planner.plan(state.request)

    def _wake(self, _: Future[TrainingPlan]) -> None:
        with self._change:
            self._change.notify_all()

    def _run(self) -> None:
        """Run until no requests are left; the model is restored before the last outputs are set."""
        self._set_niceness()
        while True:
            finished: list[Callable[[], None]] = []
            try:
                self._slots = self._slots or self._make_slots()
                with self._slots.attached():
                    self._loop(self._slots, finished)
            except BaseException as error:  # no caller may wait forever
                states = [state for state, _ in self._active.values()]
                self._active.clear()
                with self._change:
                    waiting = self._waiting.clear()
                    self._change.notify_all()
                states += [s for s in waiting if s.output.set_running_or_notify_cancel()]
                finished += [partial(state.output.set_exception, error) for state in states]
            for set_output in finished:
                set_output()
            with self._change:
                if not self._waiting:
                    self._thread = None
                    self._change.notify_all()
                    return

    def _loop(self, slots: Slots, finished: list[Callable[[], None]]) -> None:
        actions: dict[int, Action] = {}
        results: Results = {}
        next_training = 0.0
        while True:
            for slot in range(len(slots)):
                if slot not in actions:
                    action = self._advance(slots, slot, results.get(slot), finished)
                    actions |= {} if action is None else {slot: action}
            while finished and (self._active or self._waiting):
                finished.pop(0)()
            if not self._active:
                if not self._wait_for_work():
                    return
                continue
            updates = {slot: a for slot, a in actions.items() if isinstance(a, Update)}
            groups = {slot: a for slot, a in actions.items() if isinstance(a, SequenceGroup)}
            start = time.perf_counter()
            trains = bool(updates) and (not groups or start >= next_training)
            results = _train_step(slots, updates) if trains else {}
            trained = time.perf_counter()
            results |= _decode_step(slots, groups)
            if trains:
                self._step_time_s = time.perf_counter() - start
                next_training = trained + DECODING_SHARE * (trained - start)
            actions = {} if trains else {**updates}  # those wait for their turn

    def _wait_for_work(self) -> bool:
        """Wait until a request can start; False if none is waiting."""
        with self._change:
            self._change.wait_for(lambda: not self._waiting or any(map(_is_ready, self._waiting)))
            return bool(self._waiting)

    def _advance(
        self,
        slots: Slots,
        slot: int,
        result: list[float] | list[TextPiece] | Exception | None,
        finished: list[Callable[[], None]],
    ) -> Action | None:
        """Send the request in `slot` its result, or start the next one; return its next action."""
        while True:
            if slot not in self._active:
                if (state := self._pop()) is None:
                    return None
                training = self._planner.training
                coroutine = run_request(state, slots, slot, training, lambda: self._step_time_s)
                self._active[slot] = state, coroutine
                self._step_time_s *= STEP_TIME_DECAY
                result = None
            state, coroutine = self._active[slot]
            try:
                if isinstance(result, Exception):
                    return coroutine.throw(result)
                return coroutine.send(result)
            except StopIteration as stop:
                set_output = partial(state.output.set_result, stop.value)
            except BaseException as error:  # of this request alone: its caller gets it
                set_output = partial(state.output.set_exception, error)
            finished.append(set_output)
            del self._active[slot]

    def _pop(self) -> RequestState | None:
        with self._change:
            while (state := self._waiting.pop(_is_ready)) is not None:
                self._change.notify_all()
                self._plan_ahead(state.client)
                if state.output.set_running_or_notify_cancel():  # its future was not cancelled
                    return state
            return None


def _is_ready(state: RequestState) -> bool:
    """Whether a request waits for nothing but a slot."""
    return state.cancelled or (state.plan is not None and state.plan.done())


def _train_step(slots: Slots, updates: dict[int, Update]) -> Results:
    """Take the updates together; if that fails, each by itself, so that only one of them fails."""
    slots.repeat_step([slot for slot, update in updates.items() if update.reused])
    texts = {
        slot: [example.text for example in update.examples]
        for slot, update in updates.items()
        if not update.reused
    }
    results: Results = {}
    try:
        results |= slots.step(texts)
    except ModelError:
        for slot, batch in texts.items():
            try:
                results |= slots.step({slot: batch})
            except ModelError as error:
                results[slot] = error
    return results


def _decode_step(slots: Slots, groups: dict[int, SequenceGroup]) -> Results:
    """One token of each sequence; if that fails, as when memory is short, all of them fail."""
    try:
        return {**slots.decode_step(groups)}
    except Exception as error:
        return dict.fromkeys(groups, error)


_LIVE: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop the threads: one that is inside torch when Python exits would abort the process."""
    for scheduler in list(_LIVE):
        scheduler.stop()
