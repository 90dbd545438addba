"""What is trained for one prompt, and how: adapter kinds, optimizer and training configuration.

Source: SIFT, arXiv 2410.08020: Section 5 and Appendix E (Insights 13-15) for the adapter kinds and
learning rates. Betas, weight decay and clipping are not stated there; docs/protocol.md lists which
choices are ours.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from whet.config import check_choices, unknown_name
from whet.maths.arrays import as_count, as_positive, as_seed

log = logging.getLogger("whet")

PRECISIONS = ("fp32", "bf16")  # that a model computes in
Loss = Literal["auto", "all", "response", "conditional"]
Use = Literal["steps", "context", "both"]
"""What retrieved documents are used for: gradient steps, the model's context, or both."""
UseOption = Literal["auto", "steps", "context", "both"]
"""A `Use`, or `auto`, which `whet.engine.in_context.resolve_use` resolves for each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How a gradient becomes a step. The state is fresh for every prompt."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Update rule."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Term added to Adam's denominator."""
    weight_decay: float = 0.0
    """Weight decay: decoupled for adamw, added to the gradient otherwise."""
    max_grad_norm: float = 1.0
    """Gradient clipping: largest norm of a step's gradient; 0 turns it off."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more, below 1")
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more")
        as_positive(self.eps, "eps")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a prompt's texts become gradient steps. The defaults are the paper's."""

    order: Literal["selected", "reversed", "shuffled", "length"] = "selected"
    """Order of the texts: as selected, reversed, shuffled, or by length (shortest first)."""
    batch_size: int = 1
    """Texts per gradient step, which uses their mean gradient; the learning rate is scaled by the
    batch size for sgd and by its square root for Adam."""
    gradient_reuse: int = 1
    """Consecutive steps on one text that reuse the first one's gradient (HullFT)."""
    long_texts: Literal["first", "chunks", "random"] = "chunks"
    """Texts longer than the model's context: a step on each chunk in turn, on the first tokens only
    (`first`), or on a random window (`random`). With `chunks`, `n` counts texts, not steps."""
    loss: Loss = "auto"
    """Which tokens of a text are learned: all (`all`); only the responses of records with `messages`
    or `prompt` and `response`, through the chat template, and all tokens of other texts (`auto`);
    the responses, and a text without any is an error (`response`); or as `auto`, but of other texts
    the second half, given the prompt and the first half (`conditional`)."""
    learned_ratio: float = 0.5
    """A selected text is learned, and its further repeats are skipped, when its loss has fallen
    below this share of its first loss; the selector's further picks take their place. 0 turns this
    off."""
    evidence: Literal["off", "measure", "check", "best"] = "check"
    """What is done with the likelihood of the prompt's last quarter, given the rest of it: nothing
    (`off`); it is measured before and after the steps (`measure`); also, the base model answers if
    its bits per byte are more than 5 % higher after them (`check`); or the best of 0, 2, 5, 10, 20,
    50 and all steps are kept (`best`). Where the documents are the passages of a copy of the prompt,
    `check` keeps the best of these instead of the base model."""
    persist_optimizer: bool = False
    """Keep the optimizer's state from prompt to prompt, so that results depend on earlier prompts:
    only to reproduce work that did so."""
    seed: int = 0
    """Seed of shuffling and of random windows."""

    def __post_init__(self) -> None:
        check_choices(self)
        as_count(self.batch_size, "batch_size")
        as_count(self.gradient_reuse, "gradient_reuse")
        as_seed(self.seed)
        if not 0 <= self.learned_ratio < 1:
            raise ValueError(f"learned_ratio is {self.learned_ratio}: expected 0 or more, below 1")
        if self.batch_size > 1 and self.gradient_reuse > 1:
            raise ValueError(
                f"batch_size is {self.batch_size} and gradient_reuse is {self.gradient_reuse}: "
                "a reused gradient belongs to one text, so one of them must be 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FullFineTuning:
    """Train every weight, or every weight of the last layers."""

    lr: float = 5e-5
    """Learning rate."""
    layers: str = "all"
    """Layers that are trained: `all`, or `last:N` for the last N. What is below them is computed
    once per text and cached."""

    def __post_init__(self) -> None:
        as_positive(self.lr, "lr")
        check_layers(self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Train a low-rank update of each linear layer, as PEFT's `LoraConfig` does."""

    lr: float = 5e-4
    """Learning rate; the paper's is ten times that of full fine-tuning."""
    r: int = 32
    """Rank of the update."""
    lora_alpha: float = 64.0
    """Scale of the update, which is multiplied by lora_alpha / r."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers to adapt, or their last parts, as in PEFT; empty for all linear layers
    except the output head."""
    layers: str = "all"
    """Layers of the network that are adapted: `all`, or `last:N` for the last N. What is below
    them is computed once per text and cached."""

    def __post_init__(self) -> None:
        as_positive(self.lr, "lr")
        check_layers(self.layers)
        as_count(self.r, "r")
        as_positive(self.lora_alpha, "lora_alpha")


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """Train only the output matrix, untied from the input embeddings."""

    lr: float = 1e-4
    """Learning rate."""

    def __post_init__(self) -> None:
        as_positive(self.lr, "lr")


def check_layers(layers: str) -> None:
    """Raises ValueError unless `layers` is `all` or `last:N` with N of at least 1."""
    kind, _, count = str(layers).partition(":")
    if layers != "all" and not (kind == "last" and count.isdecimal() and int(count) > 0):
        raise ValueError(f"layers is {layers!r}: expected all, or last:N with N of at least 1")


AdapterConfig = FullFineTuning | LoRA | LMHead
AdapterName = Literal["full", "lora", "head"]
ADAPTERS: dict[str, type[FullFineTuning] | type[LoRA] | type[LMHead]] = {
    "full": FullFineTuning,
    "lora": LoRA,
    "head": LMHead,
}
"""What can be trained, by the name that `--adapter` takes."""


def adapter_config(adapter: str, **options: object) -> AdapterConfig:
    """The configuration of the adapter called `adapter`; an option that is None keeps its default.

    >>> adapter_config("lora", r=8, lr=None).r
    8

    Raises:
        ValueError: If there is no such adapter, or it has no such option.
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter is {adapter!r}: expected {', '.join(ADAPTERS)}")
    given = {name: value for name, value in options.items() if value is not None}
    known = [field.name for field in fields(ADAPTERS[adapter])]
    if extra := sorted(given.keys() - set(known)):
        raise ValueError(f"adapter {adapter}: {unknown_name(extra[0], known)}")
    return ADAPTERS[adapter](**given)  # type: ignore[arg-type]


RATE, WIDTH, POWER = 15 * 5e-5, 2000, 0.781
"""LoRA's learning rate at a hidden size of 2,000, and its fall with the hidden size. Source: Schulman
and Thinking Machines Lab, LoRA Without Regret (2025): 5e-5 (2000 / d)^0.781 for full fine-tuning of
Llama, and 15 times that for LoRA in runs of few steps. It gives 2.0e-3 for SmolLM2-135M, as we
measured, and 5.4e-4 for Phi-3-mini, where the paper has 5e-4: see docs/models.md."""
WIDTHS = 256, 16_384  # hidden sizes beyond which the rate no longer changes
RANK, SCALE = 16, 2.0  # of LoRA for models without tuned rates; SCALE is lora_alpha / r
FAR = 10  # times the default: a rate beyond is logged


def lora_rate(hidden_size: int) -> float:
    """The learning rate of LoRA for a model that has no tuned one.

    >>> [float(f"{lora_rate(d):.2g}") for d in (576, 2048, 4096)]
    [0.002, 0.00074, 0.00043]
    """
    width = min(max(hidden_size, WIDTHS[0]), WIDTHS[1])
    return float(RATE * (WIDTH / width) ** POWER)


STEPS, FEW_STEPS = 50, 10  # the paper's, and where a step takes a second rather than milliseconds
LARGE = 20_000_000  # weights


def suited_steps(hf_model: Any) -> int:
    """The default number of gradient steps: 50, as in the paper, or 10 for a network of more than 20
    million weights on a CPU.
    """
    num_weights = sum(weight.numel() for weight in hf_model.parameters())
    return FEW_STEPS if hf_model.device.type == "cpu" and num_weights > LARGE else STEPS


def suited_config(
    adapter: str, hidden_size: int, tuned: Mapping[str, float], **options: object
) -> AdapterConfig:
    """The configuration of `adapter` for one model: its defaults, where an option is None.

    Logs a warning if the learning rate is more than 10 times the default or less than a tenth.

    Args:
        adapter: `full`, `lora`, `head`, or `auto`: full for a model with a tuned rate for it, which
            those bundled with whet have, and LoRA for any other.
        hidden_size: Length of the model's hidden states.
        tuned: Learning rates by adapter that were tuned for the model.
        options: Options of the adapter.

    Raises:
        ValueError: If there is no such adapter, or an option is unknown or out of range.
    """
    if adapter == "auto":
        adapter = "full" if "full" in tuned else "lora"
    given = {name: value for name, value in options.items() if value is not None}
    defaults: dict[str, object] = {"lr": tuned[adapter]} if adapter in tuned else {}
    if adapter == "lora" and not tuned:
        rank = given.get("r", RANK)
        defaults = {"lr": lora_rate(hidden_size), "r": RANK}
        defaults["lora_alpha"] = SCALE * rank if isinstance(rank, int) else None
    config = adapter_config(adapter, **defaults | given)
    usual = adapter_config(adapter, **defaults).lr
    if adapter != "head" and not usual / FAR <= config.lr <= usual * FAR:
        effect = "hardly changes the model" if config.lr < usual else "may destroy the model"
        log.warning("lr %.2g %s: about %.2g suits this model", config.lr, effect, usual)
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """An adapter by name and its options, where one that is None keeps its default.

    The defaults depend on the model: see `whet.adapt.model.LanguageModel.adapter_config`.
    """

    name: Literal["auto", "full", "lora", "head"] = "auto"
    """What is trained: `full` (every weight), `lora`, `head` (the output matrix), or `auto` (full
    for the models bundled with whet, otherwise lora)."""
    lr: float | None = None
    """Learning rate [default: the one tuned for the model; otherwise LoRA's falls with the size of
    the model, see docs/models.md]."""
    r: int | None = None
    """Rank of LoRA [default: 16; 32 for the models bundled with whet]."""
    lora_alpha: float | None = None
    """Scale of LoRA's update [default: 2 r; 64 for the models bundled with whet]."""
    target_modules: tuple[str, ...] | None = None
    """Layers that LoRA adapts, by their names or the last parts of these [default: all linear layers
    except the output head]."""
    layers: str | None = None
    """Layers of the network that are trained: `all`, or `last:N` for the last N, which is faster
    because what is below them is computed once per text [default: all]."""

    def __post_init__(self) -> None:
        check_choices(self)
        adapter_config("lora" if self.name == "auto" else self.name, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The options, without the name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
