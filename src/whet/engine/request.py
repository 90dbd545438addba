"""One prompt's way through a slot, as if it were alone: learn, score or continue.

A generator that gives a lesson whenever it wants to learn and is sent the losses, and its decoder
when it wants a token and is sent the piece of text.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from whet.adapt.adapters import Adapter
from whet.adapt.model import Score
from whet.adapt.sampling import SequenceState
from whet.adapt.slots import Slots
from whet.engine.types import AdaptationTrace, Output, Request, StopReason, TrainStep
from whet.engine.updates import Update
from whet.errors import AdaptationError, ModelError
from whet.space.retrieve import Retrieval

Event = Retrieval | TrainStep | str
"""What a prompt tells on its way: what was selected, each step, each piece of its text."""
Losses = list[float]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPlan:
    """What a prompt will learn, before it learns any of it."""

    plan_updates: Sequence[Update]
    reason: StopReason
    """Why there are no more."""
    retrieval: Retrieval | None
    seconds: float = 0.0
    """What it took to make."""


Wanted = Update | SequenceState
Given = Any  # losses for a lesson, none if it reused a gradient; a piece of text for a decoder
Way = Generator[Wanted, Given, Output]


@dataclass(slots=True, eq=False)
class RequestState:
    """A prompt that waits or is on its way."""

    query: Request
    tell: Callable[[Event], None]
    answer: "Future[Output]" = field(default_factory=Future)
    plan: Future[TrainingPlan] = field(init=False)
    """Set while it waits, and done when it gets its slot."""
    cancelled: bool = False
    submitted: float = field(default_factory=time.perf_counter)

    def late(self, tick_s: float) -> bool:
        """Whether one more tick would end after the deadline."""
        deadline = self.query.deadline_s
        return deadline is not None and time.perf_counter() - self.submitted + tick_s > deadline


class RequestRun:
    """A prompt in its slot."""

    def __init__(self, job: RequestState, slots: Slots, slot: int) -> None:
        self._job, self._slots, self._slot = job, slots, slot
        self._steps: list[TrainStep] = []
        self._scores: dict[int, Score] = {}
        self.seconds: dict[str, float] = {}

    def way(self, tick_s: Callable[[], float]) -> Way:
        """Learn what is planned, answer.

        Raises:
            AdaptationError: If a loss, the score or what the model says is not finite.
        """
        query, decoder = self._job.query, None
        begun = time.perf_counter()
        if self._job.cancelled:  # before its turn
            return Output(
                query, query.text or "", AdaptationTrace((), "cancelled"), finish="cancelled"
            )
        if query.text is None:  # what cannot be answered is refused before any step is taken
            prompt = query.prompt if query.tokens is None else query.tokens
            decoder = SequenceState(self._slots.model, prompt, query.sampling)
        planned = self._job.plan.result()
        waited = begun - self._job.submitted
        self.seconds["select"] = min(planned.seconds, waited)
        self.seconds["queue"] = waited - self.seconds["select"]
        if planned.retrieval is not None:
            self._job.tell(planned.retrieval)
        self._score(0)
        taken, reason = yield from self._learn(planned, tick_s)
        trained = self._lap("train", begun)
        self._score(taken)
        if decoder is not None:
            yield from self._continue(decoder)
        self._lap("answer", trained)
        text, finish = (
            (query.text or "", "score")
            if decoder is None
            else (decoder.text, decoder.finish or "cancelled")
        )
        trace = AdaptationTrace(tuple(self._steps), "cancelled" if self._job.cancelled else reason)
        adapter = Adapter.of(self._slots, self._slot) if query.keep else None
        tokens = 0 if decoder is None else len(decoder.tokens)
        return Output(
            query, text, trace, planned.retrieval, finish, self._scores, adapter, self.seconds,
            tokens,
        )  # fmt: skip

    def _learn(
        self, plan: TrainingPlan, tick_s: Callable[[], float]
    ) -> Generator[Update, Given, tuple[int, StopReason]]:
        losses: Losses = []
        for number, lesson in enumerate(plan.plan_updates, start=1):
            if self._job.cancelled or self._job.late(tick_s()):
                return number - 1, "cancelled" if self._job.cancelled else "deadline"
            if number == 1:
                self._slots.prepare(
                    [part.tokens for one in plan.plan_updates for part in one.parts]
                )
            start = time.perf_counter()
            losses = (yield lesson) or losses
            self._note(lesson, losses, time.perf_counter() - start)
            if number in self._job.query.score_at:
                self._score(number)
        return len(plan.plan_updates), plan.reason

    def _note(self, lesson: Update, losses: Losses, seconds: float) -> None:
        for part, loss in zip(lesson.parts, losses, strict=True):
            if not math.isfinite(loss):
                raise AdaptationError(
                    f"loss is {loss} at step {len(self._steps) + 1} on document {part.id!r}: "
                    "lower the learning rate",
                    AdaptationTrace(tuple(self._steps)),
                )
            step = TrainStep(part.id, part.sigma, loss, seconds)
            self._steps.append(step)
            self._job.tell(step)

    def _score(self, steps: int) -> None:
        query = self._job.query
        if query.text is None or steps in self._scores:
            return
        model = self._slots.as_slot(self._slot)
        score = model.score(query.text, context=query.prompt)
        if not math.isfinite(score.bits):
            raise AdaptationError(
                f"score is {score.bits} bits after {steps} steps: lower the learning rate",
                AdaptationTrace(tuple(self._steps)),
            )
        self._scores[steps] = score

    def _continue(self, decoder: SequenceState) -> Generator[SequenceState, Given, None]:
        while not (decoder.finish or self._job.cancelled):
            try:
                piece = yield decoder
            except ModelError as error:
                if not self._steps:
                    raise
                raise AdaptationError(str(error), AdaptationTrace(tuple(self._steps))) from error
            if piece:
                self._job.tell(piece)

    def _lap(self, name: str, start: float) -> float:
        end = time.perf_counter()
        self.seconds[name] = end - start
        return end
