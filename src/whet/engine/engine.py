"""A prompt's whole way: select what tells most about its answer, step on each, answer, reset.

The one place where data spaces and language models meet. Source: SIFT, arXiv 2410.08020, Section 2
and Section 6.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import TracebackType

from whet.adapt.config import AdapterConfig, FullFineTuning, OptimizerConfig, TrainingConfig
from whet.adapt.model import LanguageModel
from whet.adapt.sampling import SamplingParams
from whet.adapt.session import AdaptationSession, AdaptationTrace, StopReason
from whet.adapt.slots import Slots, check_compiled
from whet.adapt.updates import plan_updates
from whet.engine.request import Event, RequestRun, RequestState, TrainingPlan, Way
from whet.engine.scheduler import Scheduler
from whet.engine.types import Output, Request
from whet.errors import WhetError
from whet.maths.arrays import as_count
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retrieval, check_space, retrieve
from whet.space.space import DataSpace
from whet.space.tuning import resolve

SLOTS = 8


class RequestHandle:
    """A prompt that was submitted."""

    def __init__(self, job: RequestState, cancel: Callable[[RequestState], None]) -> None:
        self._job, self._cancel = job, cancel
        self.future = job.answer
        """The same as a future, for those who wait for many."""

    def result(self, timeout_s: float | None = None) -> Output:
        """The answer, when it is there.

        Raises:
            TimeoutError: If it is not there in time; the prompt goes on.
            ValueError: As `Engine.select`, or if prompt and answer exceed the model's context.
            AdaptationError: If a loss, or what the model then says, is not finite.
        """
        return self.future.result(timeout_s)

    def cancel(self) -> None:
        """Stop at the next tick; the answer is what there is by then."""
        self._cancel(self._job)


class Engine:
    """Answers prompts with a model that is sharpened on a data space for each of them.

    Safe in threads. Prompts that run at once share the model, each with weights of its own; between
    prompts the model is as it was, bit for bit.
    """

    def __init__(
        self,
        space: DataSpace | None,
        model: LanguageModel,
        adaptation: AdapterConfig | str | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        options: SelectionConfig | None = None,
        training: TrainingConfig | None = None,
        slots: int | None = None,
        waiting: int = 256,
        niceness: int = 0,
        compiled: bool = False,
    ) -> None:
        """Costs nothing yet; the slots are made for the first prompt.

        Args:
            space: What to select from; none if every query brings its documents.
            model: What is sharpened.
            adaptation: What is trained of it, or by name: full, lora or head.
            optimiser: How.
            options: How texts are selected, where a query does not say.
            training: How texts become gradient steps.
            slots: Prompts at once; 8 unless given, and always 1 for full training.
            waiting: Prompts that may wait for a slot.
            niceness: How far this engine's threads give way to others where there are too few
                cores: 0 to 19, as Unix means it; on Linux only.
            compiled: Have torch compile the network in the first step: a minute, and a C++
                compiler, for steps of full training that take 4 % less from then on. Not for LoRA.

        Raises:
            ValueError: If `space`, `model` or `adaptation` is of another kind, or `compiled` is
                asked for LoRA.
        """
        if space is not None:
            check_space(space)
        if not isinstance(model, LanguageModel):
            raise ValueError(
                f"model is {model!r}: expected a LanguageModel, as "
                "`whet.LanguageModel.from_pretrained(NAME)` gives"
            )
        if isinstance(adaptation, str):
            adaptation = model.adapter_config(adaptation)
        options = options or SelectionConfig()
        self.options = options if space is None else resolve(space, options)
        self.model = model
        self.adaptation = adaptation or model.adapter_config("full")
        check_compiled(self.adaptation, compiled)
        self.optimizer = optimizer or OptimizerConfig()
        self.training = training or TrainingConfig()
        count = as_count(SLOTS if slots is None else slots, "slots")
        count = 1 if isinstance(self.adaptation, FullFineTuning) else count
        self._space, self._slots = space, count
        self._ahead = count + as_count(waiting, "waiting")
        self._lockstep = Scheduler(
            lambda: Slots(model, self.adaptation, self.optimizer, count=count, compiled=compiled),
            self._plan,
            self._way,
            waiting,
            niceness,
        )

    def select(self, prompt: str) -> Retrieval:
        """The texts that `prompt` would be sharpened on, in order, repeats included.

        Raises:
            ValueError: If the prompt is empty, or shares nothing with the space.
        """
        return self._retrieve(Request(prompt=prompt))

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> Output:
        """Sharpen on `prompt`, continue it, put the weights back.

        Raises:
            ValueError: As `select`, and if prompt and answer exceed the model's context.
        """
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        return self._answer(Request(prompt=prompt, sampling=sampling))

    def score(self, text: str, *, prompt: str) -> Output:
        """Sharpen on `prompt`, score `text` given it before and after, put the weights back.

        Raises:
            ValueError: As `select`, and if `text` is empty.
        """
        return self._answer(Request(prompt=prompt, text=text))

    def submit(
        self, query: Request | str, on_event: Callable[[Event], None] | None = None
    ) -> RequestHandle:
        """Queue a prompt. `on_event` is told, in the engine's thread, what happens on its way.

        Events are the `Retrieval`, every `TrainStep`, and pieces of the text as they become certain.

        Raises:
            QueueFullError: If as many prompts wait as may.
            EngineClosedError: If the engine was closed.
        """
        job = _job(query, on_event or (lambda event: None))
        self._lockstep.submit(job)
        return RequestHandle(job, self._lockstep.cancel)

    def stream(self, query: Request | str) -> Iterator[Event | Output]:
        """The events of one prompt as they happen, the answer last; to stop early cancels it."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        handle = self.submit(query, events.put)
        handle.future.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            yield handle.result()
        finally:
            self._lockstep.withdraw([handle._job])

    def run(self, queries: Iterable[Request | str]) -> Iterator[Output]:
        """The answers to many prompts, in their order; to stop early cancels the rest.

        Reads `queries` a queue's length ahead. A prompt that fails is an answer with its `error`.
        For answers as soon as each is ready, `submit` and wait for the handles' futures.

        Raises:
            ValueError: If `queries` is one text.
            EngineClosedError: If the engine was closed.
        """
        if isinstance(queries, str):
            raise ValueError(f"queries is the text {queries[:20]!r}: expected a list of them")
        pending: deque[RequestState] = deque()
        try:
            for query in queries:
                job = _job(query, lambda event: None)
                self._lockstep.submit(job, wait=True)
                pending.append(job)
                while pending and (pending[0].answer.done() or len(pending) >= self._ahead):
                    yield _outcome(pending)
            while pending:
                yield _outcome(pending)
        finally:
            self._lockstep.withdraw(pending)

    def close(self) -> None:
        """Take no more prompts; returns when those taken are answered."""
        self._lockstep.close()

    def __repr__(self) -> str:
        slots = f"{self._slots} slot" + ("s" if self._slots > 1 else "")
        return f"Engine({self.model.name!r}, {self.adaptation}, n={self.options.n}, {slots})"

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, query: Request) -> Output:
        handle = self.submit(query)
        try:
            return handle.result()
        except BaseException:  # whoever waits was interrupted, or the prompt has failed
            self._lockstep.withdraw([handle._job])
            raise

    def _retrieve(self, query: Request) -> Retrieval:
        if self._space is None:
            raise ValueError("engine has no data space to select from: give the query `documents`")
        given = {name: getattr(query, name) for name in ("n", "lam", "alpha")}
        told = {name: value for name, value in given.items() if value is not None}
        return retrieve(self._space, query.prompt, replace(self.options, **told))

    def _way(self, job: RequestState, slots: Slots, slot: int) -> Way:
        run = RequestRun(job)
        session = AdaptationSession(
            slots,
            slot,
            training=self.training,
            init_adapter=job.query.adapter,
            on_step=job.tell,
        )
        return (yield from run.way(session, lambda: self._lockstep.tick_s))

    def _plan(self, job: RequestState) -> TrainingPlan:
        query = job.query
        n = self.options.n if query.n is None else query.n
        began = time.perf_counter()
        if job.cancelled or not query.adapt or n == 0:
            return TrainingPlan((), "n", None)
        if query.documents is not None:
            documents = query.documents[: query.n]
            texts = [(document.id, document.text) for document in documents]
            return TrainingPlan(plan_updates(texts, self.model, self.training), "n", None)
        found = self._retrieve(query)
        sigmas = found.selection.sigma[1:].tolist()
        reason: StopReason = "n" if len(found) == n else "alpha"
        texts = [(document.id, document.text) for document in found.documents]
        learned = plan_updates(texts, self.model, self.training, sigmas=sigmas)
        return TrainingPlan(learned, reason, found, time.perf_counter() - began)


def _job(query: Request | str, tell: Callable[[Event], None]) -> RequestState:
    if isinstance(query, str):
        query = Request(query)
    if not isinstance(query, Request):
        raise ValueError(f"query is {query!r}: expected a text or a whet.Query")
    return RequestState(query, tell)


def _outcome(pending: deque[RequestState]) -> Output:
    """Wait for the first answer and take it off; a failure of its own is an answer too."""
    job = pending[0]
    error = job.answer.exception()
    pending.popleft()
    if error is None:
        return job.answer.result()
    if not isinstance(error, WhetError | ValueError):
        raise error
    trace = getattr(error, "trace", None) or AdaptationTrace()
    return Output(job.query, job.query.text or "", trace, error=error)
