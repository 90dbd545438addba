"""The one thread that owns the weights: prompts in slots, a step of each in every tick.

What a prompt will learn is planned beside it, and only then it gets a slot, so that a long search
holds up its own prompt alone, unless `PLANNERS` of them are under way. Every prompt's way is a
generator (`whet.engine.request`). A tick asks each what it wants next, takes all lessons together, then
a token of all answers; a slot whose way has ended takes the next prompt in the same tick.
"""

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice

from whet.adapt.sampling import SequenceState
from whet.adapt.slots import Slots
from whet.adapt.updates import Update
from whet.engine.request import Losses, RequestState, TrainingPlan, Wanted, Way
from whet.errors import EngineClosedError, ModelError, QueueFullError

PLANNERS = 2
FADING = 0.9  # a tick that was slow once does not keep all later prompts from any step
AHEAD = 16  # prompts that wait with a plan or get one; a plan holds its candidates' vectors


def set_niceness(niceness: int) -> None:
    """Let this thread, and those that it starts, wait for others where there are too few cores.

    Does nothing but on Linux, where each thread has a niceness of its own; 19 is the most.
    """
    if niceness and sys.platform == "linux":
        nice = max(niceness, os.getpriority(os.PRIO_PROCESS, 0))
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class Scheduler:
    """Takes jobs from any thread; runs them in its own, which lives while there are any."""

    def __init__(
        self,
        slots: Callable[[], Slots],
        plan: Callable[[RequestState], TrainingPlan],
        way: Callable[[RequestState, Slots, int], Way],
        room: int,
        niceness: int,
    ) -> None:
        self._make, self._plan, self._way, self._room = slots, plan, way, room
        self._begins = partial(set_niceness, niceness)
        self._planners = ThreadPoolExecutor(PLANNERS, "whet-plan", self._begins)
        self._slots: Slots | None = None
        self._waiting: deque[RequestState] = deque()
        self._active: dict[int, tuple[RequestState, Way]] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.tick_s = 0.0
        """About how long a tick takes that trains."""
        _known.add(self)

    def submit(self, job: RequestState, *, wait: bool = False) -> None:
        """Queue a job; with `wait`, until there is room.

        Raises:
            QueueFullError: If there is none.
            EngineClosedError: If `close` was called.
        """
        with self._change:
            while wait and len(self._waiting) >= self._room and not self._closed:
                self._change.wait()
            if self._closed:
                raise EngineClosedError("engine is closed: make a new one")
            if len(self._waiting) >= self._room:
                raise QueueFullError(
                    f"{len(self._waiting)} prompts wait, as many as may: try again later, or make "
                    "the engine with a longer queue"
                )
            if len(self._waiting) < AHEAD:
                self._begin(job)
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="whet-engine", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def cancel(self, job: RequestState) -> None:
        """Stop a job at the next tick."""
        with self._change:
            job.cancelled = True
            self._change.notify_all()

    def withdraw(self, jobs: Iterable[RequestState]) -> None:
        """Cancel jobs and wait for those that had begun; the model is back unless others use it."""
        jobs = list(jobs)
        begun = [job.answer for job in jobs if not job.answer.cancel()]
        for job in jobs:
            self.cancel(job)
        wait(begun)
        with self._change:
            self._change.wait_for(lambda: not self._thread or self._active or self._waiting)

    def close(self) -> None:
        """Take no more jobs and wait until those taken have ended."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._planners.shutdown()

    def stop(self) -> None:
        """Give up all jobs and wait for the tick under way."""
        with self._change:
            self._closed = True
            thread, active = self._thread, list(self._active.values())
            for job in (*self._waiting, *(job for job, _ in active)):
                job.cancelled = True
            self._change.notify_all()
        if thread is not None:
            thread.join()

    def _begin(self, job: RequestState) -> None:
        job.plan = self._planners.submit(self._plan, job)
        job.plan.add_done_callback(self._wake)

    def _wake(self, _: Future[TrainingPlan]) -> None:
        with self._change:
            self._change.notify_all()

    def _run(self) -> None:
        """Until nothing is left. The model is back before the last answers are given."""
        self._begins()
        while True:
            ended: list[Callable[[], None]] = []
            try:
                self._slots = self._slots or self._make()
                with self._slots.attached():
                    self._ticks(self._slots, ended)
            except BaseException as error:  # nobody may wait for ever: they are all told
                jobs = [job for job, _ in self._active.values()]
                self._active.clear()
                with self._change:
                    waiting, self._waiting = self._waiting, deque()
                    self._change.notify_all()
                jobs += [job for job in waiting if job.answer.set_running_or_notify_cancel()]
                ended += [partial(job.answer.set_exception, error) for job in jobs]
            for end in ended:
                end()
            with self._change:
                if not self._waiting:
                    self._thread = None
                    self._change.notify_all()
                    return

    def _ticks(self, slots: Slots, ended: list[Callable[[], None]]) -> None:
        given: dict[int, Losses | str | Exception] = {}
        while True:
            plan_updates: dict[int, Update] = {}
            decoders: dict[int, SequenceState] = {}
            for slot in range(len(slots)):
                match self._advance(slots, slot, given.get(slot), ended):
                    case Update() as lesson:
                        plan_updates[slot] = lesson
                    case SequenceState() as decoder:
                        decoders[slot] = decoder
            while ended and (self._active or self._waiting):
                ended.pop(0)()
            if not self._active:
                if not self._rest():
                    return
                continue
            began = time.perf_counter()
            given = _learn(slots, plan_updates) | _proceed(slots, decoders)
            if plan_updates:
                self.tick_s = time.perf_counter() - began

    def _rest(self) -> bool:
        """Until a prompt that waits can begin; False if none waits."""
        with self._change:
            self._change.wait_for(lambda: not self._waiting or self._ready() is not None)
            return bool(self._waiting)

    def _ready(self) -> RequestState | None:
        """The first that waits for nothing but a slot."""
        ahead = islice(self._waiting, AHEAD)
        return next((job for job in ahead if job.cancelled or job.plan.done()), None)

    def _advance(
        self,
        slots: Slots,
        slot: int,
        given: Losses | str | Exception | None,
        ended: list[Callable[[], None]],
    ) -> Wanted | None:
        """Send the way in `slot` what it wanted, or begin the next; gives what it wants now."""
        while True:
            if slot not in self._active:
                if (job := self._next()) is None:
                    return None
                self._active[slot] = job, self._way(job, slots, slot)
                self.tick_s *= FADING
                given = None
            job, way = self._active[slot]
            try:
                return way.throw(given) if isinstance(given, Exception) else way.send(given)
            except StopIteration as stop:
                end = partial(job.answer.set_result, stop.value)
            except BaseException as error:  # this prompt's own: whoever waits for it is told
                end = partial(job.answer.set_exception, error)
            ended.append(end)
            del self._active[slot]

    def _next(self) -> RequestState | None:
        with self._change:
            while (job := self._ready()) is not None:
                self._change.notify_all()
                self._waiting.remove(job)
                if len(self._waiting) >= AHEAD:
                    self._begin(self._waiting[AHEAD - 1])
                if job.answer.set_running_or_notify_cancel():  # else its future was cancelled
                    return job
            return None


def _learn(slots: Slots, plan_updates: dict[int, Update]) -> dict[int, Losses | str | Exception]:
    """Take the lessons together; if that fails, each alone, so that one fails for itself."""
    slots.repeat([slot for slot, lesson in plan_updates.items() if lesson.reused])
    fresh = {
        slot: [e.tokens for e in lesson.examples]
        for slot, lesson in plan_updates.items()
        if not lesson.reused
    }
    losses: dict[int, Losses | str | Exception] = {}
    try:
        losses |= slots.step(fresh)
    except ModelError:
        for slot, texts in fresh.items():
            try:
                losses |= slots.step({slot: texts})
            except ModelError as error:
                losses[slot] = error
    return losses


def _proceed(
    slots: Slots, decoders: dict[int, SequenceState]
) -> dict[int, Losses | str | Exception]:
    """A token of all answers; if that fails, as for want of memory, they fail and no others."""
    try:
        return {**slots.proceed(decoders)}
    except Exception as error:
        return dict.fromkeys(decoders, error)


_known: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop() -> None:
    """A thread that is within torch when Python ends would abort the process."""
    for each in list(_known):
        each.stop()
