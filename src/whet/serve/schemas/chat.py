"""Requests and responses of chats."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from whet.serve.schemas import PositiveCount, ResponseModel, StrictModel, Text
from whet.serve.schemas.adapt import AdaptInfo, Usage
from whet.serve.schemas.completions import CompletionParams, EmptyList, one_kind


class TextPart(StrictModel):
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"a part of type {kind[:40]!r} is not supported: expected type 'text'")
        return values


class Message(StrictModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: one_kind(Text, Annotated[list[TextPart], Field(max_length=64)]) | None  # type: ignore[valid-type]
    """The text, or a list of parts; null only for the assistant."""
    name: Annotated[Text, Field(max_length=64)] | None = None
    refusal: None = None
    tool_calls: EmptyList = None
    function_call: None = None
    audio: None = None
    annotations: EmptyList = None

    @model_validator(mode="after")
    def _check_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content is null in a message of role {self.role!r}: expected text")
        return self

    @property
    def text(self) -> str:
        """The message as one text."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ResponseFormat(StrictModel):
    type: Literal["text"]


class ChatRequest(CompletionParams):
    """Answer a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_tokens: PositiveCount | None = None
    max_completion_tokens: PositiveCount | None = None
    logprobs: Literal[False] | None = False
    top_logprobs: Literal[0] | None = None
    tools: EmptyList = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: EmptyList = None
    function_call: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[Text, Text], Field(max_length=0)] | None = None
    service_tier: Literal["auto", "default"] | None = None


class ChatMessage(ResponseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(ResponseModel):
    index: int = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(ResponseModel):
    """An answered conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    adapt: AdaptInfo | None = None
