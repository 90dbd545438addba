"""One prompt's way through a slot, as if it were alone: learn, score or continue.

A generator that gives a lesson whenever it wants to learn and is sent the losses, and its decoder
when it wants a token and is sent the piece of text.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from whet.adapt.model import Score
from whet.adapt.sampling import SequenceState
from whet.adapt.session import AdaptationSession, AdaptationTrace, StopReason, TrainStep
from whet.adapt.updates import Update
from whet.engine.types import Output, Request
from whet.space.retrieve import Retrieval

Event = Retrieval | TrainStep | str
"""What a prompt tells on its way: what was selected, each step, each piece of its text."""
Losses = list[float]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPlan:
    """What a prompt will learn, before it learns any of it."""

    updates: Sequence[Update]
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

    def __init__(self, job: RequestState) -> None:
        self._job = job
        self._scores: dict[int, Score] = {}
        self.seconds: dict[str, float] = {}

    def way(self, session: AdaptationSession, tick_s: Callable[[], float]) -> Way:
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
            decoder = SequenceState(session.model, prompt, query.sampling)
        planned = self._job.plan.result()
        waited = begun - self._job.submitted
        self.seconds["select"] = min(planned.seconds, waited)
        self.seconds["queue"] = waited - self.seconds["select"]
        if planned.retrieval is not None:
            self._job.tell(planned.retrieval)
        self._score(session, 0)
        taken = 0

        def should_stop() -> StopReason | None:
            if self._job.cancelled:
                return "cancelled"
            return "deadline" if self._job.late(tick_s()) else None

        def after_update(number: int) -> None:
            nonlocal taken
            taken = number
            if number in query.score_at:
                self._score(session, number)

        reason = yield from session.run(
            planned.updates, should_stop=should_stop, after_update=after_update
        )
        trained = self._lap("train", begun)
        self._score(session, taken)
        if decoder is not None:
            yield from session.decode(
                decoder, should_stop=lambda: self._job.cancelled, on_text=self._job.tell
            )
        self._lap("answer", trained)
        text, finish = (
            (query.text or "", "score")
            if decoder is None
            else (decoder.text, decoder.finish or "cancelled")
        )
        reason = "cancelled" if self._job.cancelled else reason or planned.reason
        adapter = session.adapter if query.keep else None
        tokens = 0 if decoder is None else len(decoder.tokens)
        return Output(
            query, text, AdaptationTrace(session.steps, reason), planned.retrieval, finish,
            self._scores, adapter, self.seconds, tokens,
        )  # fmt: skip

    def _score(self, session: AdaptationSession, steps: int) -> None:
        query = self._job.query
        if query.text is not None and steps not in self._scores:
            self._scores[steps] = session.score(query.text, context=query.prompt)

    def _lap(self, name: str, start: float) -> float:
        end = time.perf_counter()
        self.seconds[name] = end - start
        return end
