"""What a request tells while it is worked on, and at its end."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from whet.adapt.model import Score
from whet.serve.answers import Adapted, Picked, Usage


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The end."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    adapted: Adapted
    scores: tuple[Score, Score] | None
    """Of the text that was to be scored, before and after the steps."""


Event = Chosen | Stepped | Wrote | Answered
