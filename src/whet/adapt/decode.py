"""The continuation of a prompt, a token at a time, so that many prompts can take turns.

Keeps the keys and values of what was read. Whatever the weights are when a step is taken, they make
that token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from whet.errors import ModelError
from whet.maths.arrays import as_count

if TYPE_CHECKING:
    from whet.adapt.model import LanguageModel

HALF = "\ufffd"  # what a tokenizer shows of a character whose bytes are not all there yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
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
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: expected 0 or more")
        if "" in self.stop:
            raise ValueError("stop holds an empty text: every continuation would end at once")


class Decoder:
    """A continuation in the making.

    Raises:
        ValueError: If prompt and answer together exceed the model's context.
        ModelError: By `step`, if what the model says is not finite.
    """

    def __init__(
        self, model: "LanguageModel", prompt: str | Sequence[int], sampling: Sampling
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._unread = model.fitting(prompt, sampling.max_tokens)
        self._cache: Any = None
        self._tokens: list[int] = []
        self._random = torch.Generator(model.device).manual_seed(sampling.seed)
        self._told = 0
        self.text = ""
        """The continuation so far, without its stop text."""
        self.finish: str | None = None
        """stop or length, once there is no more to come."""

    @property
    def count(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    @torch.no_grad()
    def step(self) -> str:
        """One token more; returns what it makes certain of the text, maybe nothing."""
        output = self._model.network.base_model(
            input_ids=self._unread[None], past_key_values=self._cache, use_cache=True
        )
        self._cache = output.past_key_values
        [logits] = self._model.output().logits(output.last_hidden_state[0, -1:])
        if not logits.isfinite().all():
            raise ModelError(
                f"logits of {self._model.name} are not finite at token {self.count + 1} of its "
                "answer: lower the learning rate, or load the model as float32"
            )
        token = self._draw(logits)
        self._unread = token[None]
        self._tokens.append(int(token))
        if self._tokens[-1] in self._model.ends:
            self.finish = "stop"
        elif len(self._tokens) == self._sampling.max_tokens:
            self.finish = "length"
        return self._tell()

    def _draw(self, logits: Float[Tensor, " v"]) -> Tensor:
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

    def _tell(self) -> str:
        """Cut the text at a stop text; hold back what may still become one, or is half a letter."""
        text = str(self._model.tokenizer.decode(self._tokens, skip_special_tokens=True))
        cuts = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, self.finish = text[: min(cuts)], "stop"
        self.text = text
        certain = len(text)
        if not self.finish:
            certain = len(text.rstrip(HALF))
            for stop in self._sampling.stop:
                held = (n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
                certain = min(certain, len(text) - next(held, 0))
        piece = text[self._told : certain]
        self._told = max(self._told, certain)
        return piece
