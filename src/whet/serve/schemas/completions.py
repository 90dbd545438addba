"""Requests and responses of completions, chats and scores: OpenAI's fields and the block `adapt`.

A field of OpenAI's API that whet does not support is accepted only with its neutral value, so
that nothing a client asks for is silently ignored.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from whet.adapt.model import Score
from whet.serve.schemas import (
    Name,
    PositiveCount,
    ResponseModel,
    SelectionParams,
    StrictModel,
    Text,
)


def _single_prompt(value: Any) -> Any:
    """Unpack a prompt in a list of one; several prompts would need several answers."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"prompt is a list of {len(value)}: expected one text per request")
    return value[0] if isinstance(value, list) else value


def _not_null(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("null_item", "Input should be a string, not None")
    return value


def _kind(value: Any) -> str:
    """Which member of a union of a text and a list a value belongs to; errors are that member's."""
    return "a list" if isinstance(value, list) else "a text"


def _one_kind(text: Any, items: Any) -> Any:
    return Annotated[
        Annotated[text, Tag("a text")] | Annotated[items, Tag("a list")], Discriminator(_kind)
    ]


StopText = Annotated[Text, Field(max_length=256)]
Stop = _one_kind(
    StopText,
    Annotated[list[Annotated[StopText, BeforeValidator(_not_null)]], Field(max_length=4)],
)
EmptyList = Annotated[list[Any], Field(max_length=0)] | None
AdapterName = Literal["lora", "head", "full"]
Variant = Literal["base", "adapted"]


class AdaptParams(SelectionParams):
    """How the model is adapted for this request. With `n` = 0 it is not adapted."""

    adapter: AdapterName | None = None
    """What is trained [default: the server's first adapter]."""
    deadline_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    """Time for selection and training in seconds; the answer uses the steps that fit, even none
    [default: the key's limit]."""
    query: Text | None = None
    """Text to select documents for [default: the prompt]."""
    cache: Literal["reuse", "refresh", "off"] = "reuse"
    """Use a cached adapter for the same documents, train a new one, or do not cache."""
    include: Annotated[list[Literal["selection", "trace", "texts"]], Field(max_length=8)] = Field(
        default_factory=list
    )
    """Optional parts of the response: the selection, the loss of each step, the selected texts."""
    progress: bool = False
    """With `stream`: send chunks with `adapt_progress` during training."""


class StreamOptions(StrictModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionParams(StrictModel):
    """Fields that both kinds of completion have."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None  # type: ignore[valid-type]
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] | None = 0
    presence_penalty: Literal[0] | None = 0
    logit_bias: Annotated[dict[Text, float], Field(max_length=0)] | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    safety_identifier: Annotated[Text, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[Text, Field(max_length=512)] | None = None
    adapt: AdaptParams | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts of `stop` that are not empty."""
        texts: list[str] = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)


class CompletionRequest(CompletionParams):
    """Continue a prompt."""

    prompt: Annotated[
        Text, BeforeValidator(_single_prompt, json_schema_input_type=Text | list[Text])
    ]
    max_tokens: PositiveCount | None = None
    """Longest answer in tokens [default: 16, or the key's limit if that is lower]."""
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    logprobs: None = None
    suffix: Literal[""] | None = None


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
    content: _one_kind(Text, Annotated[list[TextPart], Field(max_length=64)]) | None  # type: ignore[valid-type]
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


class ScoreRequest(StrictModel):
    """Score a text given the prompt before it."""

    model: Name
    text: Text = Field(min_length=1)
    """Text to score."""
    prompt: Text = Field(min_length=1)
    """Text before it, which is read but not scored, and which the model is adapted to."""
    adapt: AdaptParams | None = None


class SelectedText(ResponseModel):
    """A document that the model was adapted on."""

    id: str
    """Id of the document."""
    count: int
    """How often it was selected."""
    sigma: float
    """Standard deviation after its first pick, relative to the prior's."""
    text: str | None = None
    """Text of the document."""


class AdaptInfo(ResponseModel):
    """How the model was adapted for a response."""

    adapter_id: str | None
    """Id of the cached adapter, to use as `model="NAME@ID"`; null if none was cached."""
    data_space: str | None
    """Name of the data space."""
    version: str | None
    """Version of the data space."""
    adapter: str | None
    """What was trained: lora, head or full; null without steps."""
    steps: int
    """Number of gradient steps."""
    stop_reason: str
    """Why training ended: n, alpha, deadline, cancelled, no_match (no document is near the prompt),
    cached (an adapter was reused), or base (the request asked for the base model)."""
    cached: bool
    """Whether a cached adapter was used."""
    sigma: list[float]
    """Standard deviation before the first pick and after each, relative to the prior's."""
    loss: list[float] | None = None
    """Loss before each step, in nats per token."""
    selection: list[SelectedText] | None = None
    """The selected documents."""
    seconds: dict[str, float]
    """Duration of the stages queue, select, train and generate, and of the whole request."""


class Usage(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    adapt_tokens: int
    """Tokens trained on."""


class CompletionChoice(ResponseModel):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(ResponseModel):
    """A continued prompt."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    adapt: AdaptInfo | None = None


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


class ScoreResponse(ResponseModel):
    """Bits per byte of a text under the base model and under the adapted model."""

    object: Literal["score"] = "score"
    model: str
    bits_per_byte: dict[Variant, float]
    """Bits per byte of the text."""
    nll: dict[Variant, float]
    """Negative log-likelihood of the whole text, in nats."""
    num_bytes: int
    """Length of the text in bytes of UTF-8."""
    num_tokens: int
    """Length of the text in tokens."""
    usage: Usage
    adapt: AdaptInfo

    @classmethod
    def from_scores(
        cls, model: str, base: Score, adapted: Score, usage: Usage, info: AdaptInfo
    ) -> "ScoreResponse":
        """The response for the scores of both models."""
        scores: dict[Variant, Score] = {"base": base, "adapted": adapted}
        return cls(
            model=model,
            bits_per_byte={variant: score.bits_per_byte for variant, score in scores.items()},
            nll={variant: score.bits * math.log(2) for variant, score in scores.items()},
            num_bytes=base.num_bytes,
            num_tokens=base.num_tokens,
            usage=usage,
            adapt=info,
        )
