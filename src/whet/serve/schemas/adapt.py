"""The block `adapt` of requests and responses, and the request and response of scores."""

import math
from typing import Annotated, Literal

from pydantic import Field

from whet.adapt.config import Use, UseOption
from whet.adapt.evidence import Evidence
from whet.adapt.model import Score
from whet.serve.schemas import Name, ResponseModel, SelectionParams, StrictModel, Text

AdapterName = Literal["lora", "head", "full"]
Variant = Literal["base", "adapted"]


class AdaptParams(SelectionParams):
    """How the model is adapted for this request. With `n` = 0 it is not adapted."""

    adapter: AdapterName | None = None
    """What is trained [default: the server's first adapter]."""
    use: UseOption = "auto"
    """What the selected documents are used for: gradient steps (`steps`), to be read by the model
    in front of the prompt or in the user's last message (`context`), or `both`. With `auto`, a chat
    with a model that has a chat template reads them, and takes steps, too, if `adapter` is given;
    any other request takes steps."""
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


class EvidenceInfo(ResponseModel):
    """What an answer rests on, and whether the steps made the end of the prompt more likely."""

    before: float | None
    """Bits per byte of the last quarter of the prompt, given the rest, before the first step; null
    if it was not measured, as for a short prompt."""
    after: float | None
    """The same after the last step."""
    steps: int
    """Number of steps of the weights that answer: 0 if the steps were undone."""
    passages: dict[str, int]
    """Number of steps on each passage, by its id."""
    in_context: list[str]
    """Ids of the passages that the model has read, the first one nearest to the question."""
    sigma: float | None
    """σ after the last pick that was used."""
    line: str
    """All of this in one line, with the seconds."""

    @classmethod
    def of(cls, evidence: Evidence) -> "EvidenceInfo":
        """The evidence as JSON values, which have no infinity."""
        before, after = (
            bits if bits is not None and math.isfinite(bits) else None
            for bits in (evidence.before, evidence.after)
        )
        return cls(
            before=before,
            after=after,
            steps=evidence.num_steps,
            passages=dict(evidence.passages),
            in_context=list(evidence.in_context),
            sigma=evidence.sigma,
            line=str(evidence),
        )


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
    """Why training ended: n, alpha, learned (nothing was left to learn), deadline, cancelled,
    evidence (the steps did not help and were undone), no_match (no document is near the prompt),
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
    use: Use
    """What the selected documents were used for."""
    evidence: EvidenceInfo
    """What the answer rests on."""


class Usage(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    adapt_tokens: int
    """Tokens trained on."""


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
