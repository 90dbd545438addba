"""Requests and responses of chats."""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from whet.serve.schemas import ResponseModel, Text
from whet.serve.schemas.adapt import AdaptInfo, Usage
from whet.serve.schemas.client import ClientModel
from whet.serve.schemas.completions import (
    MAX_LOGPROBS,
    CompletionParams,
    MaxTokens,
    one_kind,
)

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(ClientModel):
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"a part of type {kind[:40]!r} is not supported: expected type 'text'")
        return values


class CalledFunction(ClientModel):
    name: ToolName
    arguments: Text
    """The arguments as a JSON object."""

    @field_validator("arguments")
    @classmethod
    def _check_object(cls, text: str) -> str:
        try:
            valid = isinstance(json.loads(text or "{}"), dict)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise ValueError("expected a JSON object")
        return text


class ToolCall(ClientModel):
    """A function call of the assistant."""

    id: Annotated[Text, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(ClientModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: one_kind(Text, Annotated[list[TextPart], Field(max_length=1024)]) | None = None  # type: ignore[valid-type]
    """The text, or a list of parts; null only for the assistant."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = Field(default_factory=list)
    """The assistant's function calls."""
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = None
    """The call that a message of role `tool` answers."""

    @model_validator(mode="after")
    def _check_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content is null in a message of role {self.role!r}: expected text")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls in a message of role {self.role!r}: expected 'assistant'")
        return self

    @property
    def text(self) -> str:
        """The message as one text."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: the arguments of calls are objects."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.loads(call.function.arguments or "{}"),
                    },
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class Function(ClientModel):
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""


class Tool(ClientModel):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        function = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": NO_PARAMETERS
            if self.function.parameters is None
            else self.function.parameters,
        }
        return {"type": "function", "function": function}


class NamedFunction(ClientModel):
    name: ToolName


class NamedTool(ClientModel):
    """A function that the model must call."""

    type: Literal["function"]
    function: NamedFunction


def _choice_kind(value: Any) -> str:
    return "a function" if isinstance(value, dict) else "a word"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a word")]
    | Annotated[NamedTool, Tag("a function")],
    Discriminator(_choice_kind),
]


class JsonSchema(ClientModel):
    name: Annotated[Text, Field(max_length=64)] = ""
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    """The JSON schema of the answer."""
    strict: bool = True
    """Has no effect: an answer always matches the schema."""


class ResponseFormat(ClientModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema is expected with type 'json_schema', and only with it")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that an answer must match; None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(CompletionParams):
    """Answer a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: MaxTokens | None = None
    """Longest answer in tokens [default: all that fit, up to the key's limit]."""
    max_completion_tokens: MaxTokens | None = None
    """The present name of `max_tokens`."""
    logprobs: bool = False
    """Whether log-probabilities of the answer's tokens are returned."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    """Number of most likely tokens at each position whose log-probabilities are returned."""
    tools: Annotated[list[Tool], Field(max_length=128)] = Field(default_factory=list)
    """Functions that the model may call, if its chat template supports that."""
    tool_choice: ToolChoice = "auto"
    """Whether the model calls functions: `none`, `auto`, `required`, or a certain one."""
    parallel_tool_calls: bool = True
    """Whether an answer may contain more than one call."""
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is set and logprobs is not: expected logprobs true")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have the same name")
        choice = self.tool_choice
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ValueError(f"tool_choice is {choice.function.name!r}, which is not one of tools")
        if choice == "required" and not names:
            raise ValueError("tool_choice is 'required', but there are no tools")
        if names and choice != "none" and self.answer_schema is not None:
            raise ValueError(
                "response_format cannot be combined with tools: leave out one of them, or set "
                "tool_choice to 'none'"
            )
        return self

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must match; None for any text."""
        return None if self.response_format is None else self.response_format.schema_of_answer

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        choice = self.tool_choice
        if choice == "none":
            return []
        if isinstance(choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == choice.function.name]
        return self.tools


class CalledFunctionObject(ResponseModel):
    name: str
    arguments: str


class ToolCallObject(ResponseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunctionObject


class TokenLogprobObject(ResponseModel):
    token: str
    logprob: float
    bytes: list[int]


class TopLogprobs(TokenLogprobObject):
    top_logprobs: list[TokenLogprobObject]


class ChatLogprobs(ResponseModel):
    """Log-probabilities of the tokens of an answer."""

    content: list[TopLogprobs]
    refusal: None = None


class ChatMessage(ResponseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallObject] | None = None


class ChatChoice(ResponseModel):
    index: int = 0
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(ResponseModel):
    """An answered conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    adapt: AdaptInfo | None = None
