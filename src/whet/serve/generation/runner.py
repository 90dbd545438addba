"""From a request to its response: select, adapt, generate, cache the adapter.

`start_request` runs a request and returns the stream of its events.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from whet.adapt.decoding.sampling import GeneratedText, TextPiece
from whet.engine import Event, Output, Request, SamplingParams, TrainStep
from whet.serve.adapter_cache import CachedAdapter, adapter_id
from whet.serve.errors import CLIENT_CLOSED_REQUEST, APIError
from whet.serve.generation.requests import AdaptedRequest
from whet.serve.generation.stream import (
    CompletedEvent,
    EventStream,
    SelectionEvent,
    StepEvent,
    TextDelta,
)
from whet.serve.schemas.adapt import AdaptInfo, EvidenceInfo, Usage
from whet.serve.spaces.retrieval import TextSize, select, selected_texts, text_sizes
from whet.serve.state import BASE
from whet.space.retrieve import Retrieval


def start_request(request: AdaptedRequest) -> EventStream:
    """Run a request in a task of its own."""
    [stream] = start_requests([request])
    return stream


def start_requests(requests: Sequence[AdaptedRequest]) -> list[EventStream]:
    """Run the requests of one client in a task of their own; returns the stream of each.

    At most as many run at once as the server has slots and room in its queue. The others wait for
    these, so that either all are admitted or none is.
    """
    streams = [EventStream() for _ in requests]
    requests[0].context.state.start_task(_run_all(requests, streams))
    return streams


async def _run_all(requests: Sequence[AdaptedRequest], streams: Sequence[EventStream]) -> None:
    context, pending = requests[0].context, iter(list(zip(requests, streams, strict=True)))
    state, key = context.state, context.key
    most = min(len(requests), state.config.slots, context.limits.concurrent)

    async def run_pending() -> None:
        for request, stream in pending:
            await _run(request, stream)

    try:
        with ExitStack() as admitted:
            admitted.enter_context(state.admit(key))
            tasks = 1
            while tasks < most and state.has_place(key):
                admitted.enter_context(state.admit(key))
                tasks += 1
            await asyncio.gather(*(run_pending() for _ in range(tasks)))
    except Exception as error:  # raised by the readers of the streams
        for stream in streams:
            stream.publish(error)


async def _run(request: AdaptedRequest, stream: EventStream) -> None:
    try:
        stream.publish(await RequestRunner(request, stream).run())
    except Exception as error:  # raised by the reader of the stream
        stream.publish(error)


class RequestRunner:
    """Runs one request on the event loop, with long computations in threads."""

    def __init__(self, request: AdaptedRequest, stream: EventStream) -> None:
        self._request, self._stream = request, stream
        self._state = request.context.state
        self._engine = self._state.engines[request.adapter]
        self._retrieval: Retrieval | None = None
        self._sizes: dict[str, TextSize] = {}
        self._losses: list[float] = []
        self._prompt_tokens = 0

    async def run(self) -> CompletedEvent:
        """Run the request to its end.

        Raises:
            APIError: 400 if the prompt is longer than the context, 499 if the client has
                disconnected.
            ValueError: If the selection is invalid.
            WhetError: If the engine fails.
        """
        request = self._request
        self._check_connected()
        sampling = await asyncio.to_thread(self._fit_sampling)
        if request.view is not None:
            await request.context.run_in_pool(self._select)
            self._stream.publish(self._selection_event())
        self._check_connected()
        cached = request.cached or self._find_cached()
        use = request.use
        retrieval = None if cached and use == "steps" else self._retrieval
        engine_request = Request(
            prompt=request.prompt,
            token_ids=request.token_ids,
            messages=request.messages,
            tools=request.tools,
            answer_prefix=request.answer_prefix,
            text=request.text,
            sampling=sampling,
            selection=request.selection,
            retrieval=retrieval,
            use="context" if cached and use == "both" else use,
            adapt=retrieval is not None,
            deadline_s=request.deadline_s,
            init_adapter=cached.adapter if cached else None,
            return_adapter=self._cacheable and not cached,
        )
        output = base = await self._submit(engine_request)
        if cached and request.text is not None:
            base = await self._submit(replace(engine_request, init_adapter=None))
        completed = self._completed(output, base, cached)
        await self._state.export_adapter(request.context.key.id, completed.adapt.adapter_id)
        return completed

    def _check_connected(self) -> None:
        if self._stream.is_cancelled:
            raise APIError(CLIENT_CLOSED_REQUEST, "the client has disconnected")

    @property
    def _cacheable(self) -> bool:
        """Whether the request's adapter is cached: only LoRA's can be."""
        request = self._request
        return (
            request.params.cache != "off"
            and request.use != "context"
            and request.adapter == "lora"
            and request.cached is None
        )

    def _fit_sampling(self) -> SamplingParams:
        """Sampling parameters whose `max_tokens` fits the context after the prompt."""
        request, model = self._request, self._state.model
        tokens = model.encode(request.prompt) if request.token_ids is None else request.token_ids
        read = len(tokens) + 1
        scored = 0 if request.text is None else len(model.encode(request.text))
        self._prompt_tokens = read + scored
        available = model.max_length - read
        if request.max_tokens is None and request.use != "steps":
            available = max(1, available // 2)  # the rest is for documents
        most = request.context.limits.max_tokens // request.sampling.num_sequences
        wanted = min(available, most) if request.max_tokens is None else max(1, request.max_tokens)
        if request.text is None and available < 1:
            raise APIError(
                400, f"the prompt of {read} tokens is longer than the model's context length, "
                f"{model.max_length} tokens: shorten it, for example by the oldest messages",
                code="context_length_exceeded",
            )  # fmt: skip
        if request.text is None and wanted > available:
            raise APIError(
                400, f"max_tokens is {wanted}: expected at most {available}, because the prompt has "
                f"{read} tokens and the context length of {self._state.name} is "
                f"{model.max_length} tokens", param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip
        return replace(request.sampling, max_tokens=max(1, wanted))

    def _select(self) -> None:
        request = self._request
        assert request.view is not None
        start = time.perf_counter()
        self._retrieval = select(self._engine, request.view, request.query, request.selection)
        documents = self._retrieval.training_documents() if self._retrieval else ()
        self._sizes = text_sizes(self._state.model, documents)
        self._state.metrics.stage_duration.labels("select").observe(time.perf_counter() - start)

    def _selection_event(self) -> SelectionEvent:
        retrieval, texts = self._retrieval, "texts" in self._request.params.include
        if retrieval is None:
            return SelectionEvent(selection=[], sigma=[1.0])
        return SelectionEvent(
            selection=selected_texts(retrieval, len(retrieval), texts=texts),
            sigma=retrieval.selection.sigma.tolist(),
        )

    def _adapter_id(self, rows: tuple[int, ...], *, complete: bool = True) -> str:
        """Id of the adapter that these documents give; another if its training was cut short."""
        request, engine = self._request, self._engine
        assert request.view is not None
        how = f"{engine.adapter} {engine.optimizer} {engine.training}"
        if engine.training.loss == "conditional":  # the steps depend on the question
            how += f" {request.prompt!r} {request.messages!r}"
        if request.use == "both":  # the steps are smaller
            how += " both"
        model = f"{self._state.fingerprint} {how}" + ("" if complete else " incomplete")
        space = f"{request.view.name} {request.view.build_id} {request.view.version}"
        return adapter_id(request.context.key.id, request.adapter, model, space, rows)

    def _find_cached(self) -> CachedAdapter | None:
        """The cached adapter for the same documents in the same order, if the request allows it."""
        retrieval = self._retrieval
        if not self._cacheable or self._request.params.cache != "reuse" or not retrieval:
            return None
        name = self._adapter_id(tuple(row for row, _ in retrieval.training_texts()))
        cached = self._state.adapters.get(self._request.context.key.id, name)
        self._state.metrics.cache_lookups.labels("miss" if cached is None else "hit").inc()
        return cached

    async def _submit(self, request: Request) -> Output:
        key = self._request.context.key
        handle = self._engine.submit(request, self._on_event, client=key.id, weight=key.weight)
        with self._stream.on_cancel(handle.cancel):
            return await asyncio.wrap_future(handle.future)

    def _on_event(self, event: Event) -> None:
        """Publish an event of the engine; called in its thread."""
        match event:
            case TextPiece() as piece:
                if self._request.max_tokens != 0:
                    self._stream.publish(TextDelta(piece, self._prompt_tokens))
            case TrainStep(id=name, loss=loss):
                self._losses.append(loss)
                self._stream.publish(
                    StepEvent(
                        done=len(self._losses),
                        total=max(len(self._losses), len(self._retrieval or ())),
                        loss=loss,
                        bits_per_byte=self._sizes[name].bits_per_byte(loss),
                        seconds=time.perf_counter() - self._request.started,
                    )
                )

    def _completed(
        self, output: Output, base: Output, cached: CachedAdapter | None
    ) -> CompletedEvent:
        new = None if cached else self._cache_adapter(output)
        trained_on = sum(step.num_tokens for step in output.trace.steps)
        texts, generated = output.texts, output.num_tokens
        if self._request.max_tokens == 0:
            texts, generated = tuple(GeneratedText("", "length", 0) for _ in texts), 0
        self._prompt_tokens = output.num_prompt_tokens or self._prompt_tokens
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=generated,
            total_tokens=self._prompt_tokens + generated,
            adapt_tokens=trained_on,
        )
        self._request.context.usage.tokens.level -= usage.total_tokens + trained_on
        info = self._adapt_info(output, cached or new, is_cached=cached is not None)
        self._count(output, info)
        base_score, adapted_score = base.base, output.score
        return CompletedEvent(
            texts=texts,
            prompt_logprobs=output.prompt_logprobs,
            usage=usage,
            adapt=info,
            scores=(base_score, adapted_score) if base_score and adapted_score else None,
        )

    def _adapt_info(
        self, output: Output, adapter: CachedAdapter | None, *, is_cached: bool
    ) -> AdaptInfo:
        request, retrieval, include = self._request, self._retrieval, self._request.params.include
        steps = len(adapter.rows) if adapter and is_cached else len(output.trace)
        selected = len(retrieval) if retrieval else 0
        in_context = request.use != "steps"
        shown = selected if is_cached or in_context else min(selected, steps)
        view, named = request.view, request.cached
        seconds = dict(output.seconds)
        seconds["select"] = sum(retrieval.seconds.values()) if retrieval else 0.0
        seconds.setdefault("generate", 0.0)  # missing if it was cancelled in the queue
        chosen_use = request.use if request.params.use == "auto" else None
        seconds["total"] = time.perf_counter() - request.started
        selection = None
        if "selection" in include:
            texts = "texts" in include
            selection = selected_texts(retrieval, shown, texts=texts) if retrieval else []
        return AdaptInfo(
            adapter_id=adapter.id if adapter else None,
            data_space=view.name if view else named.space_name if named else None,
            version=view.version if view else named.version if named else None,
            adapter=request.adapter if steps else None,
            steps=steps,
            stop_reason="cached" if is_cached else self._stop_reason(output),
            cached=is_cached,
            sigma=retrieval.selection.sigma[: shown + 1].tolist() if retrieval else [1.0],
            loss=self._losses if "trace" in include else None,
            selection=selection,
            seconds={stage: round(duration, 6) for stage, duration in seconds.items()},
            use=request.use,
            evidence=EvidenceInfo.of(replace(output.evidence, chosen_use=chosen_use)),
        )

    def _stop_reason(self, output: Output) -> str:
        if output.trace.stop_reason != "n":
            return output.trace.stop_reason
        if self._request.view is None:
            return BASE
        if self._retrieval is None:
            return "no_match"
        return "n"

    def _cache_adapter(self, output: Output) -> CachedAdapter | None:
        """Cache the adapter for later requests of the key; None if it cannot be cached."""
        request, retrieval = self._request, self._retrieval
        if output.adapter is None or retrieval is None or not len(output.trace):
            return None
        if output.trace.stop_reason == "evidence":
            return None  # steps were undone for this prompt, not for others
        assert request.view is not None
        texts = retrieval.training_texts()
        rows, row_of = tuple(row for row, _ in texts), {d.id: row for row, d in texts}
        if len(row_of) < len(set(rows)):
            return None  # an id of two documents: it is unknown which one a step was taken on
        complete = output.trace.stop_reason not in ("deadline", "cancelled")
        trained = tuple(row_of[step.id] for step in output.trace.steps)
        identity = rows if complete else trained
        cached = CachedAdapter(
            id=self._adapter_id(identity, complete=complete),
            owner=request.context.key.id,
            space_name=request.view.name,
            build_id=request.view.build_id,
            version=request.view.version,
            adapter_name=request.adapter,
            rows=trained,
            created=int(time.time()),
            adapter=output.adapter,
        )
        fits = self._state.adapters.put(cached)
        if not self._state.spaces.is_latest(request.view):
            # one of its documents may have been deleted meanwhile
            self._state.adapters.delete(cached.owner, cached.id)
            return None
        return cached if fits else None

    def _count(self, output: Output, info: AdaptInfo) -> None:
        metrics = self._state.metrics
        metrics.steps.inc(len(output.trace))
        metrics.stop_reasons.labels(info.stop_reason).inc()
        for stage in ("queue", "train", "generate"):
            metrics.stage_duration.labels(stage).observe(info.seconds.get(stage, 0.0))
