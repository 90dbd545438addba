"""Requests and responses of completions, chats and scores: OpenAI's fields and the block `adapt`.

A field of OpenAI's API that whet does not support is accepted only with its neutral value, so
that nothing a client asks for is silently ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from whet.serve.schemas import Name, PositiveCount, ResponseModel, StrictModel, Text
from whet.serve.schemas.adapt import AdaptInfo, AdaptParams, Usage


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


def one_kind(text: Any, items: Any) -> Any:
    return Annotated[
        Annotated[text, Tag("a text")] | Annotated[items, Tag("a list")], Discriminator(_kind)
    ]


StopText = Annotated[Text, Field(max_length=256)]
Stop = one_kind(
    StopText,
    Annotated[list[Annotated[StopText, BeforeValidator(_not_null)]], Field(max_length=4)],
)
EmptyList = Annotated[list[Any], Field(max_length=0)] | None


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
