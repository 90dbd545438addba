"""Completions, chats and scores: OpenAI's formats, complete or streamed.

With `stream` and `adapt.progress`, chunks without choices report the progress of the training in
`adapt_progress`. The last chunk with a choice contains `adapt` if the request had that block. A
client that uses neither receives a plain OpenAI stream, with comments while nothing is generated.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from whet.errors import WhetError
from whet.serve.dependencies import ContextDep, RequestContext, cancel_on_disconnect
from whet.serve.errors import APIError, error_responses, to_api_error
from whet.serve.generation.chats import prepare_chat, sampling_params
from whet.serve.generation.formats import CompletionFormat, Echo, TextFormat
from whet.serve.generation.requests import AdaptedRequest, build_request
from whet.serve.generation.runner import start_request, start_requests
from whet.serve.generation.stream import (
    FIRST_BYTE_S,
    CompletedEvent,
    EventStream,
    TextDelta,
    merged,
)
from whet.serve.schemas.adapt import ScoreRequest, ScoreResponse, Usage
from whet.serve.schemas.chat import ChatCompletion, ChatRequest
from whet.serve.schemas.client import ignored_header
from whet.serve.schemas.completions import Completion, CompletionParams, CompletionRequest

router = APIRouter(prefix="/v1", tags=["completions"])
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""


@router.post("/completions", response_model=Completion, responses=error_responses(403, 404, 503))
async def create_completion(
    body: CompletionRequest, request: Request, context: ContextDep
) -> Response:
    """Continue prompts, each with the model adapted to it."""
    headers = ignored_header(body, strict=context.state.config.strict)
    limit = context.limits.max_tokens // body.n
    max_tokens = (
        max(1, min(DEFAULT_MAX_TOKENS, limit)) if body.max_tokens is None else body.max_tokens
    )
    sampling = replace(
        sampling_params(body),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    prompts = [_read_prompt(context, prompt) for prompt in body.prompt]
    context.usage.requests.level -= len(prompts) - 1
    requests = [
        build_request(
            context,
            body.model,
            prompt.text,
            body.adapt,
            token_ids=prompt.token_ids,
            max_tokens=None if max_tokens < 0 else max_tokens,
            sampling=sampling,
        )
        for prompt in prompts
    ]
    format = TextFormat(
        [prompt.echo for prompt in prompts] if body.echo else (),
        None if body.logprobs is None else await context.state.token_bytes(),
    )
    return await _respond(request, body, requests, format, headers)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt of a completion."""

    text: str
    token_ids: tuple[int, ...] | None
    """The tokens if the client sent those, without a start-of-text token, which the model adds."""
    echo: Echo


def _read_prompt(context: RequestContext, prompt: str | list[int]) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(prompt, None, Echo(prompt, ""))
    model = context.state.model
    if (largest := max(prompt)) >= model.vocab_size:
        raise APIError(
            400, f"prompt contains the token id {largest}: {context.state.name} has 0 to "
            f"{model.vocab_size - 1}", param="prompt",
        )  # fmt: skip
    start, decode = prompt[0] == model.bos_token_id, model.tokenizer.decode
    echo = Echo(str(decode(prompt)), str(decode(prompt[:1])) if start else "")
    token_ids = tuple(prompt[1:] if start else prompt)
    return _Prompt(str(decode(token_ids, skip_special_tokens=True)), token_ids, echo)


@router.post(
    "/chat/completions", response_model=ChatCompletion, responses=error_responses(403, 404, 503)
)
async def create_chat_completion(
    body: ChatRequest, request: Request, context: ContextDep
) -> Response:
    """Answer a conversation with the model adapted to it."""
    headers = ignored_header(body, strict=context.state.config.strict)
    adapted, format = await prepare_chat(context, body)
    return await _respond(request, body, [adapted], format, headers)


@router.post("/score", tags=["score"], responses=error_responses(403, 404, 503))
async def score(body: ScoreRequest, request: Request, context: ContextDep) -> ScoreResponse:
    """Score a text after a prompt with the base model and with the model adapted to the prompt."""
    adapted = build_request(context, body.model, body.prompt, body.adapt, text=body.text)
    stream = start_request(adapted)
    completed = await cancel_on_disconnect(request, stream.result(), stream.cancel)
    assert completed.scores is not None
    return ScoreResponse.from_scores(
        body.model, *completed.scores, completed.usage, completed.adapt
    )


