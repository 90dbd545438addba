"""How a prompt is continued: which token is drawn, what of the text is certain, where it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.maths.arrays import as_count

if TYPE_CHECKING:
    from whet.adapt.model import LanguageModel

HALF = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there yet


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a continuation is drawn, and where it ends."""

    max_tokens: int = 128
    """Longest continuation."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this share of the probability."""
    top_k: int = 0
    """Draw among so many likeliest tokens; 0 for all."""
    seed: int = 0
    """The same seed draws the same tokens, whatever runs beside."""
    stop: tuple[str, ...] = ()
    """Texts before which the continuation ends."""

    def __post_init__(self) -> None:
        as_count(self.max_tokens, "max_tokens")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: expected more than 0, at most 1")
        if self.top_k:
            as_count(self.top_k, "top_k")
        if "" in self.stop:
            raise ValueError("stop holds an empty text: every continuation would end at once")


class SequenceState:
    """A continuation in the making: the tokens drawn, and what of the text is certain.

    Raises:
        ValueError: If prompt and answer together exceed the model's context.
    """

    def __init__(
        self, model: "LanguageModel", prompt: str | Sequence[int], sampling: SamplingParams
    ) -> None:
        self._model, self._sampling = model, sampling
        self.prompt: Int[Tensor, " t"] = model.encode_prompt(prompt, sampling.max_tokens)
        self.tokens: list[int] = []
        """Those drawn so far."""
        self._random = torch.Generator(model.device).manual_seed(sampling.seed)
        self._told = 0
        self.text = ""
        """The continuation so far, without its stop text."""
        self.finish: str | None = None
        """stop or length, once there is no more to come."""

    def draw(self, logits: Float[Tensor, " v"]) -> Int[Tensor, ""]:
        """The next token, which `take` is to be given."""
        sampling = self._sampling
        if not sampling.temperature:
            return logits.argmax()
        logits, tokens = logits.sort(descending=True, stable=True)
        logits = (logits.double() - logits[0]) / sampling.temperature  # 1e-50 is 0 in float32
        if sampling.top_k:
            logits[sampling.top_k :] = -math.inf
        shares = logits.softmax(0).float()
        shares[shares.cumsum(0) - shares >= sampling.top_p] = 0  # the first one always stays
        return tokens[torch.multinomial(shares, 1, generator=self._random)[0]]

    def take(self, token: int) -> str:
        """One token more; returns what it makes certain of the text, maybe nothing."""
        self.tokens.append(token)
        if token in self._model.eos_token_ids:
            self.finish = "stop"
        elif len(self.tokens) == self._sampling.max_tokens:
            self.finish = "length"
        return self._tell()

    def _tell(self) -> str:
        """Cut the text at a stop text; hold back what may still become one, or is half a letter."""
        text = str(self._model.tokenizer.decode(self.tokens, skip_special_tokens=True))
        cuts = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, self.finish = text[: min(cuts)], "stop"
        self.text = text
        certain = len(text)
        if not self.finish:
            whole = text.rstrip(HALF)  # what is cut off may go on as a stop text does
            certain = len(whole)
            for stop in self._sampling.stop:
                held = (n for n in range(len(stop) - 1, 0, -1) if whole.endswith(stop[:n]))
                certain = min(certain, len(whole) - next(held, 0))
        piece = text[self._told : certain]
        self._told = max(self._told, certain)
        return piece
