"""Completions, chats and scores: OpenAI's formats, complete or streamed.

With `stream` and `adapt.progress`, chunks without choices report the progress of the training in
`adapt_progress`. The last chunk with a choice contains `adapt` if the request had that block. A
client that uses neither receives a plain OpenAI stream, with comments while nothing is generated.
"""

import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from whet.adapt.decoding.sampling import SamplingParams
from whet.errors import WhetError
from whet.serve.dependencies import ContextDep, cancel_on_disconnect
from whet.serve.errors import APIError, error_responses, to_api_error
from whet.serve.generation.requests import AdaptedRequest, build_request
from whet.serve.generation.runner import start_request
from whet.serve.generation.stream import FIRST_BYTE_S, CompletedEvent, EventStream, TextDelta
from whet.serve.schemas.adapt import ScoreRequest, ScoreResponse
from whet.serve.schemas.chat import ChatCompletion, ChatRequest
from whet.serve.schemas.completions import Completion, CompletionParams, CompletionRequest

router = APIRouter(prefix="/v1", tags=["completions"])
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""


class CompletionFormat(Protocol):
    """How one of the two kinds of completion is written."""

    id_prefix: str
    object: str
    chunk_object: str

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The choice of a complete response."""
        ...

    def delta(
        self, text: str | None, finish_reason: str | None, *, first: bool = False
    ) -> dict[str, Any]:
        """The choice of one chunk of a stream."""
        ...


class TextFormat:
    """The format of `/v1/completions`."""

    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def delta(
        self, text: str | None, finish_reason: str | None, *, first: bool = False
    ) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish_reason}

    choice = delta


class ChatFormat:
    """The format of `/v1/chat/completions`."""

    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}

    def delta(
        self, text: str | None, finish_reason: str | None, *, first: bool = False
    ) -> dict[str, Any]:
        delta = {"role": "assistant"} if first else {}  # clients concatenate the deltas
        delta |= {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


@router.post("/completions", response_model=Completion, responses=error_responses(403, 404, 503))
async def create_completion(
    body: CompletionRequest, request: Request, context: ContextDep
) -> Response:
    """Continue a prompt with the model adapted to it."""
    limit = context.limits.max_tokens
    adapted = build_request(
        context,
        body.model,
        body.prompt,
        body.adapt,
        max_tokens=min(DEFAULT_MAX_TOKENS, limit) if body.max_tokens is None else body.max_tokens,
        sampling=_sampling(body),
    )
    return await _respond(request, body, adapted, TextFormat())


@router.post(
    "/chat/completions", response_model=ChatCompletion, responses=error_responses(403, 404, 503)
)
async def create_chat_completion(
    body: ChatRequest, request: Request, context: ContextDep
) -> Response:
    """Answer a conversation with the model adapted to it."""
    messages = [(message.role, message.text) for message in body.messages]
    query = "\n".join(text for role, text in messages if role in ("user", "assistant"))
    adapted = build_request(
        context,
        body.model,
        "".join(text for _, text in messages),
        body.adapt,
        query=query,
        max_tokens=body.max_completion_tokens if body.max_tokens is None else body.max_tokens,
        sampling=_sampling(body),
    )
    token_ids = await context.state.encode_chat(messages)
    return await _respond(request, body, replace(adapted, token_ids=tuple(token_ids)), ChatFormat())


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


def _sampling(body: CompletionParams) -> SamplingParams:
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0: the likeliest token
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        stop=body.stop_texts,
    )


async def _respond(
    request: Request, body: CompletionParams, adapted: AdaptedRequest, format: CompletionFormat
) -> Response:
    stream = start_request(adapted)
    head = {"id": f"{format.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
    head |= {"model": body.model}
    if not body.stream:
        completed = await cancel_on_disconnect(request, stream.result(), stream.cancel)
        choices = [format.choice(completed.text, completed.finish_reason)]
        head |= {"object": format.object, "choices": choices}
        usage = completed.usage.model_dump()
        return JSONResponse(head | {"usage": usage} | _adapt(body, completed))
    # an early error still has a status of its own
    await cancel_on_disconnect(request, stream.wait_started(FIRST_BYTE_S), stream.cancel)
    head |= {"object": format.chunk_object}
    comment_s = adapted.context.state.config.stream_comment_s
    chunks = _chunks(stream, body, head, format, request.state.id, comment_s)
    return StreamingResponse(chunks, media_type="text/event-stream")


async def _chunks(
    stream: EventStream,
    body: CompletionParams,
    head: dict[str, Any],
    format: CompletionFormat,
    request_id: str,
    comment_s: float,
) -> AsyncIterator[str]:
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    no_usage = {"usage": None} if include_usage else {}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps(head | {'choices': choices} | no_usage | more)}\n\n"

    try:
        yield chunk([format.delta("", None, first=True)])
        async for event in stream.with_comments(comment_s):
            match event:
                case str(comment):
                    yield comment
                case TextDelta(text=text):
                    yield chunk([format.delta(text, None)])
                case CompletedEvent() as completed:
                    last = format.delta(None, completed.finish_reason)
                    yield chunk([last], **_adapt(body, completed))
                    if include_usage:
                        yield chunk([], usage=completed.usage.model_dump())
                case progress if body.adapt and body.adapt.progress:
                    yield chunk([], adapt_progress=progress.model_dump(exclude_none=True))
        yield "data: [DONE]\n\n"
    except (APIError, WhetError, ValueError) as error:  # the status was sent already
        api_error = error if isinstance(error, APIError) else to_api_error(error, request_id)
        yield f"data: {json.dumps(api_error.body())}\n\n"
    finally:
        stream.cancel()


def _adapt(body: CompletionParams, completed: CompletedEvent) -> dict[str, Any]:
    if body.adapt is None:
        return {}
    return {"adapt": completed.adapt.model_dump(exclude_none=True)}
