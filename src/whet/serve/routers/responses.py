"""OpenAI's Responses API, for conversations that each request contains completely."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from whet.errors import WhetError
from whet.serve.dependencies import ContextDep, cancel_on_disconnect
from whet.serve.errors import APIError, error_responses, to_api_error
from whet.serve.generation.chats import prepare_chat
from whet.serve.generation.responses import ResponseWriter
from whet.serve.generation.runner import start_request
from whet.serve.generation.stream import FIRST_BYTE_S, CompletedEvent, EventStream, TextDelta
from whet.serve.schemas.client import ignored_header
from whet.serve.schemas.responses import ResponseObject, ResponsesRequest

router = APIRouter(prefix="/v1/responses", tags=["responses"])


@router.post("", response_model=ResponseObject, responses=error_responses(403, 404, 503))
async def create_response(
    body: ResponsesRequest, request: Request, context: ContextDep
) -> Response:
    """Answer a conversation with the model adapted to it. Nothing is stored."""
    config = context.state.config
    headers = ignored_header(body, strict=config.strict)
    adapted, format = await prepare_chat(context, body.as_chat())
    stream, writer = start_request(adapted), ResponseWriter(body, format)
    if not body.stream:
        completed = await cancel_on_disconnect(request, stream.result(), stream.cancel)
        return JSONResponse(writer.whole(completed, _adapt(body, completed)), headers=headers)
    await cancel_on_disconnect(request, stream.wait_started(FIRST_BYTE_S), stream.cancel)
    events = _events(stream, body, writer, request.state.id, config.stream_comment_s)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(
    stream: EventStream,
    body: ResponsesRequest,
    writer: ResponseWriter,
    request_id: str,
    comment_s: float,
) -> AsyncIterator[str]:
    try:
        for line in writer.begin():
            yield line
        async with aclosing(stream.with_comments(comment_s)) as events:
            async for event in events:
                match event:
                    case str(comment):
                        yield comment
                    case TextDelta(piece=piece):
                        for line in writer.add(piece):
                            yield line
                    case CompletedEvent() as completed:
                        for line in writer.end(completed, _adapt(body, completed)):
                            yield line
                    case progress if body.adapt and body.adapt.progress:
                        yield writer.progress(progress.model_dump(exclude_none=True))
    except (APIError, WhetError, ValueError) as error:  # the status was sent already
        api_error = error if isinstance(error, APIError) else to_api_error(error, request_id)
        for line in writer.fail(api_error):
            yield line
    finally:
        stream.cancel()


def _adapt(body: ResponsesRequest, completed: CompletedEvent) -> dict[str, Any]:
    if body.adapt is None:
        return {}
    return {"adapt": completed.adapt.model_dump(exclude_none=True)}
