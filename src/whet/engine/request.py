"""A request's life cycle, as if it were alone: retrieve, train, then score or generate.

`run_request` is a coroutine: it yields an `Update` and is sent its losses, or a
`SequenceGroup` and is sent the new text; it returns the `Output`.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from whet.adapt.batches import Tokens
from whet.adapt.chat.template import encode_template
from whet.adapt.config import TrainingConfig
from whet.adapt.decoding.sampling import SequenceGroup, TextPiece
from whet.adapt.evidence import Evidence, EvidenceCheck
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession, AdaptationTrace, StopReason, TrainStep
from whet.adapt.slots import Slots
from whet.adapt.updates import Update
from whet.engine.in_context import (
    ContextTokens,
    InContext,
    chat_with_texts,
    lr_factor,
    prompt_with_texts,
    resolve_use,
)
from whet.engine.planning import TrainingPlan
from whet.engine.types import Output, Request
from whet.space.retrieve import Retrieval

Event = Retrieval | TrainStep | TextPiece
"""What is reported while a request runs: what was retrieved, each step, each piece of text."""
Action = Update | SequenceGroup
ActionResult = Any  # the losses of an update, none if it reuses a gradient; new text of sequences
RequestCoroutine = Generator[Action, ActionResult, Output]


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


def run_request(
    state: RequestState,
    slots: Slots,
    slot: int,
    training: TrainingConfig,
    step_time_s: Callable[[], float],
) -> RequestCoroutine:
    """Train as planned, then generate or score.

    Args:
        state: The request, with its plan.
        slots: The slots of the model.
        slot: The slot that is the request's alone.
        training: How it is trained.
        step_time_s: Returns about how long one more step takes.

    Raises:
        AdaptationError: If a loss, the score or the logits are not finite.
        ValueError: If prompt and generated text exceed the model's context.
    """
    request = state.request
    if state.cancelled:  # while it waited
        trace = AdaptationTrace((), "cancelled")
        return Output(request, request.text or "", trace, finish_reason="cancelled")
    documents = _Documents(request, slots.model)
    session = AdaptationSession(
        slots, slot, training=training, init_adapter=request.init_adapter,
        lr_factor=lr_factor(documents.use), on_step=state.on_event,
    )  # fmt: skip
    # a prompt that is too long is an error before the first step
    group = documents.group_without() if request.text is None else None
    clock = _Stages(state)
    plan = clock.plan
    if plan.retrieval is not None:
        state.on_event(plan.retrieval)
    documents.plan = plan
    is_copy = plan.retrieval is not None and bool(plan.retrieval.copy)
    evidence = EvidenceCheck(session, documents.measured_prompt(group), is_copy=is_copy)
    scores = _Scores(request, session, documents)
    reason = yield from _train(state, session, documents, scores, evidence, step_time_s)
    answer_score = None
    if group is None:
        num_steps = evidence.finish(scores.taken)
        answer_score = scores.add_answer(num_steps)
        clock.end("train")
    else:
        clock.end("train")
        group, num_steps = yield from evidence.decode(
            documents.group_with() or group,
            scores.taken,
            restart=documents.group_without,
            should_stop=lambda: state.cancelled,
            on_text=state.on_event,
        )
    clock.end("generate")
    if num_steps < scores.taken:
        reason = "evidence"
    reason = "cancelled" if state.cancelled else reason
    output = Output(
        request,
        request.text or "",
        AdaptationTrace(session.steps, reason),
        plan.retrieval,
        scores=scores.scores,
        adapter=session.adapter if request.return_adapter else None,
        seconds=clock.seconds,
        evidence=documents.evidence(
            evidence.bits_per_byte, num_steps, session.steps, clock.seconds
        ),
        answer_score=answer_score,
    )
    return output if group is None else _with_texts(output, group)


def _train(
    state: RequestState,
    session: AdaptationSession,
    documents: "_Documents",
    scores: "_Scores",
    evidence: EvidenceCheck,
    step_time_s: Callable[[], float],
) -> Generator[Update, list[float], StopReason]:
    """Take the planned steps, and score the text before, along and after them."""

    def before_update(update: Update) -> StopReason | None:
        if (reason := _stop_reason(state, step_time_s())) is None:
            evidence.before_first()
        return reason

    def after_update(update: Update, number: int) -> None:
        documents.note(update)
        scores.after_update(number)
        evidence.after_update(number)

    plan = documents.plan
    scores.add(0)
    reason = yield from session.run(
        plan.updates if documents.use != "context" else (),
        limit=plan.num_texts,
        before_update=before_update,
        after_update=after_update,
    )
    scores.add(scores.taken, is_last=True)
    return reason or plan.stop_reason


def _with_texts(output: Output, group: SequenceGroup) -> Output:
    """`output` with the texts that were generated."""
    texts, first = tuple(sequence.result for sequence in group.sequences), group.sequences[0]
    return replace(
        output,
        text=texts[0].text,
        finish_reason=texts[0].finish_reason,
        num_tokens=sum(text.num_tokens for text in texts),
        num_prompt_tokens=len(first.prompt),
        texts=texts,
        prompt_logprobs=first.prompt_logprobs or (),
    )


class _Documents:
    """The documents of a request in the model's context, as far as its `use` asks for that."""

    def __init__(self, request: Request, model: LanguageModel) -> None:
        self._request, self._model, self.plan = request, model, TrainingPlan()
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

    def note(self, update: Update) -> None:
        """Documents are read in the order of the steps on them."""
        self._trained |= dict.fromkeys(example.place for example in update.examples)

    def evidence(
        self,
        bits_per_byte: Mapping[int, float],
        num_steps: int,
        steps: Sequence[TrainStep],
        seconds: Mapping[str, float],
    ) -> Evidence:
        """What an answer rests on, by the weights after `num_steps` of `steps`."""
        sigmas = [step.sigma for step in steps if step.sigma is not None]
        if not steps and self.in_context and self.plan.retrieval is not None:
            sigmas = self.plan.retrieval.selection.sigma.tolist()
        return Evidence(
            bits_per_byte,
            num_steps,
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
        places = list(self._trained | self.plan.planned)
        if self.use == "steps" or not places:
            return None
        texts = [self.plan.documents[place].text for place in places]
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
        places = list(self._trained | (self.plan.planned if is_answer else {}))
        if self._scoring is None or not places:
            return None
        texts = [self.plan.documents[place].text for place in places]
        if is_answer:
            self._set_used(places, self._scoring.examples(texts))
        return self._scoring.score(texts)

    def _set_used(self, places: Sequence[int], fitted: ContextTokens) -> None:
        self.in_context = tuple(self.plan.documents[places[i]].id for i in fitted.used)

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

    def after_update(self, number: int) -> None:
        self.taken = number
        if number in self._request.eval_steps:
            self.add(number)

    def add(self, taken: int, *, is_last: bool = False) -> None:
        """Score the text after `taken` updates, at 0 without any documents."""
        if self._request.text is None or taken in self.scores:
            return
        in_context = self._in_context(is_answer=is_last) if taken else None
        self.scores[taken] = in_context or self._alone()

    def add_answer(self, num_steps: int) -> Score | None:
        """Score the text by the model that answers; with documents in its context, return that."""
        if self._request.text is None:
            return None
        if self._documents.use == "steps":
            self.add(num_steps)
            return None
        if num_steps == self.taken and self._documents.in_context:
            return self.scores[num_steps]
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
