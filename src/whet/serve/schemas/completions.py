"""Requests and responses of completions: OpenAI's fields, those of vLLM, and the block `adapt`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from whet.serve.schemas import LARGEST, Name, ResponseModel, Text
from whet.serve.schemas.adapt import AdaptInfo, AdaptParams, Usage
from whet.serve.schemas.client import ClientModel

MAX_PROMPTS = 256
"""Largest number of prompts in a request."""
MAX_CHOICES = 16
"""Largest number of answers to a prompt."""
MAX_LOGPROBS = 20
"""Largest number of most likely tokens at each position."""


def _as_prompts(value: Any) -> Any:
    """A list of prompts, each a text or a list of token ids."""
    if isinstance(value, str) or (isinstance(value, list) and _is_number(*value[:1])):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError(
            "prompt_type", "Input should be a text, a list of token ids, or a list of these"
        )
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise ValueError(
            f"a list of {len(value)} prompts: expected 1 to {MAX_PROMPTS} in a request"
        )
    return value


def _is_number(*values: Any) -> bool:
    return any(isinstance(value, int | float) for value in values)


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
    Annotated[list[Annotated[StopText, BeforeValidator(_not_null)]], Field(max_length=64)],
)
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = one_kind(Text, TokenIds)
MaxTokens = Annotated[int, Field(ge=-1, le=LARGEST)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
LogitBias = Annotated[
    dict[Annotated[int, Field(ge=0, lt=2**31)], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]


class StreamOptions(ClientModel):
    include_usage: bool = False
    """Send a chunk with the usage at the end."""
    continuous_usage_stats: bool = False
    """Send the usage so far in each chunk."""


class CompletionParams(ClientModel):
    """Fields that both kinds of completion have."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=LARGEST)] = 0
    """Sample among this many most likely tokens; 0 or -1 for all."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Sample among the tokens with at least this probability, relative to the most likely one."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None  # type: ignore[valid-type]
    """Up to 64 texts at which the answer ends."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    """Number of answers; the model is adapted once for all of them."""
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that have occurred."""
    logit_bias: LogitBias = Field(default_factory=dict)
    """Numbers that are added to the logits of token ids."""
    adapt: AdaptParams | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts of `stop` that are not empty."""
        texts: list[str] = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)


class CompletionRequest(CompletionParams):
    """Continue prompts."""

    prompt: Annotated[
        list[Prompt],  # type: ignore[valid-type]
        BeforeValidator(
            _as_prompts,
            json_schema_input_type=Text | list[Text] | list[TokenId] | list[list[TokenId]],
        ),
    ]
    """A text, a list of token ids, or a list of these; the model is adapted to each by itself."""
    max_tokens: MaxTokens | None = None
    """Longest answer in tokens; -1 for all that fit, 0 for none, as to score a prompt with `echo`
    [default: 16, or the key's limit if that is lower]."""
    echo: bool = False
    """Whether the answers begin with the prompt."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """The same as `n`: answers are not generated in order to be left out."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Number of most likely tokens at each position whose log-probabilities are returned."""

    @model_validator(mode="after")
    def _check(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            raise ValueError(
                f"best_of is {self.best_of} and n is {self.n}: expected the same, because whet "
                "returns every answer that it generates"
            )
        if self.stream and self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs cannot be streamed: leave out one of the three")
        return self


class CompletionLogprobs(ResponseModel):
    """Log-probabilities of the tokens of a choice."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Position of each token in the text, in characters."""


class CompletionChoice(ResponseModel):
    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None
    adapt: AdaptInfo | None = None
    """How the model was adapted to the prompt, if there are several prompts."""


class Completion(ResponseModel):
    """Continued prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    adapt: AdaptInfo | None = None
