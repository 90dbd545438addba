"""The switches of a run, its methods, and what of a document is asked and scored.

Definitions: docs/protocol.md.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from whet.adapt.adaptation import Optimiser, adaptation
from whet.maths.arrays import as_count, as_positive
from whet.select.table import selector


class Method(NamedTuple):
    """A selector and its noise, spelled `sift` or `sift(0.1)`."""

    selector: str
    lam: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Everything that changes a run's numbers; stored with them."""

    model: str = "whet-nano"
    """Bundled model, folder, or Hugging Face id."""
    methods: tuple[str, ...] = ("uncertainty", "nearest", "nearest-repeated", "sift")
    """Selectors compared; `sift(0.1)` sets λ' for one of them."""
    n: int = 50
    """Gradient steps a prompt."""
    k: int = 200
    """Candidates nearest the query."""
    lam: float = 0.01
    """λ' of every method that names none."""
    score_at: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    """Steps after which the text is scored; those beyond n are left out, n itself is added."""
    leakage: str = "split"
    """split: the first half is the query, the second is scored. whole: the text is both."""
    left_context: bool = True
    """With split: whether the model reads the first half while it is scored on the second."""
    order: str = "selected"
    """Order of the gradient steps: selected or reversed."""
    mode: str = "full"
    """What is trained: full, lora or head."""
    lr: float | None = None
    """Learning rate; none for the model's tuned one, or else the mode's."""
    rank: int | None = None
    """Rank of LoRA."""
    optimiser: str = "adam"
    """Update rule, adam, adamw or sgd; its state is fresh for every prompt."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""

    def __post_init__(self) -> None:
        as_count(self.n, "n")
        as_count(self.k, "k")
        as_positive(self.lam, "lam")
        for name, allowed in (
            ("leakage", ("split", "whole")),
            ("order", ("selected", "reversed")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: expected {' or '.join(allowed)}"
                )
        if not self.methods:
            raise ValueError("methods is empty: expected at least one selector")
        for spelled in self.methods:
            self.method(spelled)
        _ = self.optimiser_options
        adaptation(self.mode, lr=self.lr, rank=self.rank)

    def method(self, spelled: str) -> Method:
        """What `spelled` means in this run.

        Raises:
            ValueError: If it names no selector or no noise.
        """
        match = re.fullmatch(r"([\w-]+)(?:\(([^()]+)\))?", spelled)
        if not match:
            raise ValueError(f"method is {spelled!r}: expected a selector, as in sift or sift(0.1)")
        selector(match[1])
        return Method(match[1], as_positive(match[2] or self.lam, f"lam of {match[1]}"))

    @property
    def optimiser_options(self) -> Optimiser:
        return Optimiser(kind=self.optimiser, weight_decay=self.weight_decay, clip=self.clip)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are scored, ascending, from 0 to n."""
        return tuple(sorted({0, self.n, *(s for s in self.score_at if 0 <= s <= self.n)}))

    def record(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def read(cls, path: Path | None, overrides: Iterable[str] = ()) -> "Switches":
        """The switches of a TOML file, with `key=value` lines put over them.

        Raises:
            ValueError: If a line is no TOML, or names an unknown switch or a wrong value.
        """
        given = _toml(path.read_text(encoding="utf-8"), str(path)) if path else {}
        for line in overrides:
            key, equals, value = line.partition("=")
            if not equals:
                raise ValueError(f"--set {line!r} sets nothing: expected KEY=VALUE")
            try:
                given |= tomllib.loads(line)
            except tomllib.TOMLDecodeError:  # a bare word, as shells pass them
                given[key.strip()] = value.strip()
        defaults = {field.name: field.default for field in fields(cls)}
        for key, value in given.items():
            if key not in defaults:
                raise ValueError(f"{path or '--set'} sets {key!r}: expected {', '.join(defaults)}")
            given[key] = _like(value, defaults[key], key)
        return cls(**given)


def _like(value: Any, default: Any, name: str) -> Any:
    """`value` in the type of `default`; a whole number is a float, a list a tuple."""
    if isinstance(default, tuple):
        kind = type(default[0])
        if isinstance(value, list) and all(type(item) is kind for item in value):
            return tuple(value)
        raise ValueError(f"{name} is {value!r}: expected a list like {list(default)!r}")
    kinds = (float, int) if default is None else (type(default),)
    if type(value) in kinds or (float in kinds and type(value) is int):
        return value
    raise ValueError(f"{name} is {value!r}: expected {' or '.join(k.__name__ for k in kinds)}")


def _toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not TOML: {error}") from error


@dataclass(frozen=True, slots=True)
class Task:
    """What is embedded for a document, what the model reads unscored, and what it is scored on."""

    query: str
    context: str
    text: str

    @classmethod
    def of(cls, text: str, switches: Switches) -> "Task":
        """Split at the character nearest the middle, or whole.

        Raises:
            ValueError: If a half would be empty.
        """
        if switches.leakage == "whole":
            return cls(text, "", text)
        middle = (len(text) + 1) // 2
        if middle == len(text):
            raise ValueError(f"document {text!r} is too short to split into query and text")
        left = text[:middle]
        return cls(left, left if switches.left_context else "", text[middle:])
