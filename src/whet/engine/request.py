"""A request's life cycle, as if it were alone: retrieve, train, then score or generate.

`RequestRunner.run` is a coroutine: it yields an `Update` and is sent its losses, or a
`SequenceGroup` and is sent the new text; it returns the `Output`.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from whet.adapt.config import TrainingConfig
from whet.adapt.decoding.sampling import GeneratedText, SequenceGroup, TextPiece
from whet.adapt.evidence import Evidence, EvidenceCheck
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession, AdaptationTrace, StopReason, TrainStep
from whet.adapt.slots import Slots
from whet.adapt.updates import COPY_LEARNED_RATIO, Update, plan_updates
from whet.engine.types import Output, Request
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.space.retrieve import Retrieval, retrieve
from whet.space.space import DataSpace
from whet.space.tuning import resolve

Event = Retrieval | TrainStep | TextPiece
"""What is reported while a request runs: what was retrieved, each step, each piece of text."""
Action = Update | SequenceGroup
ActionResult = Any  # the losses of an update, none if it reuses a gradient; new text of sequences
RequestCoroutine = Generator[Action, ActionResult, Output]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPlan:
    """The updates for one request, before the first of them."""

    updates: Sequence[Update]
    num_texts: int
    """How many texts of the updates are to be trained on; the others are a reserve."""
    stop_reason: StopReason
    """Why there are no more updates."""
    retrieval: Retrieval | None
    seconds: float = 0.0
    """Wall time of retrieval and planning."""


@dataclass(slots=True, eq=False)
class RequestState:
    """A request that waits or runs."""

    request: Request
    on_event: Callable[[Event], None]
    output: "Future[Output]" = field(default_factory=Future)
    client: str = ""
    """Who asks: clients are served in turn."""
    weight: int = 1
    """How often its client is served in a round."""
    plan: Future[TrainingPlan] | None = None
    """Set while the request waits, and done when it gets a slot."""
    cancelled: bool = False
    submitted: float = field(default_factory=time.perf_counter)

    def is_past_deadline(self, step_time_s: float) -> bool:
        """Whether one more step would end after the deadline."""
        deadline = self.request.deadline_s
        return (
            deadline is not None and time.perf_counter() - self.submitted + step_time_s > deadline
        )


@dataclass(frozen=True, slots=True, eq=False)
class RequestRunner:
    """Runs the requests of one engine."""

    model: LanguageModel
    space: DataSpace | None
    selection: SelectionConfig | ResolvedSelection
    training: TrainingConfig

    def retrieve(self, request: Request) -> Retrieval:
        """The documents to train on for `request`; see `Engine.retrieve`."""
        if request.retrieval is not None:
            return request.retrieval
        space = self.space if request.space is None else request.space
        if space is None:
            raise ValueError(
                "engine has no data space to select from: give the request a `space`, a "
                "`retrieval` or `documents`"
            )
        config = request.selection or self.selection
        if isinstance(config, SelectionConfig):
            config = resolve(space, config)
        query = request.prompt if request.query is None else request.query
        return retrieve(space, query, config, for_training=True)

    def plan(self, state: RequestState) -> TrainingPlan:
        """Retrieve, and arrange the documents into updates."""
        request, start = state.request, time.perf_counter()
        config = request.selection or self.selection
        if state.cancelled or not request.adapt or config.n == 0:
            return TrainingPlan((), 0, "n", None)
        if request.documents is not None:
            limit = None if request.selection is None else request.selection.n
            texts = [(document.id, document.text) for document in request.documents[:limit]]
            return TrainingPlan(
                plan_updates(texts, self.model, self.training, learned_ratio=0.0),
                len(texts),
                "n",
                None,
            )
        retrieval = self.retrieve(request)
        updates = plan_retrieval(retrieval, self.model, self.training)
        stopped = config.stop_alpha is not None and not retrieval.copy and len(retrieval) < config.n
        reason: StopReason = "alpha" if stopped else "n"
        return TrainingPlan(updates, len(retrieval), reason, retrieval, time.perf_counter() - start)

    def run(
        self, state: RequestState, slots: Slots, slot: int, step_time_s: Callable[[], float]
    ) -> RequestCoroutine:
        """Train as planned, then generate or score.

        Raises:
            AdaptationError: If a loss, the score or the logits are not finite.
            ValueError: If prompt and generated text exceed the model's context.
        """
        request, group = state.request, None
        session = AdaptationSession(
            slots,
            slot,
            training=self.training,
            init_adapter=request.init_adapter,
            on_step=state.on_event,
        )
        if state.cancelled:  # while it waited
            trace = AdaptationTrace((), "cancelled")
            return Output(request, request.text or "", trace, finish_reason="cancelled")
        if request.text is None:  # a prompt that is too long is an error before the first step
            prompt = request.prompt if request.token_ids is None else request.token_ids
            group = SequenceGroup(self.model, prompt, request.sampling)
        clock = _Stages(state)
        if clock.plan.retrieval is not None:
            state.on_event(clock.plan.retrieval)
        scores, evidence = _Scores(request, session), EvidenceCheck(session, request.prompt)
        scores.add(0)

        def before_update(update: Update) -> StopReason | None:
            if (reason := _stop_reason(state, step_time_s())) is None:
                evidence.before_first()
            return reason

        def after_update(update: Update, number: int) -> None:
            scores.after_update(update, number)
            evidence.after_update(number)

        reason = yield from session.run(
            clock.plan.updates,
            limit=clock.plan.num_texts,
            before_update=before_update,
            after_update=after_update,
        )
        scores.add(scores.taken)
        kept = evidence.finish(scores.taken)
        scores.add(kept)
        clock.end("train")
        if group is not None:
            yield from session.decode(
                group, should_stop=lambda: state.cancelled, on_text=state.on_event
            )
        clock.end("generate")
        reason = reason or clock.plan.stop_reason
        reason = "evidence" if kept < scores.taken else reason
        reason = "cancelled" if state.cancelled else reason
        scored = GeneratedText(request.text or "", "score", 0)
        texts = tuple(sequence.result for sequence in group.sequences) if group else (scored,)
        return Output(
            request,
            texts[0].text,
            AdaptationTrace(session.steps, reason),
            clock.plan.retrieval,
            texts[0].finish_reason,
            scores.scores,
            session.adapter if request.return_adapter else None,
            clock.seconds,
            _summary(session.steps, evidence.bits_per_byte, kept, clock.seconds),
            sum(text.num_tokens for text in texts),
            texts=texts if group else (),
            prompt_logprobs=(group.sequences[0].prompt_logprobs or ()) if group else (),
        )


def plan_retrieval(
    retrieval: Retrieval, model: LanguageModel, training: TrainingConfig
) -> list[Update]:
    """The updates on what was retrieved, of which as many are to be taken as were selected."""
    return plan_updates(
        [(document.id, document.text) for document in retrieval.training_documents()],
        model,
        training,
        n=len(retrieval),
        sigmas=training_sigmas(retrieval),
        learned_ratio=learned_ratio(retrieval, training),
    )


def training_sigmas(retrieval: Retrieval) -> list[float | None]:
    """σ after each of the documents to train on; None for a copy and for the reserve."""
    count = len(retrieval.training_documents())
    sigmas = [] if retrieval.copy else retrieval.selection.sigma[1:].tolist()
    return [*sigmas, *[None] * (count - len(sigmas))]


def learned_ratio(retrieval: Retrieval, training: TrainingConfig) -> float:
    """The share of its first loss below which a text is learned."""
    return (
        COPY_LEARNED_RATIO if retrieval.copy and training.learned_ratio else training.learned_ratio
    )


def _summary(
    steps: Sequence[TrainStep],
    bits_per_byte: Mapping[int, float],
    kept: int,
    seconds: Mapping[str, float],
) -> Evidence:
    sigmas = [step.sigma for step in steps if step.sigma is not None]
    passages = dict(Counter(step.id for step in steps))
    last = min(sigmas, default=None)
    return Evidence(bits_per_byte, kept, passages, last, sum(seconds.values()))


class _Stages:
    """The wall time of each stage of a request that has just been given its slot."""

    def __init__(self, state: RequestState) -> None:
        self._start = time.perf_counter()
        assert state.plan is not None
        self.plan = state.plan.result()
        waited = self._start - state.submitted
        select = min(self.plan.seconds, waited)
        self.seconds = {"select": select, "queue": waited - select}

    def end(self, stage: str) -> None:
        start, self._start = self._start, time.perf_counter()
        self.seconds[stage] = self._start - start


class _Scores:
    """The scores of a request's text after 0, `eval_steps` and all updates."""

    def __init__(self, request: Request, session: AdaptationSession) -> None:
        self._request, self._session = request, session
        self.scores: dict[int, Score] = {}
        self.taken = 0

    def after_update(self, update: Update, number: int) -> None:
        self.taken = number
        if number in self._request.eval_steps:
            self.add(number)

    def add(self, taken: int) -> None:
        request = self._request
        if request.text is not None and taken not in self.scores:
            context = request.prompt if request.context is None else request.context
            self.scores[taken] = self._session.score(request.text, context=context)


def _stop_reason(state: RequestState, step_time_s: float) -> StopReason | None:
    if state.cancelled:
        return "cancelled"
    return "deadline" if state.is_past_deadline(step_time_s) else None
