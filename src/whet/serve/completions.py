"""`/v1/completions` and `/v1/chat/completions`: OpenAI's forms, whole or streamed.

With `stream` and `adapt.progress`, chunks without choices tell in `adapt_progress` how the
sharpening goes; the last chunk with a choice carries `adapt`, if the request had such a block. A
client that knows of neither sees a plain OpenAI stream.
"""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from whet import engine
from whet.errors import WhetError
from whet.serve.answers import ChatCompletion, Completion
from whet.serve.asks import Ask, ask
from whet.serve.chat_template import chat_tokens
from whet.serve.dependencies import Calling, unless_gone
from whet.serve.errors import APIError, documented, refusal
from whet.serve.events import Answered, Wrote
from whet.serve.requests import ChatRequest, CompletionParams, CompletionRequest
from whet.serve.stream import Asking
from whet.serve.work import start

router = APIRouter(tags=["completions"])


class Form(Protocol):
    """How one of the two kinds of completion is written."""

    prefix: str
    whole: str
    part: str

    def choice(self, text: str, finish: str) -> dict[str, Any]: ...

    def delta(
        self, text: str | None, finish: str | None, *, first: bool = False
    ) -> dict[str, Any]: ...


class TextForm:
    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def delta(self, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}

    choice = delta


class ChatForm:
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, finish: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}

    def delta(self, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        said = {"role": "assistant"} if first else {}  # clients put the parts' texts together
        said |= {} if text is None else {"content": text}
        return {"index": 0, "delta": said, "logprobs": None, "finish_reason": finish}


@router.post("/v1/completions", response_model=Completion, responses=documented(403, 404, 503))
async def complete(body: CompletionRequest, request: Request, caller: Calling) -> Response:
    """Continue a prompt with the model, sharpened for it."""
    most = caller.limits.max_tokens
    asked = ask(
        caller,
        body.model,
        body.prompt,
        body.adapt,
        max_tokens=min(16, most) if body.max_tokens is None else body.max_tokens,
        sampling=_sampling(body),
    )
    return await _answer(request, body, asked, TextForm())


@router.post(
    "/v1/chat/completions", response_model=ChatCompletion, responses=documented(403, 404, 503)
)
async def chat(body: ChatRequest, request: Request, caller: Calling) -> Response:
    """Answer a conversation with the model, sharpened for what was said in it."""
    said = [(message.role, message.text) for message in body.messages]
    query = "\n".join(text for role, text in said if role in ("user", "assistant"))
    asked = ask(
        caller,
        body.model,
        "".join(text for _, text in said),
        body.adapt,
        query=query,
        max_tokens=body.max_completion_tokens if body.max_tokens is None else body.max_tokens,
        sampling=_sampling(body),
    )
    server = caller.server
    tokens = await asyncio.to_thread(chat_tokens, server.model.tokenizer, server.templates, said)
    return await _answer(request, body, replace(asked, tokens=tuple(tokens)), ChatForm())


def _sampling(body: CompletionParams) -> engine.SamplingParams:
    return engine.SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        stop=body.stops,
    )


async def _answer(request: Request, body: CompletionParams, asked: Ask, form: Form) -> Response:
    asking = start(asked)
    head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
    head |= {"model": body.model}
    if not body.stream:
        done = await unless_gone(request, asking.answer(), asking.cancel)
        choice = form.choice(done.text, done.finish_reason)
        whole = head | {"object": form.whole, "choices": [choice], "usage": done.usage.model_dump()}
        return JSONResponse(whole | _adapt(body, done))
    await unless_gone(request, asking.begun(), asking.cancel)  # what fails now has a status yet
    chunks = _chunks(asking, body, head | {"object": form.part}, form, request.state.id)
    return StreamingResponse(chunks, media_type="text/event-stream")


async def _chunks(
    asking: Asking, body: CompletionParams, head: dict[str, Any], form: Form, request: str
) -> AsyncIterator[str]:
    usage = body.stream_options is not None and body.stream_options.include_usage
    blank = {"usage": None} if usage else {}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps(head | {'choices': choices} | blank | more)}\n\n"

    try:
        yield chunk([form.delta("", None, first=True)])
        async for event in asking:
            match event:
                case Wrote(text=text):
                    yield chunk([form.delta(text, None)])
                case Answered() as done:
                    yield chunk([form.delta(None, done.finish_reason)], **_adapt(body, done))
                    if usage:
                        yield chunk([], usage=done.usage.model_dump())
                case progress if body.adapt and body.adapt.progress:
                    yield chunk([], adapt_progress=progress.model_dump(exclude_none=True))
        yield "data: [DONE]\n\n"
    except (APIError, WhetError, ValueError) as error:  # the status is sent: told in the stream
        told = error if isinstance(error, APIError) else refusal(error, request)
        yield f"data: {json.dumps(told.body())}\n\n"
    finally:
        asking.cancel()


def _adapt(body: CompletionParams, done: Answered) -> dict[str, Any]:
    return {"adapt": done.adapted.model_dump(exclude_none=True)} if body.adapt is not None else {}
