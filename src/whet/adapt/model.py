"""A causal language model as whet needs it: tokens, loss, bits per byte, generation.

The only module that knows how Hugging Face's causal models are called. Loss and windows:
docs/protocol.md.
"""

import copy
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batch_decoding import BatchDecoder
from whet.adapt.batches import rounded
from whet.adapt.config import AdapterConfig, adapter_config
from whet.adapt.kv_cache import turn, unkept
from whet.adapt.loading import load, start_token
from whet.adapt.loss import OutputProjection
from whet.adapt.sampling import SamplingParams, SequenceState
from whet.adapt.windows import alike, windows
from whet.errors import ModelError
from whet.maths.arrays import as_count

GPU_TOKENS = 4096  # that are scored in one pass, of several windows


@dataclass(frozen=True, slots=True)
class Score:
    """How many bits a model needs for a text."""

    bits: float
    num_bytes: int
    num_tokens: int
    is_greedy: bool
    """Whether each token is the likeliest after those before it."""

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes


class LanguageModel:
    """A Hugging Face causal language model with its tokenizer, in evaluation mode.

    Its weights change only while it is lent to `whet.adapt.slots.Slots`, which returns them bit
    for bit.
    """

    def __init__(self, network: Any, tokenizer: Any, name: str) -> None:
        self.hf_model = network.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.max_length = _context(network.config, name)
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())  # logits beyond it are padding
        self.longrope_switch = turn(network.config)
        self._lent = threading.Lock()
        if (rows := network.get_output_embeddings().weight.shape[0]) < self.vocab_size:
            raise ModelError(
                f"model {name} knows {rows} tokens, but its tokenizer has {self.vocab_size}: "
                "load a model and a tokenizer that belong together"
            )
        self.bos_token_id = start_token(tokenizer, name)
        self.eos_token_ids = _ends(network, tokenizer)
        self.encode("")  # settles the tokenizer's options, so that threads may share it afterwards
        self._check_output()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | None = None, dtype: torch.dtype = torch.float32
    ) -> "LanguageModel":
        """The model `whet-nano`, one in a local folder, or one of the Hugging Face hub.

        On `device`, by default a GPU if there is one.

        Raises:
            ModelError: If there is no such model or device, or it is not a causal language model
                of the kind that can be trained here.
        """
        loaded = load(name, "AutoModelForCausalLM", device=device, dtype=dtype)
        return cls(loaded.network, loaded.tokenizer, str(name))

    def __repr__(self) -> str:
        millions = sum(weight.numel() for weight in self.hf_model.parameters()) / 1e6
        dtype = str(self.hf_model.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name!r}, {millions:.1f} M parameters, {self.device}, {dtype})"

    def share_weights(self) -> "LanguageModel":
        """The same model once more, to be lent by itself: own layers, shared weights.

        Not for full training, which moves the weights.
        """
        weights = {  # the same numbers; flags and gradients of its own
            id(own): torch.nn.Parameter(own.detach(), own.requires_grad)
            for own in self.hf_model.parameters()
        }
        with self.exclusive():
            network = copy.deepcopy(self.hf_model, weights)
        return LanguageModel(network, self.tokenizer, self.name)

    def adapter_config(self, adapter: str = "auto", **options: object) -> AdapterConfig:
        """The configuration of `adapter`: full, lora or head.

        `auto` is full fine-tuning for the models bundled with whet, as in the paper, and LoRA for
        any other. Without `lr`, the learning rate is the one that was tuned for the model
        (`whet_learning_rates` in its config.json), otherwise the adapter's default.
        """
        tuned = getattr(self.hf_model.config, "whet_learning_rates", {})
        if adapter == "auto":
            adapter = "full" if "full" in tuned else "lora"
        if options.get("lr") is None:
            options["lr"] = tuned.get(adapter)
        return adapter_config(adapter, **options)

    @property
    def device(self) -> torch.device:
        return next(self.hf_model.parameters()).device  # type: ignore[no-any-return]

    def encode(self, text: str, *, device: str | None = None) -> Int[Tensor, " t"]:
        """Token ids of `text`, on the model's device unless another is named.

        Special tokens are neither added nor read out of its words.

        Raises:
            ValueError: If it holds half of a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {text[:20]!r} holds half of a surrogate pair at position {error.start}, "
                "which is no letter: leave it out"
            ) from error
        ids = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        return torch.tensor(ids, dtype=torch.long, device=device or self.device)

    def training_tokens(self, text: str) -> Int[Tensor, " t"]:
        """What is learned from `text`: its tokens, in the memory of the CPU.

        Raises:
            ValueError: If it has none.
        """
        tokens = self.encode(text, device="cpu")
        if not len(tokens):
            raise ValueError(f"text {text[:20]!r} has no tokens: nothing to learn from it")
        return tokens

    def hidden_states(self, ids: Int[Tensor, "b t"], trunk: Any = None) -> Float[Tensor, "b t d"]:
        """What the last layer is given; differentiable. `trunk` for the network's own, compiled."""
        read = self.hf_model.base_model if trunk is None else trunk
        output = read(input_ids=ids, past_key_values=unkept(self.hf_model.config), use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def padded_length(self, tokens: int) -> int:
        """The length at which a text of so many tokens is computed beside others."""
        short = self.longrope_switch is not None and tokens <= self.longrope_switch
        return rounded(
            tokens, self.longrope_switch if short and self.longrope_switch else self.max_length
        )

    def compiled(self) -> Any:
        """A trunk for `states` that torch compiles when it is first used, once for all lengths."""
        return torch.compile(self.hf_model.base_model, dynamic=True)

    def lm_head(self, *, trained: bool = False) -> OutputProjection:
        """The last layer; where it is `trained`, with its gradients to be added to."""
        layer, known = self.hf_model.get_output_embeddings(), slice(None, self.vocab_size)
        bias = getattr(layer, "bias", None)
        return OutputProjection(
            layer.weight.detach()[known],
            None if bias is None else bias.detach()[known],
            _scale(self.hf_model.config),
            getattr(self.hf_model.config, "final_logit_softcapping", None),
            layer.weight.grad[known] if trained else None,
            bias.grad[known] if trained and bias is not None else None,
        )

    @torch.no_grad()
    def score(self, text: str, *, context: str = "") -> Score:
        """Bits for `text`, given `context` to its left, which is read but not scored.

        Raises:
            ValueError: If the text has no bytes.
        """
        if not text:
            raise ValueError("text to score is empty: bits per byte need at least one byte")
        left, tokens = self.encode(context), self.encode(text)
        sequence = self._started(torch.cat([left, tokens]))
        nats, greedy = 0.0, True
        together = 1 if sequence.is_cpu else max(1, GPU_TOKENS // self.max_length)
        for some in alike(windows(len(sequence) - 1, self.max_length, skip=len(left)), together):
            rows = self._logits(torch.stack([sequence[w.start : w.stop] for w in some]))
            for window, row in zip(some, rows, strict=True):
                logits = row[-window.targets :]
                goal = sequence[window.stop + 1 - window.targets : window.stop + 1]
                nats += functional.cross_entropy(logits, goal, reduction="sum").item()
                greedy = greedy and bool((logits.argmax(-1) == goal).all())
        return Score(nats / math.log(2), len(text.encode()), len(tokens), greedy)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """The continuation of `prompt`: the likeliest token at each step, or sampled.

        Raises:
            ValueError: If prompt and answer together exceed the model's context, or a number is out
                of range.
        """
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        decoder, output = SequenceState(self, prompt, sampling), self.lm_head()
        continuations = BatchDecoder(self, lambda _: output)
        while not decoder.finish:
            for told in continuations.step({0: decoder}).values():
                if isinstance(told, Exception):
                    raise told
        return decoder.text

    def encode_prompt(self, prompt: str | Sequence[int], max_tokens: int) -> Int[Tensor, " t"]:
        """The tokens of `prompt` behind a start token, with room for `max_tokens` more.

        Raises:
            ValueError: If prompt and answer together exceed the model's context.
        """
        given = (
            self.encode(prompt)
            if isinstance(prompt, str)
            else torch.tensor(prompt, dtype=torch.long, device=self.device)
        )
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < self.vocab_size:
            raise ValueError(
                f"prompt has tokens from {int(given.min())} to {int(given.max())}, but {self.name} "
                f"knows 0 to {self.vocab_size - 1}"
            )
        tokens = self._started(given)
        if len(tokens) + as_count(max_tokens, "max_tokens") > self.max_length:
            raise ValueError(
                f"prompt has {len(tokens)} tokens and max_tokens is {max_tokens}, but {self.name} "
                f"has a context of {self.max_length}: shorten the prompt or lower max_tokens"
            )
        return tokens

    def truncate_left(self, prompt: str, max_tokens: int) -> str:
        """The end of `prompt` that is `fitting`; all of it if it is, or if none can be."""
        tokens, room = self.encode(prompt), self.max_length - 1 - max_tokens
        if len(tokens) <= room:
            return prompt
        for kept in range(room, 0, -1):  # cut within a character, a few may not come back alike
            text = str(self.tokenizer.decode(tokens[-kept:]))
            if len(self.encode(text)) <= room:
                return text
        return prompt

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the weights for one borrower.

        Raises:
            ModelError: If they are lent out already, to another thread or to this one.
        """
        if not self._lent.acquire(blocking=False):
            raise ModelError(
                f"model {self.name} is being adapted already: leave that context first, "
                "or load the model a second time"
            )
        try:
            yield
        finally:
            self._lent.release()

    @torch.no_grad()
    def _check_output(self) -> None:
        """Training and sampling go by `output`: refuse a network that has other logits."""
        token = self._started(self.encode(""))
        [given], ours = (
            self._logits(token[None]),
            self.lm_head().logits(self.hidden_states(token[None])[0]),
        )
        gap, largest = float((ours - given).abs().max()), float(given.abs().max())
        rounding = max(torch.finfo(kind).eps for kind in (self.hf_model.dtype, given.dtype))
        if gap > math.sqrt(rounding) * largest:
            raise ModelError(
                f"model {self.name} does not get its logits from its last layer alone: they are "
                f"off by {gap:.3g} of {largest:.3g}, and it would be trained wrongly; load another"
            )

    def _started(self, tokens: Int[Tensor, " t"]) -> Int[Tensor, " t+1"]:
        return functional.pad(tokens, (1, 0), value=self.bos_token_id)

    def _logits(self, inputs: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        output = self.hf_model(input_ids=inputs, use_cache=False)
        logits: Tensor = output.logits[..., : self.vocab_size].float()
        return logits


def _context(config: Any, name: str) -> int:
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        raise ModelError(
            f"the configuration of {name} has no max_position_embeddings, the tokens that it "
            "takes: expected a model with attention to a bounded context"
        )
    return int(most)


def _scale(config: Any) -> float:
    """What logits are multiplied by: Cohere's number, or one over Granite's."""
    divisor = getattr(config, "logits_scaling", None)
    return float(1 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0)


def _ends(network: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those of the network's configuration."""
    said = [tokenizer.eos_token_id]
    if network.generation_config is not None:
        own = network.generation_config.eos_token_id
        said += own if isinstance(own, list) else [own]
    return frozenset(token for token in said if token is not None)
