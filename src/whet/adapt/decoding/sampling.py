"""Sampling: which token comes next, which text is final so far, and where a sequence ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.maths.arrays import as_count

Tokens = Int[Tensor, " t"]
REPLACEMENT_CHAR = "\ufffd"  # for a character whose bytes are not all there yet


@runtime_checkable
class TextModel(Protocol):
    """What a sequence needs of a language model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode_prompt(self, prompt: str | Sequence[int], max_tokens: int) -> Int[Tensor, " t"]: ...

    def decode_after(self, prompt: Tokens, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How text is generated, and where it ends."""

    max_tokens: int = 128
    """Maximum number of generated tokens."""
    temperature: float = 0.0
    """Sampling temperature; 0 takes the most likely token each time."""
    top_p: float = 1.0
    """Sample among the most likely tokens with this total probability."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 for all."""
    seed: int = 0
    """Random seed; the same seed samples the same tokens, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Texts at which generation ends; they are not part of the output."""

    def __post_init__(self) -> None:
        as_count(self.max_tokens, "max_tokens")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: expected more than 0, at most 1")
        if self.top_k:
            as_count(self.top_k, "top_k")
        if "" in self.stop:
            raise ValueError("stop contains an empty text: every sequence would end at once")


class SequenceState:
    """The state of one generated sequence: its tokens, and the text that is final so far.

    Raises:
        ValueError: If the prompt and `max_tokens` exceed the model's context.
    """

    def __init__(
        self, model: TextModel, prompt: str | Sequence[int], sampling: SamplingParams
    ) -> None:
        self._model, self._sampling = model, sampling
        self.prompt: Int[Tensor, " t"] = model.encode_prompt(prompt, sampling.max_tokens)
        self.token_ids: list[int] = []
        """The tokens generated so far."""
        self._random = torch.Generator(model.device).manual_seed(sampling.seed)
        self._returned = 0  # characters that `append` has returned
        self.text = ""
        """The text generated so far, without its stop text."""
        self.finish_reason: str | None = None
        """`stop` or `length` when the sequence has ended."""

    def sample(self, logits: Float[Tensor, " v"]) -> Int[Tensor, ""]:
        """The next token, to be given to `append`."""
        sampling = self._sampling
        if not sampling.temperature:
            return logits.argmax()
        logits, tokens = logits.sort(descending=True, stable=True)
        logits = (logits.double() - logits[0]) / sampling.temperature  # 1e-50 is 0 in float32
        if sampling.top_k:
            logits[sampling.top_k :] = -math.inf
        probabilities = logits.softmax(0).float()
        before = probabilities.cumsum(0) - probabilities
        probabilities[before >= sampling.top_p] = 0  # never the first token
        return tokens[torch.multinomial(probabilities, 1, generator=self._random)[0]]

    def append(self, token: int) -> str:
        """Add a token; return the text that became final, which may be empty."""
        self.token_ids.append(token)
        if token in self._model.eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._sampling.max_tokens:
            self.finish_reason = "length"
        return self._detokenize()

    def _detokenize(self) -> str:
        """Cut the text at a stop text; hold back what may become one, or is half a character."""
        text = self._model.decode_after(self.prompt[1:], self.token_ids)
        cuts = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, self.finish_reason = text[: min(cuts)], "stop"
        self.text = text
        final = len(text)
        if not self.finish_reason:
            complete = text.rstrip(REPLACEMENT_CHAR)  # a stop text may begin with what is cut off
            final = len(complete)
            for stop in self._sampling.stop:
                held = (n for n in range(len(stop) - 1, 0, -1) if complete.endswith(stop[:n]))
                final = min(final, len(complete) - next(held, 0))
        piece = text[self._returned : final]
        self._returned = max(self._returned, final)
        return piece
