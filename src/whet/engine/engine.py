"""Test-time fine-tuning of a model on a data space, for many prompts at once.

The engine is where data spaces and language models meet. Source: SIFT, arXiv 2410.08020, Sections 2
and 6.
"""

import asyncio
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any

from whet.adapt.config import (
    AdapterConfig,
    FullFineTuning,
    OptimizerConfig,
    TrainingConfig,
    suited_steps,
)
from whet.adapt.decoding.sampling import SamplingParams
from whet.adapt.model import LanguageModel
from whet.adapt.session import AdaptationTrace
from whet.adapt.slots import Slots
from whet.adapt.tuners.state_cache import CacheLimits
from whet.adapt.tuners.tuner import check_compile
from whet.config import Renamed, renamed_keywords
from whet.engine.planning import Planner
from whet.engine.request import Event, RequestState
from whet.engine.scheduler import Scheduler
from whet.engine.types import Output, Request
from whet.errors import WhetError
from whet.io import count_of
from whet.maths.arrays import as_count
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.space.retrieve import Retrieval, check_space
from whet.space.space import DataSpace
from whet.space.tuning import resolve

SLOTS = 8  # by default; 1 for full fine-tuning


class RequestHandle:
    """A submitted request."""

    def __init__(self, state: RequestState, cancel: Callable[[RequestState], None]) -> None:
        self._state, self._cancel = state, cancel
        self.future = state.output
        """The output as a `concurrent.futures.Future`."""

    def __repr__(self) -> str:
        state = "finished" if self.future.done() else "not finished"
        return f"RequestHandle({self._state.request.prompt[:40]!r}, {state})"

    def __await__(self) -> Generator[Any, None, Output]:
        return asyncio.shield(asyncio.wrap_future(self.future)).__await__()

    def result(self, timeout_s: float | None = None) -> Output:
        """Wait for the output; in a coroutine, `await handle` does so.

        Raises:
            TimeoutError: If it is not there in time; the request goes on.
            ValueError: As `Engine.retrieve`, or if the prompt and the generated text exceed the
                model's context.
            AdaptationError: If a loss, a score or the logits are not finite.
        """
        return self.future.result(timeout_s)

    def cancel(self) -> None:
        """Stop before the next step; the output contains what there is by then."""
        self._cancel(self._state)