async def _respond(
    request: Request,
    body: CompletionParams,
    adapted: Sequence[AdaptedRequest],
    format: CompletionFormat,
    headers: dict[str, str],
) -> Response:
    streams = start_requests(adapted)

    def cancel() -> None:
        for stream in streams:
            stream.cancel()

    head = {"id": f"{format.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
    head |= {"model": body.model}
    if not body.stream:
        results = asyncio.gather(*(stream.result() for stream in streams))
        try:
            completed = await cancel_on_disconnect(request, results, cancel)
        except BaseException:  # one prompt failed: the others are not needed
            cancel()
            raise
        head |= {"object": format.object}
        return JSONResponse(head | _answer(body, completed, format), headers=headers)
    # an early error still has a status of its own
    await cancel_on_disconnect(request, streams[0].wait_started(FIRST_BYTE_S), cancel)
    head |= {"object": format.chunk_object}
    comment_s = adapted[0].context.state.config.stream_comment_s
    chunks = _chunks(streams, body, head, format, request.state.id, comment_s)
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)


def _answer(
    body: CompletionParams, completed: Sequence[CompletedEvent], format: CompletionFormat
) -> dict[str, Any]:
    """The choices, the usage, and how the model was adapted: to each prompt, if there are several."""
    choices = [
        format.choice(prompt * body.n + sequence, prompt, text, event.prompt_logprobs)
        | (_adapt(body, event) if len(completed) > 1 else {})
        for prompt, event in enumerate(completed)
        for sequence, text in enumerate(event.texts)
    ]
    usage = {"usage": _total([event.usage for event in completed])}
    return (
        {"choices": choices} | usage | (_adapt(body, completed[0]) if len(completed) == 1 else {})
    )


def _total(usages: Sequence[Usage]) -> dict[str, int]:
    return {name: sum(getattr(usage, name) for usage in usages) for name in Usage.model_fields}


class _UsageSoFar:
    """The usage of a stream while it runs."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        self._generated: dict[tuple[int, int], int] = {}

    def add(self, prompt: int, delta: TextDelta) -> None:
        """Count the tokens of a piece."""
        self._prompts[prompt] = delta.prompt_tokens
        self._generated[prompt, delta.piece.sequence] = delta.piece.num_tokens

    def complete(self, prompt: int, usage: Usage) -> None:
        """Replace the counts of a prompt by those of its result."""
        self._generated = {k: count for k, count in self._generated.items() if k[0] != prompt}
        self._prompts[prompt] = usage.prompt_tokens
        self._generated[prompt, 0] = usage.completion_tokens

    @property
    def usage(self) -> dict[str, int]:
        """The tokens so far."""
        read, generated = sum(self._prompts.values()), sum(self._generated.values())
        counts = {"prompt_tokens": read, "completion_tokens": generated}
        return counts | {"total_tokens": read + generated}


async def _chunks(
    streams: Sequence[EventStream],
    body: CompletionParams,
    head: dict[str, Any],
    format: CompletionFormat,
    request_id: str,
    comment_s: float,
) -> AsyncIterator[str]:
    options, so_far = body.stream_options, _UsageSoFar()
    include_usage = options is not None and options.include_usage
    continuous = options is not None and options.continuous_usage_stats

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        usage: dict[str, Any] = {"usage": None} if include_usage else {}
        usage = {"usage": so_far.usage} if continuous else usage
        return f"data: {json.dumps(head | {'choices': choices} | usage | more)}\n\n"

    choices = [
        [format.stream(prompt * body.n + i, prompt) for i in range(body.n)]
        for prompt in range(len(streams))
    ]
    completed: list[CompletedEvent] = []
    try:
        for choice in [choice for each in choices for choice in each]:
            yield chunk([choice.begin()])
        async with aclosing(merged(streams, comment_s)) as events:
            async for prompt, event in events:
                match event:
                    case str(comment):
                        yield comment
                    case TextDelta(piece=piece) as delta:
                        so_far.add(prompt, delta)
                        for part in choices[prompt][piece.sequence].delta(piece):
                            yield chunk([part])
                    case CompletedEvent(texts=texts):
                        completed.append(event)
                        so_far.complete(prompt, event.usage)
                        pairs = zip(choices[prompt], texts, strict=True)
                        *parts, last = [part for choice, text in pairs for part in choice.end(text)]
                        for part in parts:
                            yield chunk([part])
                        yield chunk([last], **_adapt(body, event))
                    case progress if body.adapt and body.adapt.progress:
                        yield chunk([], adapt_progress=progress.model_dump(exclude_none=True))
        if include_usage:
            yield chunk([], usage=_total([event.usage for event in completed]))
        yield "data: [DONE]\n\n"
    except (APIError, WhetError, ValueError) as error:  # the status was sent already
        api_error = error if isinstance(error, APIError) else to_api_error(error, request_id)
        yield f"data: {json.dumps(api_error.body())}\n\n"
    finally:
        for stream in streams:
            stream.cancel()


def _adapt(body: CompletionParams, completed: CompletedEvent) -> dict[str, Any]:
    if body.adapt is None:
        return {}
    return {"adapt": completed.adapt.model_dump(exclude_none=True)}
