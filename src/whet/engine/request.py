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

from whet.adapt.batches import Tokens
from whet.adapt.chat.template import encode_template
from whet.adapt.config import TrainingConfig
from whet.adapt.decoding.sampling import GeneratedText, SequenceGroup, TextPiece
from whet.adapt.evidence import Evidence, EvidenceCheck
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession, AdaptationTrace, StopReason, TrainStep
from whet.adapt.slots import Slots
from whet.adapt.updates import COPY_LEARNED_RATIO, Update, plan_updates
from whet.data.documents import Document
from whet.engine.in_context import (
    ContextTokens,
    InContext,
    chat_with_texts,
    last_of_user,
    lr_factor,
    prompt_with_texts,
    resolve_use,
)
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

    updates: Sequence[Update] = ()
    num_texts: int = 0
    """How many texts of the updates are to be trained on; the others are a reserve."""
    stop_reason: StopReason = "n"
    """Why there are no more updates."""
    retrieval: Retrieval | None = None
    seconds: float = 0.0
    """Wall time of retrieval and planning."""
    documents: Sequence[Document] = ()
    """What the updates were planned for."""

    @property
    def planned(self) -> dict[int, None]:
        """Places of the documents that are to be used, in the order of the updates."""
        places = (example.place for update in self.updates for example in update.examples)
        return dict.fromkeys(place for place in places if place < self.num_texts)


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
            return TrainingPlan()
        question = question_of(request)
        if request.documents is not None:
            limit = None if request.selection is None else request.selection.n
            documents = request.documents[:limit]
            updates = plan_updates(
                documents, self.model, self.training, learned_ratio=0.0, prompt=question
            )
            return TrainingPlan(updates, len(documents), documents=documents)
        retrieval = self.retrieve(request)
        updates = plan_retrieval(retrieval, self.model, self.training, question)
        stopped = config.stop_alpha is not None and not retrieval.copy and len(retrieval) < config.n
        return TrainingPlan(
            updates,
            len(retrieval),
            "alpha" if stopped else "n",
            retrieval,
            time.perf_counter() - start,
            retrieval.training_documents(),
        )

    def run(
        self, state: RequestState, slots: Slots, slot: int, step_time_s: Callable[[], float]
    ) -> RequestCoroutine:
        """Train as planned, then generate or score.

        Raises:
            AdaptationError: If a loss, the score or the logits are not finite.
            ValueError: If prompt and generated text exceed the model's context.
        """
        request, group = state.request, None
        documents = _Documents(request, self.model)
        session = AdaptationSession(
            slots, slot, training=self.training, init_adapter=request.init_adapter,
            lr_factor=lr_factor(documents.use), on_step=state.on_event,
        )  # fmt: skip
        if state.cancelled:  # while it waited
            trace = AdaptationTrace((), "cancelled")
            return Output(request, request.text or "", trace, finish_reason="cancelled")
        if request.text is None:  # a prompt that is too long is an error before the first step
            group = documents.group_without()
        clock = _Stages(state)
        plan = clock.plan
        if plan.retrieval is not None:
            state.on_event(plan.retrieval)
        documents.set_plan(plan)
        scores = _Scores(request, session, documents)
        is_copy = plan.retrieval is not None and bool(plan.retrieval.copy)
        evidence = EvidenceCheck(session, documents.measured_prompt(group), is_copy=is_copy)
        scores.add(0)

        def before_update(update: Update) -> StopReason | None:
            if (reason := _stop_reason(state, step_time_s())) is None:
                evidence.before_first()
            return reason

        def after_update(update: Update, number: int) -> None:
            documents.note(update)
            scores.after_update(update, number)
            evidence.after_update(number)

        reason = yield from session.run(
            plan.updates if documents.use != "context" else (),
            limit=plan.num_texts,
            before_update=before_update,
            after_update=after_update,
        )
        scores.add(scores.taken, is_last=True)
        kept, answer_score = scores.taken, None
        if group is None:
            kept = evidence.finish(scores.taken)
            answer_score = scores.add_answer(kept)
        clock.end("train")
        if group is not None:
            group, kept = yield from evidence.decode(
                documents.group_with() or group,
                scores.taken,
                restart=documents.group_without,
                should_stop=lambda: state.cancelled,
                on_text=state.on_event,
            )
        clock.end("generate")
        reason = "evidence" if kept < scores.taken else reason or plan.stop_reason
        reason = "cancelled" if state.cancelled else reason
        scored = GeneratedText(request.text or "", "score", 0)
        texts = tuple(sequence.result for sequence in group.sequences) if group else (scored,)
        return Output(
            request,
            texts[0].text,
            AdaptationTrace(session.steps, reason),
            plan.retrieval,
            texts[0].finish_reason,
            scores.scores,
            session.adapter if request.return_adapter else None,
            clock.seconds,
            documents.evidence(evidence.bits_per_byte, kept, session.steps, clock.seconds),
            answer_score=answer_score,
            num_tokens=sum(text.num_tokens for text in texts),
            num_prompt_tokens=len(group.sequences[0].prompt) if group else 0,
            texts=texts if group else (),
            prompt_logprobs=(group.sequences[0].prompt_logprobs or ()) if group else (),
        )


def question_of(request: Request) -> str:
    """What a request asks: the user's last message, or the prompt."""
    messages = request.messages or ()
    place = last_of_user(messages)
    return request.prompt if place is None else str(messages[place]["content"])


