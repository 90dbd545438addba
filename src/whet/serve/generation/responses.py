"""Writes the answers of `/v1/responses`, whole or as the events of a stream."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from whet.adapt.decoding.sampling import TextPiece
from whet.serve.errors import APIError
from whet.serve.generation.formats import ChatFormat, Choice, reason
from whet.serve.generation.stream import CompletedEvent
from whet.serve.schemas.adapt import Usage
from whet.serve.schemas.responses import ResponsesRequest

Record = dict[str, Any]
ERROR_CODES = {400: "invalid_prompt", 413: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponseWriter:
    """Builds one response; each method returns the events that describe what it adds."""

    def __init__(self, body: ResponsesRequest, format: ChatFormat) -> None:
        self._choices = format.stream(0, 0)
        self._count = 0
        self._message: Record | None = None  # that is being written, the last of the output
        self.response: Record = {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()),
            "status": "in_progress", "error": None, "incomplete_details": None, "model": body.model,
            "output": [], "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "temperature": body.temperature,
            "top_p": body.top_p, "tools": [tool.model_dump() for tool in body.tools],
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str)
            else body.tool_choice.model_dump(),
            "parallel_tool_calls": body.parallel_tool_calls,
            "text": {"format": body.text.format.model_dump(exclude_none=True, by_alias=True)},
            "metadata": body.metadata, "store": False, "previous_response_id": None,
            "truncation": "disabled", "usage": None,
        }  # fmt: skip

    def begin(self) -> Iterator[str]:
        """The response before there is any output."""
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def add(self, piece: TextPiece) -> Iterator[str]:
        """A piece of the answer."""
        for choice in self._choices.delta(piece):
            yield from self._add_choice(choice)

    def end(self, completed: CompletedEvent, adapt: Record) -> Iterator[str]:
        """The rest of the answer; `adapt` is added to the response."""
        [text] = completed.texts
        for choice in self._choices.end(text):
            yield from self._add_choice(choice)
        if not self.response["output"]:
            yield from self._begin_message()
        status = "incomplete" if reason(text) == "length" else "completed"
        yield from self._end_message(status)
        self.response |= {"status": status, "usage": _usage(completed.usage)} | adapt
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event(f"response.{status}", response=self.response)

    def whole(self, completed: CompletedEvent, adapt: Record) -> Record:
        """The response, if nothing was streamed."""
        [text] = completed.texts
        piece = TextPiece(text.text)
        piece.sequence, piece.num_tokens, piece.logprobs = 0, text.num_tokens, text.logprobs
        for _ in (*self.add(piece), *self.end(completed, adapt)):
            pass
        return self.response

    def fail(self, error: APIError) -> Iterator[str]:
        """An error after the response has begun."""
        code = ERROR_CODES.get(error.status, "server_error")
        message = error.body()["error"]["message"]
        self.response |= {"status": "failed", "error": {"code": code, "message": message}}
        yield self._event("response.failed", response=self.response)

    def progress(self, record: Record) -> str:
        """What the adaptation has done so far."""
        return self._event("response.adapt_progress", adapt_progress=record)

    def _add_choice(self, choice: Choice) -> Iterator[str]:
        delta = choice["delta"]
        if text := delta.get("content"):
            if self._message is None:
                yield from self._begin_message()
            assert self._message is not None
            self._message["content"][0]["text"] += text
            place = self._place() | {"content_index": 0}
            yield self._event("response.output_text.delta", delta=text, logprobs=[], **place)
        for call in delta.get("tool_calls", ()):
            yield from self._end_message("completed")
            yield from self._add_call(call)

    def _begin_message(self) -> Iterator[str]:
        empty: dict[str, Any] = {
            "type": "output_text", "text": "", "annotations": [], "logprobs": []
        }  # fmt: skip
        item: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
        }
        item |= {"status": "in_progress", "content": []}
        self.response["output"].append(item)
        self._message = item
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        item["content"] = [empty]
        place = self._place() | {"content_index": 0}
        yield self._event("response.content_part.added", part=empty, **place)

    def _end_message(self, status: str) -> Iterator[str]:
        if (item := self._message) is None:
            return
        item["status"], self._message = status, None
        [part] = item["content"]
        place = self._place() | {"content_index": 0}
        yield self._event("response.output_text.done", text=part["text"], logprobs=[], **place)
        yield self._event("response.content_part.done", part=part, **place)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    def _add_call(self, call: Record) -> Iterator[str]:
        arguments = call["function"]["arguments"]
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": call["id"]}
        item |= {"name": call["function"]["name"], "arguments": "", "status": "in_progress"}
        self.response["output"].append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        item |= {"arguments": arguments, "status": "completed"}
        place, kind = self._place(), "response.function_call_arguments"
        yield self._event(f"{kind}.delta", delta=arguments, **place)
        yield self._event(f"{kind}.done", arguments=arguments, name=item["name"], **place)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self) -> Record:
        return {"item_id": self.response["output"][-1]["id"], "output_index": self._index}

    def _event(self, kind: str, **values: Any) -> str:
        record = {"type": kind, "sequence_number": self._count, **values}
        self._count += 1
        return f"event: {kind}\ndata: {json.dumps(record)}\n\n"


def _usage(usage: Usage) -> Record:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
        "adapt_tokens": usage.adapt_tokens,
    }