class Engine:
    """Adapts a model to each prompt with documents of a data space, then generates or scores.

    >>> import whet
    >>> texts = ["Bees dance to show where flowers are.", "Foxes sleep by day."]
    >>> space = whet.DataSpace.build(texts, "my.whet")
    >>> model = whet.LanguageModel.from_pretrained("whet-pico", device="cpu")
    >>> with whet.Engine(space, model, selection=whet.SelectionConfig(n=3)) as engine:
    ...     engine.generate("Bees dance to", max_tokens=8)
    Output('...', 3 steps, length)

    Can be used from several threads. Requests that run at once share the model, each with its own
    weights; between requests the model's weights are restored bit for bit.
    """

    run = Renamed("generate_many")
    select = Renamed("retrieve")
    options = Renamed("selection")
    adaptation = Renamed("adapter")

    @renamed_keywords(
        adaptation="adapter",
        mode="adapter",
        options="selection",
        optimiser="optimizer",
        waiting="max_queue_size",
        niceness="background_niceness",
        compiled="torch_compile",
    )
    def __init__(
        self,
        space: DataSpace | None,
        model: LanguageModel,
        adapter: AdapterConfig | str | None = None,
        *,
        selection: SelectionConfig | ResolvedSelection | None = None,
        training: TrainingConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        slots: int | None = None,
        max_queue_size: int = 256,
        background_niceness: int = 0,
        torch_compile: bool = False,
        cache_limits: CacheLimits | None = None,
    ) -> None:
        """Check the arguments; memory for the slots is taken when the first request runs.

        Args:
            space: Where to select documents; None if every request has its own `space`,
                `retrieval` or `documents`.
            model: The model to adapt.
            adapter: What is trained: `LoRA`, `FullFineTuning` or `LMHead`, or by name `lora`,
                `full`, `head` or `auto` (the default).
            selection: How to select documents; by default 50 of them, or 10 for a model of more
                than 20 million weights on a CPU. `auto` is resolved once, here.
            training: How the documents become updates.
            optimizer: How a gradient becomes a step.
            slots: Requests that run at once; by default 8, or 1 for full fine-tuning, which
                supports no more.
            max_queue_size: Requests that may wait for a slot.
            background_niceness: Unix niceness (0 to 19) of the engine's threads, on Linux only.
            torch_compile: Compile the network at the first step; takes a minute and a C++ compiler,
                and saves 4 % of the time of full fine-tuning. Not for LoRA.
            cache_limits: How many hidden states of texts are cached in memory and on disk, where
                only the head or the last layers are trained; by default 256 MiB in memory.

        Raises:
            ValueError: If `space`, `model` or `adapter` has the wrong type, `slots` is above 1
                with full fine-tuning, or `torch_compile` is combined with LoRA.
        """
        if space is not None:
            check_space(space)
        if not isinstance(model, LanguageModel):
            raise ValueError(
                f"model is {model!r}: expected a LanguageModel, such as "
                "`whet.LanguageModel.from_pretrained(NAME)`"
            )
        if adapter is None or isinstance(adapter, str):
            adapter = model.adapter_config(adapter or "auto")
        check_compile(adapter, torch_compile)
        full = isinstance(adapter, FullFineTuning)
        count = as_count((1 if full else SLOTS) if slots is None else slots, "slots")
        if full and count > 1:
            raise ValueError(
                f"slots is {count}: expected 1 with full fine-tuning, where the network itself is "
                "the slot; use LoRA or LMHead to run several requests at once"
            )
        selection = selection or SelectionConfig(n=suited_steps(model.hf_model))
        if space is not None and isinstance(selection, SelectionConfig):
            selection = resolve(space, selection)
        self.model, self.adapter, self.selection, self._count = model, adapter, selection, count
        self.optimizer = optimizer or OptimizerConfig()
        self.training = training or TrainingConfig()
        self._max_pending = count + as_count(max_queue_size, "max_queue_size")
        self._planner = Planner(model, space, selection, self.training)
        self._scheduler = Scheduler(
            lambda: Slots(
                model,
                self.adapter,
                self.optimizer,
                count=count,
                cache_limits=cache_limits,
                torch_compile=torch_compile,
            ),
            self._planner,
            max_queue_size,
            background_niceness,
        )

    def retrieve(self, request: Request | str) -> Retrieval:
        """The documents that the model would be adapted to for a request, in order.

        Needs no model. `Request(prompt, retrieval=…)` then trains on the result. `auto` in the
        request's own `selection` is resolved for this call, which takes seconds.

        Args:
            request: A prompt, or a request with a `query`, `selection` or `space` of its own.

        Returns:
            The selected documents, repeats included.

        Raises:
            NoMatchError: If the prompt is blank or has nothing in common with the data space.
            ValueError: If there is no data space to select from.
        """
        return self._planner.retrieve(_as_request(request))

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> Output:
        """Adapt the model to `prompt` and continue it.

        For other options, `submit` a `Request`.

        Returns:
            The output; its `text` is the generated text.

        Raises:
            NoMatchError: If the prompt is blank or has nothing in common with the data space.
            ValueError: If the prompt and the generated text exceed the model's context.
            AdaptationError: If a loss or the logits are not finite.
        """
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        return self._wait(Request(prompt=prompt, sampling=sampling))

    def score(self, text: str, *, prompt: str) -> Output:
        """Score `text` after `prompt` by the base model, and by the model adapted to `prompt`.

        Returns:
            The output; `base` and `score` are the scores before and after.

        Raises:
            NoMatchError: If the prompt is blank or has nothing in common with the data space.
            ValueError: If `text` is empty.
            AdaptationError: If a loss or a score is not finite.
        """
        return self._wait(Request(prompt=prompt, text=text))

    def submit(
        self,
        request: Request | str,
        on_event: Callable[[Event], None] | None = None,
        *,
        client: str = "",
        weight: int = 1,
    ) -> RequestHandle:
        """Queue a request.

        Requests of one client run in order, and clients are served in turn, so that no client has to
        wait for all requests of another.

        Args:
            request: A request, or a prompt to continue.
            on_event: Called in the engine's thread with the `Retrieval`, each `TrainStep`, and
                each new piece of generated text.
            client: Who asks, such as the id of an API key.
            weight: How many requests of the client are begun in a round, 1 or more.

        Returns:
            A handle to wait for the output, or to cancel.

        Raises:
            QueueFullError: If the queue is full.
            EngineClosedError: If the engine was closed.
        """
        state = RequestState(
            _as_request(request),
            on_event or (lambda event: None),
            client=client,
            weight=as_count(weight, "weight"),
        )
        self._scheduler.submit(state)
        return RequestHandle(state, self._scheduler.cancel)

    def stream(self, request: Request | str) -> Iterator[Event | Output]:
        """Yield the events of a request as they happen, then its output.

        Closing the iterator cancels the request.
        """
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        state = RequestState(_as_request(request), events.put)
        self._scheduler.submit(state)
        state.output.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
            yield state.output.result()
        finally:
            self._scheduler.cancel_and_wait([state])

    def generate_many(self, requests: Iterable[Request | str]) -> Iterator[Output]:
        """Yield the outputs of many requests, in their order.

        Reads `requests` ahead by the length of the queue. A request that fails yields an output
        with its `error`. Closing the iterator cancels the rest. For outputs as soon as they are
        ready, `submit` the requests and wait for the futures of the handles.

        Raises:
            ValueError: If `requests` is a single text.
            EngineClosedError: If the engine was closed.
        """
        if isinstance(requests, str):
            raise ValueError(f"requests is the text {requests[:20]!r}: expected a list of them")
        pending: deque[RequestState] = deque()
        try:
            for request in requests:
                state = RequestState(_as_request(request), lambda event: None)
                self._scheduler.submit(state, wait=True)
                pending.append(state)
                while pending and (pending[0].output.done() or len(pending) >= self._max_pending):
                    yield _next_output(pending)
            while pending:
                yield _next_output(pending)
        finally:
            self._scheduler.cancel_and_wait(pending)

    def close(self) -> None:
        """Accept no more requests, and wait until the accepted ones are finished."""
        self._scheduler.close()

    def __repr__(self) -> str:
        slots = count_of(self._count, "slot")
        return f"Engine({self.model.name!r}, {self.adapter}, n={self.selection.n}, {slots})"

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, request: Request) -> Output:
        handle = self.submit(request)
        try:
            return handle.result()
        except BaseException:  # the caller was interrupted, or the request failed
            self._scheduler.cancel_and_wait([handle._state])
            raise


def _as_request(request: Request | str) -> Request:
    if isinstance(request, str):
        request = Request(request)
    if not isinstance(request, Request):
        raise ValueError(f"request is {request!r}: expected a text or a whet.Request")
    return request


def _next_output(pending: deque[RequestState]) -> Output:
    """Wait for the first output and remove it; an error of the request becomes an output."""
    state = pending[0]
    error = state.output.exception()
    pending.popleft()
    if error is None:
        return state.output.result()
    if not isinstance(error, WhetError | ValueError):
        raise error
    trace = getattr(error, "trace", None) or AdaptationTrace()
    return Output(state.request, state.request.text or "", trace, error=error)
