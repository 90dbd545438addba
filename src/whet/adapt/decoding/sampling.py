"""Sampling: which token comes next, which text is final so far, and where a sequence ends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.adapt.decoding.grammar import Grammar
from whet.adapt.decoding.logprobs import TokenLogprob, token_logprobs
from whet.maths.arrays import as_count

Tokens = Int[Tensor, " t"]
REPLACEMENT_CHAR = "\ufffd"  # for a character whose bytes are not all there yet


@runtime_checkable
class TextModel(Protocol):
    """What a sequence needs of a language model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode_prompt(self, prompt: str | Sequence[int], max_tokens: int) -> Int[Tensor, " t"]: ...

    def decode_after(self, prompt: Tokens, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How text is generated, and where it ends.

    Penalties, `logit_bias` and the grammar change the logits first, then the temperature, then
    `top_k`, `min_p` and `top_p` leave out tokens.
    """

    max_tokens: int = 128
    """Maximum number of generated tokens."""
    temperature: float = 0.0
    """Sampling temperature; 0 takes the most likely token each time."""
    top_p: float = 1.0
    """Sample among the most likely tokens with this total probability."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 for all."""
    min_p: float = 0.0
    """Sample among the tokens with at least this probability, relative to the most likely one."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of all tokens of the prompt and the
    generated text."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that were generated."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens as often as they were generated."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int = 0
    """Random seed; the same seed samples the same tokens, whatever else is in the batch. Sequence
    i of a request has the seed `seed` + i."""
    stop: tuple[str, ...] = ()
    """Texts at which generation ends; they are not part of the output."""
    num_sequences: int = 1
    """Number of texts to generate for the prompt."""
    logprobs: int | None = None
    """Number of most likely tokens whose log-probabilities are returned at each generated token,
    before any of these options; 0 for those of the generated tokens only, None for none."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    grammar: Grammar | None = None
    """What the text must match."""

    def __post_init__(self) -> None:
        as_count(self.max_tokens, "max_tokens")
        as_count(self.num_sequences, "num_sequences")
        if not isinstance(self.seed, int) or abs(self.seed) >= 2**63:
            raise ValueError(f"seed is {self.seed!r}: expected a whole number of at most 63 bits")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: expected more than 0, at most 1")
        if self.top_k:
            as_count(self.top_k, "top_k")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}: expected 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}: expected more than 0"
            )
        numbers = {"presence_penalty": self.presence_penalty}
        numbers |= {"frequency_penalty": self.frequency_penalty}
        numbers |= {f"logit_bias of token {id}": bias for id, bias in self.logit_bias.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}: expected a finite number")
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None and count < 0:
                raise ValueError(f"{name} is {count}: expected 0 or more, or None")
        if "" in self.stop:
            raise ValueError("stop contains an empty text: every sequence would end at once")


class TextPiece(str):
    """A piece of generated text."""

    __slots__ = ("logprobs", "num_tokens", "sequence")

    sequence: int
    """Which of the request's sequences it continues."""
    num_tokens: int
    """Number of tokens that the sequence has so far."""
    logprobs: tuple[TokenLogprob, ...]
    """Those of the piece's tokens, if the request asks for them."""


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One generated text."""

    text: str
    finish_reason: str
    """Why it ends: `stop`, `length` or `cancelled`."""
    num_tokens: int
    """Number of generated tokens."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Those of the text's tokens, if the request asks for them."""


