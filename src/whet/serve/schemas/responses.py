"""Requests and responses of `/v1/responses`, without state on the server."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from whet.serve.schemas import LARGEST, Name, ResponseModel, Text
from whet.serve.schemas.adapt import AdaptInfo, AdaptParams
from whet.serve.schemas.chat import ChatRequest, JsonSchema, ToolName
from whet.serve.schemas.client import ClientModel
from whet.serve.schemas.completions import one_kind

NO_STATE = "this server stores no responses: send the earlier messages in input instead"
MAX_ITEMS = 1024
CONTENT_TYPES = ("input_text", "output_text", "text")


class ContentPart(ClientModel):
    type: Literal["input_text", "output_text", "text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind not in CONTENT_TYPES:
            raise ValueError(
                f"a part of type {kind[:40]!r} is not supported: expected type 'input_text'"
            )
        return values


Content = one_kind(Text, Annotated[list[ContentPart], Field(max_length=MAX_ITEMS)])


def _text(content: str | list[ContentPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class MessageItem(ClientModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content  # type: ignore[valid-type]
    id: Text | None = None
    status: Text | None = None


class FunctionCallItem(ClientModel):
    """A function call of the model."""

    type: Literal["function_call"]
    call_id: Annotated[Text, Field(max_length=256)]
    name: ToolName
    arguments: Text
    """The arguments as a JSON object."""
    id: Text | None = None
    status: Text | None = None


class FunctionOutputItem(ClientModel):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: Annotated[Text, Field(max_length=256)]
    output: Content  # type: ignore[valid-type]
    id: Text | None = None
    status: Text | None = None


class ReasoningItem(ClientModel):
    """The reasoning of another model, which is ignored."""

    type: Literal["reasoning"]


ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")


def _item_type(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", "")
    return kind if kind in ITEM_TYPES else "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_item_type),
]


class FunctionTool(ClientModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None
    """Has no effect."""


class FunctionChoice(ClientModel):
    """A function that the model must call."""

    type: Literal["function"]
    name: ToolName


def _choice_kind(value: Any) -> str:
    return "a word" if isinstance(value, str) else "a function"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a word")]
    | Annotated[FunctionChoice, Tag("a function")],
    Discriminator(_choice_kind),
]


class TextFormat(JsonSchema):
    """The form of the answer: any text, a JSON object, or what matches a JSON schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")  # type: ignore[assignment]
    """The JSON schema of the answer."""


class TextOptions(ClientModel):
    format: TextFormat = Field(default_factory=TextFormat)


class StreamOptions(ClientModel):
    include_obfuscation: bool = False
    """Has no effect."""


class ResponsesRequest(ClientModel):
    """Answer a conversation that the request contains completely."""

    model: Name
    input: one_kind(Text, Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)])  # type: ignore[valid-type]
    """A text, or the items of the conversation."""
    instructions: Text | None = None
    """A system message in front of the conversation."""
    max_output_tokens: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Longest answer in tokens [default: all that fit, up to the key's limit]."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] = Field(default_factory=list)
    """Functions that the model may call."""
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = Field(default_factory=TextOptions)
    metadata: dict[Text, Text] = Field(default_factory=dict)
    """Returned unchanged."""
    previous_response_id: Text | None = None
    conversation: Any = None
    background: bool = False
    prompt: Any = None
    adapt: AdaptParams | None = None

    @field_validator("previous_response_id", "conversation", "prompt")
    @classmethod
    def _check_no_state(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError(NO_STATE)
        return value

    @field_validator("background")
    @classmethod
    def _check_background(cls, background: bool) -> bool:
        if background:
            raise ValueError(NO_STATE)
        return background

    @model_validator(mode="after")
    def _check_chat(self) -> "ResponsesRequest":
        try:
            self.as_chat()
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ValueError(f"{path}: {message}" if path else message) from None
        return self

    def as_chat(self) -> ChatRequest:
        """The request as one for a chat completion."""
        values: dict[str, Any] = {
            "model": self.model, "messages": list(self._messages()), "stream": self.stream,
            "max_completion_tokens": self.max_output_tokens, "temperature": self.temperature,
            "top_p": self.top_p, "parallel_tool_calls": self.parallel_tool_calls,
            "adapt": self.adapt,
        }  # fmt: skip
        values["tools"] = [
            {
                "type": "function",
                "function": tool.model_dump(include={"name", "description", "parameters"}),
            }
            for tool in self.tools
        ]
        choice = self.tool_choice
        values["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}}
            if isinstance(choice, FunctionChoice)
            else choice
        )
        if (form := self.text.format).type != "text":
            values["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            schema = {"name": form.name, "schema": form.schema_}
            values["response_format"]["json_schema"] = schema
        return ChatRequest.model_validate(values)

    def _messages(self) -> Iterator[dict[str, Any]]:
        """The conversation as messages; calls that follow each other are one message."""
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
            return
        calls: list[dict[str, Any]] = []
        for item in self.input:
            if calls and not isinstance(item, FunctionCallItem):
                yield {"role": "assistant", "content": None, "tool_calls": calls}
                calls = []
            match item:
                case MessageItem():
                    yield {"role": item.role, "content": _text(item.content)}
                case FunctionCallItem():
                    function = {"name": item.name, "arguments": item.arguments}
                    calls.append({"id": item.call_id, "type": "function", "function": function})
                case FunctionOutputItem():
                    text = _text(item.output)
                    yield {"role": "tool", "content": text, "tool_call_id": item.call_id}
        if calls:
            yield {"role": "assistant", "content": None, "tool_calls": calls}


class ResponseUsage(ResponseModel):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int
    adapt_tokens: int
    """Tokens trained on."""


class ResponseError(ResponseModel):
    code: str
    message: str


class ResponseObject(ResponseModel):
    """An answer, with the settings that it was generated with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: dict[str, str] | None = None
    """Why the answer is incomplete: `reason` is max_output_tokens."""
    model: str
    output: list[dict[str, Any]]
    """Messages and function calls."""
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    metadata: dict[str, str]
    store: Literal[False] = False
    previous_response_id: None = None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    adapt: AdaptInfo | None = None
