"""The one thread that owns the weights: prompts in slots, a step of each in every tick.

What a prompt will learn is planned beside it, while the prompt waits, so that a search that takes
long holds up its own prompt only. Every prompt's way is a generator (`whet.engine.way`).
A tick asks each what it wants next, takes all lessons together and then a token of all answers; a
slot whose way has ended takes the next prompt in the same tick.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from whet.adapt.decode import Decoder
from whet.adapt.slots import Slots
from whet.engine.lessons import Lesson
from whet.engine.way import Job, Losses, Plan, Wanted, Way
from whet.errors import EngineClosed, ModelError, QueueFull

PLANNERS = 2
AHEAD = 16  # prompts that wait with a plan or get one; a plan holds its candidates' vectors


def give_way(niceness: int) -> None:
    """Let this thread, and those that it starts, wait for others where there are too few cores.

    Does nothing but on Linux, where each thread has a niceness of its own; 19 is the most.
    """
    if niceness and sys.platform == "linux":
        nice = max(niceness, os.getpriority(os.PRIO_PROCESS, 0))
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class Lockstep:
    """Takes jobs from any thread; runs them in its own, which lives while there are any."""

    def __init__(
        self,
        slots: Callable[[], Slots],
        plan: Callable[[Job], Plan],
        way: Callable[[Job, Slots, int], Way],
        room: int,
        niceness: int,
    ) -> None:
        self._make, self._plan, self._way, self._room = slots, plan, way, room
        self._begins = partial(give_way, niceness)
        self._planners = ThreadPoolExecutor(PLANNERS, "whet-plan", self._begins)
        self._slots: Slots | None = None
        self._waiting: deque[Job] = deque()
        self._active: dict[int, tuple[Job, Way]] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.tick_s = 0.0
        """How long the last tick took."""

    def submit(self, job: Job, *, wait: bool = False) -> None:
        """Queue a job; with `wait`, until there is room.

        Raises:
            QueueFull: If there is none.
            EngineClosed: If `close` was called.
        """
        with self._change:
            while wait and len(self._waiting) >= self._room and not self._closed:
                self._change.wait()
            if self._closed:
                raise EngineClosed("engine is closed: make a new one")
            if len(self._waiting) >= self._room:
                raise QueueFull(
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

    def close(self) -> None:
        """Take no more jobs and wait until those taken have ended."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._planners.shutdown()

    def _begin(self, job: Job) -> None:
        job.plan = self._planners.submit(self._plan, job)
        job.plan.add_done_callback(self._wake)

    def _wake(self, _: Future[Plan]) -> None:
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
            except Exception as error:  # nobody may wait for ever: they are all told
                jobs = [job for job, _ in self._active.values()]
                self._active.clear()
                while job := self._next():
                    jobs.append(job)
                ended += [partial(job.answer.set_exception, error) for job in jobs]
            for end in ended:
                end()
            with self._change:
                if not self._waiting:
                    self._thread = None
                    return

    def _ticks(self, slots: Slots, ended: list[Callable[[], None]]) -> None:
        given: dict[int, Losses | str | Exception] = {}
        while True:
            began = time.perf_counter()
            lessons: dict[int, Lesson] = {}
            decoders: dict[int, Decoder] = {}
            plans: list[Future[Plan]] = []
            for slot in range(len(slots)):
                match self._advance(slots, slot, given.get(slot), ended):
                    case Lesson() as lesson:
                        lessons[slot] = lesson
                    case Decoder() as decoder:
                        decoders[slot] = decoder
                    case Future() as plan:
                        plans.append(plan)
            if not self._active:
                return
            while ended:
                ended.pop(0)()
            given = _learn(slots, lessons) | _proceed(slots, decoders)
            if lessons:
                self.tick_s = time.perf_counter() - began
            elif len(plans) == len(self._active):
                self._rest(plans, room=len(plans) < len(slots))

    def _rest(self, plans: Sequence[Future[Plan]], *, room: bool) -> None:
        """Until one of the plans is there, or another prompt for which there is a slot."""
        with self._change:
            self._change.wait_for(
                lambda: any(plan.done() for plan in plans) or (room and self._waiting)
            )

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
                given = None
            job, way = self._active[slot]
            try:
                return way.throw(given) if isinstance(given, Exception) else way.send(given)
            except StopIteration as stop:
                end = partial(job.answer.set_result, stop.value)
            except Exception as error:  # this prompt's own: whoever waits for it is told
                end = partial(job.answer.set_exception, error)
            ended.append(end)
            del self._active[slot]

    def _next(self) -> Job | None:
        with self._change:
            while self._waiting:
                self._change.notify()
                job = self._waiting.popleft()
                if len(self._waiting) >= AHEAD:
                    self._begin(self._waiting[AHEAD - 1])
                if job.answer.set_running_or_notify_cancel():  # else its future was cancelled
                    return job
            return None


def _learn(slots: Slots, lessons: dict[int, Lesson]) -> dict[int, Losses | str | Exception]:
    """Take the lessons together; if that fails, each alone, so that one fails for itself."""
    slots.repeat([slot for slot, lesson in lessons.items() if lesson.reused])
    fresh = {
        slot: [part.tokens for part in lesson.parts]
        for slot, lesson in lessons.items()
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


def _proceed(slots: Slots, decoders: dict[int, Decoder]) -> dict[int, Losses | str | Exception]:
    """A token of all answers; if that fails, as for want of memory, they fail and no others."""
    try:
        return {**slots.proceed(decoders)}
    except Exception as error:
        return dict.fromkeys(decoders, error)