class SequenceState:
    """The state of one generated sequence: its tokens, and the text that is final so far.

    Raises:
        ValueError: If the prompt and `max_tokens` exceed the model's context, or `logit_bias`
            contains a token id that the model does not have.
    """

    def __init__(
        self,
        model: TextModel,
        prompt: str | Sequence[int] | Tokens,
        sampling: SamplingParams,
        *,
        index: int = 0,
    ) -> None:
        """Start a sequence.

        Args:
            model: The model.
            prompt: The prompt, or the `prompt` of another sequence, which is then read only once.
            sampling: How text is generated.
            index: Which of the prompt's sequences this is.
        """
        self._model, self._sampling, self._index = model, sampling, index
        self.prompt: Int[Tensor, " t"] = (
            prompt
            if isinstance(prompt, Tensor)
            else model.encode_prompt(prompt, sampling.max_tokens)
        )
        self.token_ids: list[int] = []
        """The tokens generated so far."""
        self.prompt_logprobs: tuple[TokenLogprob, ...] | None = None
        """Those of the prompt's tokens, once it was read, if the request asks for them."""
        self.num_scored = 0
        """How many of the prompt's last tokens are scored when it is read."""
        self.prompt_nats: float | None = None
        """Their information content, once the prompt was read."""
        seed = (sampling.seed + index) % 2**63 if index else sampling.seed
        self._random = torch.Generator(model.device).manual_seed(seed)
        self._adjustments = _Adjustments(model, self.prompt, sampling)
        self._logits: Float[Tensor, " v"] | None = None  # of the next token, for its logprob
        self._logprobs: list[TokenLogprob] = []
        self._starts: list[int] = []  # characters of the text before each token
        self._decoded = 0  # characters of the text without cuts
        self._returned = 0  # characters that `append` has returned
        self._returned_tokens = 0  # tokens whose logprobs `append` has returned
        self.text = ""
        """The text generated so far, without its stop text."""
        self.finish_reason: str | None = None
        """`stop` or `length` when the sequence has ended."""

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        """The request's `prompt_logprobs`, until the prompt was read."""
        return self._sampling.prompt_logprobs if self.prompt_logprobs is None else None

    @property
    def result(self) -> GeneratedText:
        """The text as it is now; cancelled if it has not ended."""
        reason = self.finish_reason or "cancelled"
        logprobs = tuple(self._logprobs[: self._tokens_before(len(self.text))])
        return GeneratedText(self.text, reason, len(self.token_ids), logprobs)

    def adjusted(self, logits: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """The model's `logits` after penalties, biases and the grammar, before the temperature.

        Raises:
            ValueError: If no token can be found that matches the grammar.
        """
        return self._adjustments.apply(logits)

    def sample(self, logits: Float[Tensor, " v"]) -> Int[Tensor, ""]:
        """The next token, to be given to `append`.

        Raises:
            ValueError: If no token can be found that matches the grammar.
        """
        sampling = self._sampling
        self._logits = None if sampling.logprobs is None else logits
        logits = self.adjusted(logits)
        if not sampling.temperature:
            return logits.argmax()
        logits, tokens = logits.sort(descending=True, stable=True)
        logits = (logits.double() - logits[0]) / sampling.temperature  # 1e-50 is 0 in float32
        if sampling.top_k:
            logits[sampling.top_k :] = -math.inf
        if sampling.min_p:
            logits[logits < math.log(sampling.min_p)] = -math.inf
        probabilities = logits.softmax(0).float()
        before = probabilities.cumsum(0) - probabilities
        probabilities[before >= sampling.top_p] = 0  # never the first token
        return tokens[torch.multinomial(probabilities, 1, generator=self._random)[0]]

    def append(self, token: int) -> TextPiece:
        """Add a token; return the text that became final, which may be empty.

        Raises:
            ValueError: If the text cannot match the grammar any longer.
        """
        self.token_ids.append(token)
        if self._logits is not None and self._sampling.logprobs is not None:
            ids = torch.tensor([token], device=self._logits.device)
            self._logprobs += token_logprobs(self._logits[None], ids, self._sampling.logprobs)
            self._logits = None
        is_complete = self._adjustments.append(token)
        if is_complete or token in self._model.eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._sampling.max_tokens:
            self.finish_reason = "length"
        piece = TextPiece(self._detokenize())
        returned = self._tokens_before(self._returned)
        piece.sequence, piece.num_tokens = self._index, len(self.token_ids)
        piece.logprobs = tuple(self._logprobs[self._returned_tokens : returned])
        self._returned_tokens = returned
        return piece

    def _tokens_before(self, end: int) -> int:
        """How many tokens begin before the character `end` of the text."""
        count = len(self._starts)
        while count and self._starts[count - 1] >= end:
            count -= 1
        return count

    def _detokenize(self) -> str:
        """Cut the text at a stop text; hold back what may become one, or is half a character."""
        text = self._model.decode_after(self.prompt[1:], self.token_ids)
        self._starts.append(self._decoded)
        self._decoded = len(text.rstrip(REPLACEMENT_CHAR))
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


class SequenceGroup:
    """The sequences of one request: `num_sequences` continuations of one prompt.

    Raises:
        ValueError: As `SequenceState`.
    """

    def __init__(
        self, model: TextModel, prompt: str | Sequence[int], sampling: SamplingParams
    ) -> None:
        first = SequenceState(model, prompt, sampling)
        self.sequences = (
            first,
            *(
                SequenceState(model, first.prompt, sampling, index=index)
                for index in range(1, sampling.num_sequences)
            ),
        )

    @property
    def finish_reason(self) -> str | None:
        """That of the first sequence when all have ended."""
        if any(sequence.finish_reason is None for sequence in self.sequences):
            return None
        return self.sequences[0].finish_reason


class _Adjustments:
    """What changes the logits of one sequence before a token is sampled."""

    def __init__(self, model: TextModel, prompt: Tokens, sampling: SamplingParams) -> None:
        self._sampling, size = sampling, model.vocab_size
        self._matcher = None if sampling.grammar is None else sampling.grammar.matcher()
        self._penalty: Float[Tensor, " v"] | None = None
        if sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias:
            self._penalty = torch.zeros(size, device=model.device)
        for token, bias in sampling.logit_bias.items():
            if not 0 <= token < size:
                raise ValueError(f"logit_bias has token id {token}: expected 0 to {size - 1}")
            assert self._penalty is not None
            self._penalty[token] -= bias
        self._seen = None
        if sampling.repetition_penalty != 1:
            self._seen = torch.zeros(size, dtype=torch.bool, device=model.device)
            self._seen[prompt] = True
        self._generated: set[int] = set()

    def apply(self, logits: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        """The logits to sample from."""
        if self._seen is not None:
            factor = self._sampling.repetition_penalty
            penalized = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(self._seen, penalized, logits)
        if self._penalty is not None:
            logits = logits - self._penalty
        if self._matcher is not None:
            allowed = self._matcher.allowed(len(logits)).to(logits.device)
            if not allowed.any():
                raise ValueError("no token of the model continues the text by its schema")
            logits = logits.masked_fill(~allowed, -math.inf)
        return logits

    def append(self, token: int) -> bool:
        """Take the sampled token into account; whether the text is complete by its grammar."""
        sampling = self._sampling
        if self._seen is not None:
            self._seen[token] = True
        if self._penalty is not None:
            self._penalty[token] += sampling.frequency_penalty
            if token not in self._generated:
                self._penalty[token] += sampling.presence_penalty
                self._generated.add(token)
        return self._matcher is not None and self._matcher.append(token)