def plan_retrieval(
    retrieval: Retrieval, model: LanguageModel, training: TrainingConfig, prompt: str
) -> list[Update]:
    """The updates on what was retrieved for `prompt`.

    As many of them are to be taken as documents were selected.
    """
    return plan_updates(
        retrieval.training_documents(),
        model,
        training,
        n=len(retrieval),
        sigmas=training_sigmas(retrieval),
        learned_ratio=learned_ratio(retrieval, training),
        prompt=prompt,
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


class _Documents:
    """The documents of a request in the model's context, as far as its `use` asks for that."""

    def __init__(self, request: Request, model: LanguageModel) -> None:
        self._request, self._model, self._plan = request, model, TrainingPlan()
        is_chat = request.messages is not None and request.sampling.prompt_logprobs is None
        self.use = resolve_use(request.use, model, is_chat=is_chat)
        """What they are used for."""
        self._scoring = None
        if self.use != "steps" and request.text is not None:
            left = request.prompt if request.context is None else request.context
            self._scoring = InContext(model, request.text, left=left)
        self._trained: dict[int, None] = {}
        self.in_context: tuple[str, ...] = ()
        """Ids of the documents in the context of the answer."""

    def set_plan(self, plan: TrainingPlan) -> None:
        self._plan = plan

    def note(self, update: Update) -> None:
        """Documents are read in the order of the steps on them."""
        self._trained |= dict.fromkeys(example.place for example in update.examples)

    def evidence(
        self,
        bits_per_byte: Mapping[int, float],
        kept: int,
        steps: Sequence[TrainStep],
        seconds: Mapping[str, float],
    ) -> Evidence:
        """What an answer rests on, by the weights after `kept` of `steps`."""
        sigmas = [step.sigma for step in steps if step.sigma is not None]
        if not steps and self.in_context and self._plan.retrieval is not None:
            sigmas = self._plan.retrieval.selection.sigma.tolist()
        return Evidence(
            bits_per_byte,
            kept,
            dict(Counter(step.id for step in steps)),
            min(sigmas, default=None),
            sum(seconds.values()),
            self.in_context,
            self.use if self._request.use == "auto" else None,
        )

    def group_without(self) -> SequenceGroup:
        """The sequences to generate, without documents.

        Raises:
            ValueError: If the prompt and the generated text exceed the context.
        """
        request = self._request
        prompt: str | Sequence[int] = request.prompt
        if request.token_ids is not None:
            prompt = request.token_ids
        elif request.messages is not None:
            prompt = [*self._model.encode_chat(request.messages, request.tools), *self._prefix()]
        return SequenceGroup(self._model, prompt, request.sampling)

    def measured_prompt(self, group: SequenceGroup | None) -> str | Tokens:
        """The prompt that the evidence is measured by: of a conversation the text alone."""
        if group is None or self._request.messages is not None:
            return self._request.prompt
        return group.sequences[0].prompt[1:]

    def group_with(self) -> SequenceGroup | None:
        """The same with the documents that fit; None without any to read."""
        request, model, sampling = self._request, self._model, self._request.sampling
        places = list(self._trained | self._plan.planned)
        if self.use == "steps" or not places:
            return None
        texts = [self._plan.documents[place].text for place in places]
        if request.messages is not None:
            prefix = self._prefix()
            fitted = chat_with_texts(
                model, texts, request.messages, request.tools, sampling.max_tokens + len(prefix)
            )
        else:
            prefix = []
            prompt = request.prompt if request.token_ids is None else request.token_ids
            fitted = prompt_with_texts(model, texts, prompt, sampling.max_tokens)
        self._set_used(places, fitted)
        return SequenceGroup(model, [*fitted.ids.tolist(), *prefix], sampling)

    def score(self, *, is_answer: bool) -> Score | None:
        """The score of the text after the documents that were used so far, or all for the answer.

        None if the request has no documents to read.
        """
        places = list(self._trained | (self._plan.planned if is_answer else {}))
        if self._scoring is None or not places:
            return None
        texts = [self._plan.documents[place].text for place in places]
        if is_answer:
            self._set_used(places, self._scoring.examples(texts))
        return self._scoring.score(texts)

    def _set_used(self, places: Sequence[int], fitted: ContextTokens) -> None:
        self.in_context = tuple(self._plan.documents[places[i]].id for i in fitted.used)

    def _prefix(self) -> list[int]:
        prefix = self._request.answer_prefix
        return encode_template(self._model.chat_tokenizer, prefix) if prefix else []


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

    def __init__(self, request: Request, session: AdaptationSession, documents: _Documents) -> None:
        self._request, self._session, self._documents = request, session, documents
        self.scores: dict[int, Score] = {}
        self.taken = 0

    def after_update(self, update: Update, number: int) -> None:
        self.taken = number
        if number in self._request.eval_steps:
            self.add(number)

    def add(self, taken: int, *, is_last: bool = False) -> None:
        """Score the text after `taken` updates, at 0 without any documents."""
        if self._request.text is None or taken in self.scores:
            return
        in_context = self._in_context(is_answer=is_last) if taken else None
        self.scores[taken] = in_context or self._alone()

    def add_answer(self, kept: int) -> Score | None:
        """Score the text by the model that answers; with documents in its context, return that."""
        if self._request.text is None:
            return None
        if self._documents.use == "steps":
            self.add(kept)
            return None
        if kept == self.taken and self._documents.in_context:
            return self.scores[kept]
        return self._in_context(is_answer=True)

    def _alone(self) -> Score:
        request = self._request
        context = request.prompt if request.context is None else request.context
        return self._session.score(request.text or "", context=context)

    def _in_context(self, *, is_answer: bool) -> Score | None:
        _ = self._session.model  # computes with the session's weights
        score = self._documents.score(is_answer=is_answer)
        return None if score is None else self._session.check(score)


def _stop_reason(state: RequestState, step_time_s: float) -> StopReason | None:
    if state.cancelled:
        return "cancelled"
    return "deadline" if state.is_past_deadline(step_time_s) else None
