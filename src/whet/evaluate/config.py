"""The switches of a run and its methods: everything that changes a number, stored with it.

Definitions, and which choice is the paper's: docs/protocol.md.
"""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from whet.adapt.config import PRECISIONS, OptimizerConfig, adapter_config
from whet.config import parse_fields, parse_override
from whet.data.filters import Filter, parse
from whet.maths.arrays import as_count, as_positive
from whet.select.registry import selector

DYNAMIC = "dynamic"  # the method that trains on the query itself and selects nothing
OF_THE_RUN = (
    "model",
    "dtype",
    "device",
    "methods",
    "n",
    "score_at",
    "leakage",
    "chunks",
    "left_context",
    "seed",
)
OF_METHOD = re.compile(r"""(?:[^,"']|"[^"]*"|'[^']*')+""")  # between commas that are not quoted
CHOICES = {
    "leakage": ("split", "whole", "score-first"),
    "order": ("selected", "reversed", "shuffled", "length"),
    "long_texts": ("first", "chunks", "random"),
    "use": ("steps", "context", "both"),
    "sign": ("own", "both", "positive"),
    "duplicates": ("kept", "dropped"),
    "dtype": PRECISIONS,
    "candidates": ("dense", "bm25", "hybrid"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Everything that changes a run's numbers; stored with them."""

    model: str = "whet-nano"
    """Bundled model, folder, or Hugging Face id."""
    dtype: str = "fp32"
    """Precision that the model computes in; what is trained is kept in fp32."""
    device: str | None = None
    """Where the model runs, as cpu or cuda:1; none for a GPU if there is one."""
    methods: tuple[str, ...] = ("uncertainty", "nearest", "nearest-repeated", "sift")
    """Methods compared: see `method`."""
    n: int = 50
    """Texts selected for a prompt, one gradient step each."""
    score_at: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    """Steps after which the text is scored; those beyond n are left out, n itself is added."""
    leakage: str = "split"
    """split: the first half is the query, the second is scored. whole: the text is both.
    score-first: each chunk is scored by a model that was adapted to the text before it."""
    chunks: int = 4
    """With score-first: the number of chunks, of equal length."""
    left_context: bool = True
    """Whether the model reads, unscored, what of the document comes before the scored text."""
    seed: int = 0
    """Of the methods that draw, and of a shuffled order; joined with the prompt's id."""
    k: int = 200
    """Candidates nearest the query, or as many as there are; a method's own must be there."""
    candidates: str = "dense"
    """Who nominates them: vectors, bm25 (the query's words) or hybrid (both)."""
    where: str | None = None
    """What a candidate must pass, as `set == "github" and year >= 2010`."""
    sign: str = "own"
    """Nearest by |cosine| (both), by cosine (positive), or as the selector is made for (own)."""
    lam: float = 0.01
    """λ' of the selector."""
    alpha: float | None = None
    """Stop before the first step m with σ_m > 1 / (α m): ADAPTIVE SIFT(α); none takes all steps."""
    duplicates: str = "kept"
    """Near-duplicates of the prompt among the candidates: kept or dropped."""
    near_cosine: float = 0.95
    """A text whose cosine to the prompt is at least this is a near-duplicate of it."""
    near_overlap: float = 0.5
    """So is one that holds at least this share of the 13-grams of the prompt's words."""
    order: str = "selected"
    """Order of the gradient steps: selected, reversed, shuffled, or length (shortest first)."""
    use: str = "steps"
    """What the texts are for: gradient steps, context in front of the prompt, or both."""
    mode: str = "full"
    """What is trained: full, lora or head."""
    lr: float | None = None
    """Learning rate; none for the model's tuned one, or else the mode's."""
    rank: int | None = None
    """Rank of LoRA."""
    optimizer: str = "adam"
    """Update rule: adam, adamw or sgd."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's denominator floor."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    texts_per_update: int = 1
    """Texts in one update, on their mean gradient; the learning rate grows to match."""
    reuse: int = 1
    """Steps in a row on one text that share the first one's gradient: `hull(reuse=2)` is HullFT."""
    long_texts: str = "first"
    """Of a text beyond the context: its first tokens, chunks (an update on each), or a random
    one."""
    carry: bool = False
    """Keep the optimiser's state from prompt to prompt; then the run is one process's, in order."""

    def __post_init__(self) -> None:
        as_count(self.n, "n")
        as_count(self.k, "k")
        as_count(self.texts_per_update, "texts_per_update")
        as_count(self.reuse, "reuse")
        as_positive(self.lam, "lam")
        as_positive(self.near_overlap, "near_overlap")
        self.filter()
        if self.chunks < 2:
            raise ValueError(f"chunks is {self.chunks}: expected at least 2")
        if self.alpha is not None:
            as_positive(self.alpha, "alpha")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: expected {' or '.join(allowed)}"
                )
        if not self.methods:
            raise ValueError("methods is empty: expected at least one")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {list(self.methods)}: expected each once")
        _ = self.optimizer_config
        adapter_config(self.mode, lr=self.lr, r=self.rank)
        for spelled in self.methods:
            self.method(spelled)

    def method(self, spelled: str) -> "Method":
        """What `spelled` means in this run.

        The name of a selector, or `dynamic` (gradient steps on the query itself), and in brackets
        the switches that are its own: `sift`, `sift(0.1)` for λ', `sift(alpha=0.25)`,
        `nearest(order=reversed)`, `sift(mode=lora, lr=5e-4)`, `sift(use=context)` for in-context
        learning. The switches of the prompts and the scoring are the run's alone.

        Raises:
            ValueError: If it names no method, or no switch or value of one.
        """
        match = re.fullmatch(r"([\w-]+)(?:\((.+)\))?", spelled)
        if not match:
            raise ValueError(f"method is {spelled!r}: expected a selector, as in sift or sift(0.1)")
        name, own = match[1], dict[str, Any]()
        if name != DYNAMIC:
            selector(name)
        for item in OF_METHOD.findall(match[2] or ""):
            line = item.strip() if "=" in item else f"lam={item.strip()}"
            new = parse_override(line, spelled)
            if again := own.keys() & new.keys():
                raise ValueError(f"method {spelled!r} sets {again.pop()} twice")
            own |= new
        if of_run := sorted(own.keys() & set(OF_THE_RUN)):
            raise ValueError(f"method {spelled!r} sets {of_run[0]}, which is of the whole run")
        if not own:
            return self._method(name)
        return replace(self, methods=(name,), **parse_fields(EvalConfig, own, spelled))._method(
            name
        )

    def _method(self, name: str) -> "Method":
        if name == DYNAMIC and self.leakage == "whole":
            raise ValueError(
                "method dynamic trains on the query, which with leakage 'whole' is the scored "
                "text: expected leakage split or score-first"
            )
        return Method(name, self)

    def filter(self) -> Filter | None:
        """`where`, read."""
        return None if self.where is None else parse(self.where)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return OptimizerConfig(
            name=cast(Any, self.optimizer), beta1=self.beta1, beta2=self.beta2, eps=self.eps,
            weight_decay=self.weight_decay, max_grad_norm=self.clip,
        )  # fmt: skip

    @property
    def carries(self) -> bool:
        """Whether a method's numbers depend on the prompts before."""
        return any(self.method(spelled).switches.carry for spelled in self.methods)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are scored, ascending, from 0 to n."""
        return tuple(sorted({0, self.n, *(s for s in self.score_at if 0 <= s <= self.n)}))

    def record(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Method:
    """A selector, or `dynamic`, and the switches it runs under."""

    name: str
    switches: EvalConfig
