"""What is trained for one prompt, and how: three modes and the optimiser.

Source: SIFT, arXiv 2410.08020: Section 5 and Appendix E (Insights 13-15) for the modes and learning
    rates. Betas,
weight decay and clipping are not stated there; docs/protocol.md says which choices are ours.
"""

from dataclasses import dataclass, fields

from whet.maths.arrays import as_count, as_positive

PRECISIONS = ("fp32", "bf16")  # that a model computes in


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How one gradient becomes one step. State is fresh for every prompt."""

    kind: str = "adam"
    """Update rule: adam, adamw or sgd."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's denominator floor."""
    weight_decay: float = 0.0
    """Decoupled for adamw, added to the gradient for the others."""
    clip: float = 1.0
    """Largest gradient norm of a step; 0 for none."""

    def __post_init__(self) -> None:
        if self.kind not in ("adam", "adamw", "sgd"):
            raise ValueError(f"optimiser is {self.kind!r}: expected adam, adamw or sgd")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more, below 1")
        for name in ("weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more")
        as_positive(self.eps, "eps")


@dataclass(frozen=True, slots=True, kw_only=True)
class FullFineTuning:
    """Train every weight."""

    lr: float = 5e-5
    """Learning rate."""

    def __post_init__(self) -> None:
        as_positive(self.lr, "lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Train a product of two thin matrices beside each linear layer of the trunk."""

    lr: float = 5e-4
    """Learning rate; the paper's is ten times that of full training."""
    rank: int = 32
    """Inner dimension of the product."""
    alpha: float = 64.0
    """The product counts alpha / rank."""
    targets: tuple[str, ...] = ()
    """Last part of the names of the layers concerned; empty for all but the output head."""

    def __post_init__(self) -> None:
        as_positive(self.lr, "lr")
        as_count(self.rank, "rank")
        as_positive(self.alpha, "alpha")


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """Train the output matrix alone, untied from the input embedding."""

    lr: float = 1e-4
    """Learning rate."""

    def __post_init__(self) -> None:
        as_positive(self.lr, "lr")


Adaptation = FullFineTuning | LoRA | LMHead
MODES: dict[str, type[FullFineTuning] | type[LoRA] | type[LMHead]] = {
    "full": FullFineTuning,
    "lora": LoRA,
    "head": LMHead,
}


def adaptation(mode: str, **options: object) -> Adaptation:
    """The adaptation called `mode` with `options` set; an option that is None keeps its default.

    Raises:
        ValueError: If there is no such mode, or the mode has no such option.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: expected {', '.join(MODES)}")
    given = {name: value for name, value in options.items() if value is not None}
    known = [field.name for field in fields(MODES[mode])]
    if extra := sorted(given.keys() - set(known)):
        raise ValueError(f"mode {mode} has no option {extra[0]}: expected {', '.join(known)}")
    return MODES[mode](**given)  # type: ignore[arg-type]
