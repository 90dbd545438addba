"""What requests hold: OpenAI's fields, and one block more, `adapt`.

A field that OpenAI's API has and whet does not do is accepted at its neutral value alone: nothing
that a client asks for is left out in silence.
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from whet.select.registry import SELECTORS, selector
from whet.serve.errors import UNKNOWN

LONGEST = 64  # characters of an unknown field that are told


def _whole(text: str) -> str:
    """`text`, if it can be written at all: JSON may spell half a character."""
    text.encode()
    return text


def _one_text(given: Any) -> Any:
    """OpenAI's clients may put a prompt in a list; several would be several answers."""
    if isinstance(given, list) and len(given) != 1:
        raise ValueError(f"prompt is a list of {len(given)}: expected one text a request")
    return given[0] if isinstance(given, list) else given


Text = Annotated[str, AfterValidator(_whole)]
Empty = Annotated[list[Any], Field(max_length=0)] | None
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Noise = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Name = Annotated[Text, Field(min_length=1, max_length=256)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Value = Annotated[Text, Field(max_length=4096)] | bool | Whole | Finite
Method = Literal["lora", "head", "full"]
SelectorName = Annotated[
    str,
    AfterValidator(lambda name: selector(name) and name),
    Field(json_schema_extra={"enum": list(SELECTORS)}),
]


class Strict(BaseModel):
    """Unknown fields are errors, which name what there is, or what is spelled alike."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        fields = [field.alias or name for name, field in cls.model_fields.items()]
        for name in given if isinstance(given, dict) else ():
            if name not in fields and name not in cls.model_fields:
                name = name[:LONGEST].encode("utf-8", "replace").decode()
                there = ", ".join(get_close_matches(name, fields) or fields)
                told = "there is no field {field}: expected {there}"
                raise PydanticCustomError(UNKNOWN, told, {"field": name, "there": there})
        return given


class Looking(Strict):
    """Where texts are looked for."""

    data_space: Name | None = Field(default=None, description="Default: the server's first.")
    where: Annotated[Text, Field(max_length=1024)] | None = Field(
        default=None,
        description='What a text must pass, such as `set == "github" and year >= 2010`.',
    )
    retriever: Literal["dense", "bm25", "hybrid"] = Field(
        default="dense", description="Who nominates texts: vectors, the prompt's words, or both."
    )


class Choosing(Looking):
    """How texts are chosen for a prompt."""

    n: Count | None = Field(default=None, description="Texts to choose, repeats included.")
    k: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Candidates nearest the prompt, among which the selector chooses."
    )
    selector: SelectorName = "sift"
    lam: Noise = Field(default=0.01, alias="lambda", description="λ', the variance of the noise.")
    stop_alpha: Noise | None = Field(
        default=None,
        description="Adaptive stopping: stop before step m if σ_m > 1 / (α m); null takes all steps.",
    )


class Adapt(Choosing):
    """How the model is sharpened for this request. With n = 0 it is not."""

    method: Method | None = Field(default=None, description="Default: the server's.")
    deadline_ms: Count | None = Field(
        default=None, description="Answer with as many steps as fit; 0 answers with the base model."
    )
    query: Text | None = Field(default=None, description="Text to choose for; default: the prompt.")
    cache: Literal["reuse", "refresh", "off"] = Field(
        default="reuse",
        description="Take a kept adapter of the same selection, make it anew, keep none.",
    )
    returns: list[Literal["selection", "trace", "texts"]] = Field(
        default_factory=list, alias="return", max_length=8
    )
    progress: bool = Field(
        default=False, description="With `stream`: events while the model is sharpened."
    )


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionParams(Strict):
    """Fields that both kinds of completion have."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[Text, Field(max_length=256)] | Annotated[
        list[Annotated[Text, Field(max_length=256)]], Field(max_length=4)
    ] | None = None  # fmt: skip
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] | None = 0
    presence_penalty: Literal[0] | None = 0
    logit_bias: Annotated[dict[Text, float], Field(max_length=0)] | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    adapt: Adapt | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


class CompletionRequest(CompletionParams):
    prompt: Annotated[Text, BeforeValidator(_one_text, json_schema_input_type=Text | list[Text])]
    max_tokens: Tokens | None = Field(
        default=None, description="Default: 16, or the key's limit where that is lower."
    )
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    logprobs: None = None
    suffix: Literal[""] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=64)]
    name: Annotated[Text, Field(max_length=64)] | None = None
    refusal: None = None
    tool_calls: Empty = None
    function_call: None = None
    audio: None = None
    annotations: Empty = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(CompletionParams):
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: Literal[False] | None = False
    top_logprobs: Literal[0] | None = None
    tools: Empty = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Empty = None
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


class ScoreRequest(Strict):
    model: Name
    text: Text = Field(min_length=1, description="What is scored.")
    prompt: Text = Field(min_length=1, description="What comes before it: read, not scored.")
    adapt: Adapt | None = None


class SelectRequest(Choosing):
    prompt: Text
    texts: bool = Field(default=True, description="Whether the texts come along.")


class SearchRequest(Looking):
    prompt: Text
    k: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10, description="Texts; with `hybrid` candidates so many by vectors and by words."
    )
    texts: bool = True


class AdapterRequest(Strict):
    """Sharpen for a prompt and keep the adapter, to be used as `model="BASE@ID"`."""

    prompt: Text
    model: Name
    adapt: Adapt | None = None


class NewDocument(Strict):
    id: Annotated[Text, Field(min_length=1, max_length=256)]
    text: Annotated[Text, Field(min_length=1)]
    label: Annotated[Text, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    meta: Annotated[dict[Name, Value], Field(max_length=64)] = Field(default_factory=dict)


class AddRequest(Strict):
    documents: Annotated[list[NewDocument], Field(min_length=1, max_length=10_000)]


class DeleteRequest(Strict):
    ids: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
