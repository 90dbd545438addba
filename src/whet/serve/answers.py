"""What answers hold: OpenAI's fields, and one block more, `adapt`."""

import math
from typing import Any, Literal

from pydantic import BaseModel

from whet.adapt.model import Score

Before = Literal["base", "sharpened"]


class Picked(BaseModel):
    """A text that a request was sharpened on."""

    id: str
    count: int
    sigma: float
    """σ after its first pick, as a share of the prior's."""
    text: str | None = None


class Adapted(BaseModel):
    """How an answer's model was sharpened."""

    adapter: str | None
    """Name to ask for it again; none where nothing was kept."""
    data_space: str | None
    version: str | None
    method: str | None
    steps: int
    stop_reason: str
    """n, alpha, deadline, cancelled, nothing_near, kept (an adapter was taken), or base."""
    cached: bool
    sigma: list[float]
    loss: list[float] | None = None
    selection: list[Picked] | None = None
    timing_ms: dict[str, float]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    adapt_tokens: int


class CompletionChoice(BaseModel):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    adapt: Adapted | None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    adapt: Adapted | None = None


class Scored(BaseModel):
    """Bits per byte of a text before and after the model was sharpened on its prompt."""

    object: Literal["score"] = "score"
    model: str
    bits_per_byte: dict[Before, float]
    nll: dict[Before, float]
    """Nats for the whole text."""
    bytes: int
    tokens: int
    usage: Usage
    adapt: Adapted

    @classmethod
    def of(
        cls, model: str, before: Score, after: Score, usage: Usage, adapted: Adapted
    ) -> "Scored":
        scores: dict[Before, Score] = {"base": before, "sharpened": after}
        return cls(
            model=model,
            bits_per_byte={which: score.bits_per_byte for which, score in scores.items()},
            nll={which: score.bits * math.log(2) for which, score in scores.items()},
            bytes=before.bytes,
            tokens=before.tokens,
            usage=usage,
            adapt=adapted,
        )


class Found(BaseModel):
    """A text of a data space, as selected or found."""

    id: str
    label: str | None = None
    text: str | None = None
    meta: dict[str, Any]
    """Its other fields."""
    score: float | None = None
    """Signed cosine to the prompt."""
    sigma: float | None = None
    """σ after this pick, as a share of the prior's."""
    gain: float | None = None
    """By how much the pick lowered σ²."""


class FoundList(BaseModel):
    object: Literal["list"] = "list"
    data_space: str
    version: str
    data: list[Found]
    sigma: list[float] | None = None
    """σ before the first pick and after each."""


class AdapterObject(BaseModel):
    """A kept adapter, to be asked for as `model`."""

    id: str
    object: Literal["adapter"] = "adapter"
    created: int
    model: str
    """What to give as `model`."""
    data_space: str
    version: str
    method: str
    steps: int
    documents: int
    bytes: int


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdapterObject]


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whet"
    parent: str | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class SpaceObject(BaseModel):
    """A data space, as far as the key may read it."""

    id: str
    object: Literal["data_space"] = "data_space"
    documents: int
    version: str
    embedder: str


class SpaceList(BaseModel):
    object: Literal["list"] = "list"
    data: list[SpaceObject]


class Written(BaseModel):
    """What a request changed in a data space."""

    object: Literal["data_space.change"] = "data_space.change"
    data_space: str
    version: str
    added: int = 0
    known: int = 0
    """Documents that were there already, with the same text."""
    deleted: int = 0


class Deleted(BaseModel):
    id: str
    object: Literal["adapter"] = "adapter"
    deleted: bool


class Health(BaseModel):
    status: Literal["ok", "full"]
    model: str
