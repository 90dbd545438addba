"""What a request tells while it is worked on, and at its end."""

from typing import Literal

from pydantic import BaseModel

from whet.serve.answers import Adapted, Picked, Scores, Usage


class Chosen(BaseModel):
    """What the model will be sharpened on."""

    selection: list[Picked]
    sigma: list[float]


class Stepped(BaseModel):
    """A gradient step was taken."""

    done: int
    total: int
    loss: float
    """Nats per token of the step's text, before the step."""
    bits_per_byte: float
    """Of the same."""
    ms: float
    """Since the request came."""


class Wrote(BaseModel):
    """More of the answer."""

    text: str


class Answered(BaseModel):
    """The end."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    adapted: Adapted
    scores: Scores | None = None


Event = Chosen | Stepped | Wrote | Answered
