"""A causal language model: tokens, hidden states, bits per byte, generation; see docs/protocol.md."""

import copy
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from whet.errors import ModelError, require

require("torch", "adapt")

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import batch_by_length, bucket_length, windows
from whet.adapt.chat.template import Message, apply_chat_template, template_tokenizer
from whet.adapt.checkpoints import loading
from whet.adapt.config import AdapterConfig, suited_config
from whet.adapt.decoding.batch_decoding import BatchDecoder
from whet.adapt.decoding.kv_cache import longrope_switch, no_cache
from whet.adapt.decoding.sampling import SamplingParams, SequenceState
from whet.adapt.loss import OutputProjection
from whet.adapt.loss import Score as Score
from whet.config import Renamed
from whet.maths.arrays import as_count

GPU_TOKENS = 4096  # per pass when scoring, of several windows


class LanguageModel:
    """A Hugging Face causal language model with its tokenizer, in evaluation mode.

    >>> model = LanguageModel.from_pretrained("whet-pico", device="cpu")
    >>> model.score(" sat on the mat.", context="The cat").bits_per_byte
    3.4...

    Its weights change only during adaptation, which restores them bit for bit.

    Attributes:
        hf_model: The network.
        tokenizer: The tokenizer.
        name: Name it was loaded by.
        max_length: Length of the context in tokens.
        vocab_size: Number of tokens that the tokenizer can produce.
        bos_token_id: Token in front of every text.
        eos_token_ids: Tokens that end a text.
        adds_space: Whether the tokenizer puts a space in front of what it reads, as Llama 2's does.
        longrope_switch: Length beyond which LongRoPE rotates positions differently, or None.
    """

    load = Renamed("from_pretrained")
    twin = Renamed("share_weights")
    lent = Renamed("exclusive")
    tokens = Renamed("encode")
    fitting = Renamed("encode_prompt")
    ending = Renamed("truncate_left")
    lesson = Renamed("training_tokens")
    states = Renamed("hidden_states")
    output = Renamed("lm_head")
    rounded = Renamed("padded_length")
    context = Renamed("max_length")
    vocabulary = Renamed("vocab_size")
    start = Renamed("bos_token_id")
    ends = Renamed("eos_token_ids")
    network = Renamed("hf_model")

    def __init__(
        self, hf_model: Any, tokenizer: Any, name: str, *, max_length: int | None = None
    ) -> None:
        self.hf_model = hf_model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.max_length = loading.read_max_length(hf_model.config, name, max_length)
        self._template_tokenizer: Any = None
        self._chat_tokenizer, self._chat_lock = None, threading.Lock()
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())  # other logits are padding
        self.longrope_switch = longrope_switch(hf_model.config)
        self._in_use = threading.Lock()
        if (rows := hf_model.get_output_embeddings().weight.shape[0]) < self.vocab_size:
            raise ModelError(
                f"model {name} has {rows} output rows, but its tokenizer has {self.vocab_size} tokens: "
                "load a model and a tokenizer that belong together"
            )
        self.bos_token_id = loading.start_token(tokenizer, name)
        self.eos_token_ids = loading.read_eos_token_ids(hf_model, tokenizer)
        self.encode("")  # sets the tokenizer's options once, so that threads can share it
        self.adds_space = loading.adds_space(self.encode)
        with torch.no_grad():
            loading.check_logits(self)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        max_length: int | None = None,
    ) -> "LanguageModel":
        """Load a model: bundled with whet, from a folder, a GGUF file, Ollama, or the hub.

        The weights of a GGUF file, which `smollm2` and Ollama's models are, too, are converted the
        first time, and kept in `$WHET_CACHE/models` (by default `~/.cache/whet/models`).

        Args:
            name: `whet-nano`, `whet-pico`, `smollm2`, a folder, a `.gguf` file, `ollama:NAME`, or
                an id of the Hugging Face hub.
            device: Such as `cpu` or `cuda:1`; by default a GPU if there is one.
            dtype: Precision that the network computes in; trained weights are kept in float32.
                `auto` is bfloat16 where the processor has units for it, otherwise float32.
            max_length: Tokens that are read at once, by default as many as the network accepts.
                Required for networks that state no limit, such as Mamba.

        Returns:
            The model, ready to be scored, sampled and adapted.

        Raises:
            ModelError: If there is no such model or device, or it is not a causal language model
                that whet can train.
            MissingDependencyError: If a GGUF file must be converted, but `gguf` is not installed.
        """
        loaded = loading.load(name, "AutoModelForCausalLM", device=device, dtype=dtype)
        return cls(loaded.network, loaded.tokenizer, str(name), max_length=max_length)

    def __repr__(self) -> str:
        millions = sum(weight.numel() for weight in self.hf_model.parameters()) / 1e6
        dtype = str(self.hf_model.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name!r}, {millions:.1f} M parameters, {self.device}, {dtype})"

    def share_weights(self) -> "LanguageModel":
        """A second model with its own layers and the same weights, to be adapted independently.

        Not for full fine-tuning, which changes the weights themselves.
        """
        weights = {  # the same storage, but separate flags and gradients
            id(weight): torch.nn.Parameter(weight.detach(), weight.requires_grad)
            for weight in self.hf_model.parameters()
        }
        with self.exclusive():
            hf_model = copy.deepcopy(self.hf_model, weights)
        shared = LanguageModel(hf_model, self.tokenizer, self.name, max_length=self.max_length)
        shared._template_tokenizer = self._template_tokenizer
        return shared

    def adapter_config(self, adapter: str = "auto", **options: object) -> AdapterConfig:
        """The configuration of `adapter`: full, lora or head.

        `auto` is full fine-tuning for the models bundled with whet, as in the paper, and LoRA for
        any other. Options that are missing or None depend on the model: see
        `whet.adapt.config.suited_config`.
        """
        tuned = getattr(self.hf_model.config, "whet_learning_rates", {})
        width = self.hf_model.get_output_embeddings().weight.shape[1]
        return suited_config(adapter, width, tuned, **options)

    @property
    def fingerprint(self) -> str:
        """Identifies the model's weights: see `whet.adapt.checkpoints.loading.weights_fingerprint`."""
        return loading.weights_fingerprint(dict(self.hf_model.named_parameters()))

    @property
    def device(self) -> torch.device:
        return next(self.hf_model.parameters()).device  # type: ignore[no-any-return]

    @property
    def parse_special_tokens(self) -> bool:
        """Whether special tokens in prompts and scored texts are read as tokens, as chat templates
        need; False by default. Texts to train on are always plain.
        """
        return self._template_tokenizer is not None

    @parse_special_tokens.setter
    def parse_special_tokens(self, parse: bool) -> None:
        # a copy, because a tokenizer's options are part of its state, which threads share
        self._template_tokenizer = copy.deepcopy(self.tokenizer) if parse else None

    def encode(
        self, text: str, *, device: str | None = None, plain: bool = False
    ) -> Int[Tensor, " t"]:
        """Token ids of `text`, by default on the model's device, without a start token.

        Special tokens in the text are recognized if `parse_special_tokens` is set and the text is
        not `plain`.

        Raises:
            ValueError: If the text contains an unpaired surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {text[:20]!r} contains an unpaired surrogate at position {error.start}: "
                "remove it"
            ) from error
        parsing = None if plain else self._template_tokenizer
        ids = (self.tokenizer if parsing is None else parsing)(
            text,
            add_special_tokens=False,
            split_special_tokens=parsing is None,
            verbose=False,
        ).input_ids
        return torch.tensor(ids, dtype=torch.long, device=device or self.device)

    def encode_after(
        self, context: str, text: str, *, device: str | None = None, plain: bool = False
    ) -> Int[Tensor, " t"]:
        """Token ids of `text` where it continues `context`.

        The tokenizers of Llama 2 and Mistral put a space in front of what they read, which a
        continuation must not have. With other tokenizers this is `encode(text)`.
        """
        if not (context and self.adds_space):
            return self.encode(text, device=device, plain=plain)
        # an anchor where the first token crosses the border
        for before in (context, *loading.ANCHORS):
            left, whole = (
                self.encode(t, device=device, plain=plain) for t in (before, before + text)
            )
            if len(whole) > len(left) and torch.equal(whole[: len(left)], left):
                return whole[len(left) :]
        return self.encode(text, device=device, plain=plain)

    def decode_after(self, prompt: Int[Tensor, " t"], token_ids: Sequence[int]) -> str:
        """The text of `token_ids` where they continue a prompt, with its first space."""
        decode = self.tokenizer.decode
        if not (len(prompt) and self.adds_space):
            return str(decode(token_ids, skip_special_tokens=True))
        anchor = self.encode("a", device="cpu").tolist()
        before = str(decode(anchor, skip_special_tokens=True))
        return str(decode([*anchor, *token_ids], skip_special_tokens=True))[len(before) :]

    @property
    def chat_tokenizer(self) -> Any:
        """A copy of the tokenizer that reads the special tokens of the chat template."""
        with self._chat_lock:
            if self._chat_tokenizer is None:
                self._chat_tokenizer = template_tokenizer(self.tokenizer)
            return self._chat_tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether a conversation is read through a template; otherwise as a written dialogue."""
        return bool(self.chat_tokenizer.chat_template)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        **options: bool,
    ) -> list[int]:
        """Token ids of a conversation by the model's chat template, without a start token.

        `options` and errors are those of `whet.adapt.chat.template.apply_chat_template`.
        """
        return apply_chat_template(self.tokenizer, self.chat_tokenizer, messages, tools, **options)

    def training_tokens(self, text: str) -> Int[Tensor, " t"]:
        """Token ids of a text to train on, on the CPU.

        Raises:
            ValueError: If the text has no tokens.
        """
        tokens = self.encode(text, device="cpu", plain=True)
        if not len(tokens):
            raise ValueError(f"text {text[:20]!r} has no tokens: nothing to train on")
        return tokens

    def hidden_states(self, ids: Int[Tensor, "b t"], trunk: Any = None) -> Float[Tensor, "b t d"]:
        """Inputs of the output layer; differentiable. `trunk` replaces the base model."""
        forward = self.hf_model.base_model if trunk is None else trunk
        config = self.hf_model.config
        output = forward(input_ids=ids, past_key_values=no_cache(config), use_cache=False)
        states: Tensor = output.last_hidden_state
        return states

    def padded_length(self, tokens: int) -> int:
        """The length at which a text of this many tokens is computed in a batch."""
        short = self.longrope_switch is not None and tokens <= self.longrope_switch
        longest = self.longrope_switch if short and self.longrope_switch else self.max_length
        return bucket_length(tokens, longest)

    def compiled_trunk(self) -> Any:
        """A base model for `hidden_states` that is compiled on first use, once for all lengths."""
        return torch.compile(self.hf_model.base_model, dynamic=True)

    def lm_head(self, *, trained: bool = False) -> OutputProjection:
        """The output layer; with `trained`, gradients are added to those of the network."""
        layer, rows = self.hf_model.get_output_embeddings(), slice(None, self.vocab_size)
        bias = getattr(layer, "bias", None)
        return OutputProjection(
            layer.weight.detach()[rows],
            None if bias is None else bias.detach()[rows],
            loading.read_logit_scale(self.hf_model.config),
            getattr(self.hf_model.config, "final_logit_softcapping", None),
            layer.weight.grad[rows] if trained else None,
            bias.grad[rows] if trained and bias is not None else None,
        )

    def score(self, text: str, *, context: str = "") -> Score:
        """How many bits the model needs for `text` after `context`.

        A text longer than the model's context is scored in windows.

        Args:
            text: The text to score.
            context: Left context, which is read but not scored.

        Returns:
            The score; `bits_per_byte` is its usual form.

        Raises:
            ValueError: If `text` is empty.
        """
        if not text:
            raise ValueError("text to score is empty: bits per byte need at least one byte")
        left, tokens = self.without_start(self.encode(context)), self.encode_after(context, text)
        if not context and len(tokens) > 1:
            tokens = self.without_start(tokens)
        return self.score_tokens(torch.cat([left, tokens]), len(tokens), len(text.encode()))

    @torch.no_grad()
    def score_tokens(self, tokens: Int[Tensor, " t"], num_scored: int, num_bytes: int) -> Score:
        """`score` of the last `num_scored` of `tokens`, which spell `num_bytes`."""
        sequence, nats, greedy = self._add_start(tokens), 0.0, True
        batch_size = 1 if sequence.is_cpu else max(1, GPU_TOKENS // self.max_length)
        every = windows(len(tokens), self.max_length, skip=len(tokens) - num_scored)
        for batch in batch_by_length(every, batch_size):
            inputs = torch.stack([sequence[w.start : w.stop] for w in batch])
            states = self.hidden_states(inputs)
            for window, row in zip(batch, states, strict=True):
                logits = self.lm_head().logits(row[-window.targets :])
                targets = sequence[window.stop + 1 - window.targets : window.stop + 1]
                nats += functional.cross_entropy(logits, targets, reduction="sum").item()
                greedy = greedy and bool((logits.argmax(-1) == targets).all())
        return Score(nats / math.log(2), num_bytes, num_scored, greedy)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Continue `prompt`: with the most likely token each time, or by sampling.

        Args:
            prompt: The text to continue.
            max_tokens: Maximum number of generated tokens.
            temperature: Sampling temperature; 0 takes the most likely token.
            seed: Random seed of sampling.

        Returns:
            The generated text, without the prompt.

        Raises:
            ValueError: If the prompt and `max_tokens` exceed the model's context, or a number is
                out of range.
            ModelError: If the logits are not finite.
        """
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        sequence, lm_head = SequenceState(self, prompt, sampling), self.lm_head()
        decoder = BatchDecoder(self, lambda _: lm_head)
        while not sequence.finish_reason:
            result = decoder.step({0: sequence})[0]
            if isinstance(result, Exception):
                raise result
        return sequence.text

    def encode_prompt(self, prompt: str | Sequence[int], max_tokens: int) -> Int[Tensor, " t"]:
        """Token ids of a prompt, after the start token.

        Raises:
            ValueError: If the prompt and `max_tokens` exceed the model's context, or a token id is
                out of range.
        """
        ids = (
            self.without_start(self.encode(prompt))
            if isinstance(prompt, str)
            else torch.tensor(prompt, dtype=torch.long, device=self.device)
        )
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(
                f"prompt has token ids from {int(ids.min())} to {int(ids.max())}: {self.name} has "
                f"0 to {self.vocab_size - 1}"
            )
        tokens = self._add_start(ids)
        if len(tokens) + as_count(max_tokens, "max_tokens") > self.max_length:
            raise ValueError(
                f"prompt has {len(tokens)} tokens and max_tokens is {max_tokens}, but {self.name} "
                f"has a context of {self.max_length}: shorten the prompt or lower max_tokens"
            )
        return tokens

    def truncate_left(self, prompt: str, max_tokens: int) -> str:
        """The longest end of `prompt` that fits the context; all of it if none fits."""
        tokens, free = self.encode(prompt), self.max_length - 1 - max_tokens
        if len(tokens) <= free:
            return prompt
        for count in range(free, 0, -1):  # a cut inside a character can change the tokens
            text = str(self.tokenizer.decode(tokens[-count:]))
            if len(self.encode(text)) <= free:
                return text
        return prompt

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Reserve the model for one use of its weights.

        Raises:
            ModelError: If it is in use already, in another thread or in this one.
        """
        if not self._in_use.acquire(blocking=False):
            raise ModelError(
                f"model {self.name} is being adapted already: leave that context first, "
                "or load the model a second time"
            )
        try:
            yield
        finally:
            self._in_use.release()

    def without_start(self, tokens: Int[Tensor, " t"]) -> Int[Tensor, " s"]:
        """`tokens` without the start token of a chat template, because every text gets one."""
        doubled = self.parse_special_tokens and len(tokens) and tokens[0] == self.bos_token_id
        return tokens[1:] if doubled else tokens

    def _add_start(self, tokens: Int[Tensor, " t"]) -> Int[Tensor, " t+1"]:
        return functional.pad(tokens, (1, 0), value=self.bos_token_id)
