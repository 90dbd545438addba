"""Whether the steps help: bits per byte of the end of the prompt, held back, along the steps.

Source: arXiv 2606.15569, which chooses the number of steps by the evidence of the prompt. Here the
evidence is conditional: the last quarter of the prompt, given what comes before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from whet.adapt.config import Use
from whet.adapt.model import LanguageModel
from whet.adapt.session import AdaptationSession

CHECKED_STEPS = (0, 2, 5, 10, 20, 50)
MIN_TOKENS = 16  # of the part held back: fewer say too little
MAX_CHARACTERS = 4096  # of the prompt's end, so that a long prompt does not cost more than a step
UNDONE_ABOVE = 1.05
"""Times the bits before, above which `check` undoes the steps: a quarter of a prompt is too short to
represent all that follows (benchmarks/LOG.md)."""
SHOWN = 3  # sources in a line


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an answer rests on, and whether the steps helped.

    >>> evidence = Evidence({0: 1.42, 4: 1.18}, 4, {"a.md#2": 3, "b.md": 1}, seconds=4.1)
    >>> evidence.before, evidence.after
    (1.42, 1.18)
    >>> str(evidence).partition(": ")[0]
    'adapted by 4 steps on 2 passages (4.1 s)'
    """

    bits_per_byte: Mapping[int, float] = field(default_factory=dict)
    """Bits per byte of the part of the prompt that was held back, by the number of steps before;
    empty if that was not measured, as for prompts with fewer than 64 tokens or so."""
    num_steps: int = 0
    """Steps that the answer's weights have taken: 0 if the base model has answered."""
    passages: Mapping[str, int] = field(default_factory=dict)
    """Number of steps on each passage, in the order of its first use."""
    sigma: float | None = None
    """σ after the last pick that was used; None without a selection."""
    seconds: float = 0.0
    """Wall time from the submission of the request to its last token."""
    in_context: tuple[str, ...] = ()
    """Passages that the model has read, the first one nearest to the question."""
    chosen_use: Use | None = None
    """What `auto` has chosen to use the documents for; None if the request says it."""

    @property
    def before(self) -> float | None:
        """Bits per byte of the part held back, by the base model."""
        return self.bits_per_byte.get(0)

    @property
    def after(self) -> float | None:
        """Bits per byte of the part held back after all steps; None if there were none."""
        last = max(self.bits_per_byte, default=0)
        return self.bits_per_byte[last] if last else None

    def __str__(self) -> str:
        last = max(self.bits_per_byte, default=self.num_steps)
        counts = dict.fromkeys([*self.passages, *self.in_context], 1) | {**self.passages}
        names = [name + (f" ×{count}" if count > 1 else "") for name, count in counts.items()]
        parts = ["sources: " + ", ".join([*names[:SHOWN], *["…"] * (len(names) > SHOWN)])]
        if self.sigma is not None:
            parts.insert(0, f"σ {self.sigma:.2f}")
        if self.in_context and self.chosen_use:
            parts.append(f"use: {self.chosen_use}, chosen by default")
        steps, took = sum(self.passages.values()), f"({self.seconds:.1f} s)"
        read = _count(len(self.in_context), "passage") + " in the context"
        if not steps:
            if not self.in_context:
                return f"base model, nothing was trained on {took}"
            return f"base model with {read} {took}: " + "; ".join(parts)
        numbers = f"{_count(steps, 'step')} on {_count(len(self.passages), 'passage')}"
        numbers += f", with {read} {took}" if self.in_context else f" {took}"
        if self.after is None:
            return f"adapted by {numbers}: " + "; ".join(["not measured whether it helped", *parts])
        if not self.num_steps:
            parts.insert(0, self._measured(self.after) + ", so the steps were undone")
            return f"base model after trying {numbers}: " + "; ".join(parts)
        parts.insert(0, self._measured(self.bits_per_byte[self.num_steps]))
        if self.num_steps < last:
            parts.insert(1, f"the best, after {_count(self.num_steps, 'step')}")
        return f"adapted by {numbers}: " + "; ".join(parts)

    def _measured(self, after: float) -> str:
        return f"held-back part of the prompt {self.before:.2f} → {after:.2f} bits per byte"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("s" if number != 1 else "")


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The end of a prompt, which is scored, and what is read before it."""

    context: str
    text: str

    @classmethod
    def of(cls, prompt: str, model: LanguageModel, *, front: str = "") -> "HeldBack | None":
        """The last quarter of `prompt`, from the white space before it; None if it is too short.

        Args:
            prompt: The prompt, of which the last 4096 characters are used.
            model: The model, whose tokens are counted.
            front: What the model reads before the prompt.
        """
        start = max(0, len(prompt) - MAX_CHARACTERS)
        quarter = start + (3 * (len(prompt) - start) + 3) // 4
        half = start + (len(prompt) - start) // 2
        cut = max(prompt.rfind(space, half, quarter) for space in " \n")
        cut = quarter if cut < 0 else cut
        context, text = prompt[start:cut], prompt[cut:]
        if not text or len(model.encode_after(context, text)) < MIN_TOKENS:
            return None
        return cls((front if not start else "") + context, text)


class EvidenceCheck:
    """Measures the evidence along the steps of a session, and keeps what it speaks for.

    Costs one forward pass of the end of the prompt per measurement and, with `best`, a copy of the
    trained weights.
    """

    def __init__(self, session: AdaptationSession, prompt: str, *, front: str = "") -> None:
        """Measure nothing yet.

        Args:
            session: The session, whose `training.evidence` says what is done.
            prompt: The prompt that the session adapts to.
            front: What the model reads before the prompt.
        """
        self._session, self._mode = session, session.training.evidence
        self._held_back = None
        if self._mode != "off":
            self._held_back = HeldBack.of(prompt, session.model, front=front)
        self.bits_per_byte: dict[int, float] = {}
        """What was measured, by the number of steps before."""
        self._snapshot: Tensor | None = None

    def before_first(self) -> None:
        """Measure the model before the first step."""
        if not self.bits_per_byte:
            self._measure(0)

    def after_update(self, number: int) -> None:
        """Measure after `number` steps, if `best` asks for that."""
        if self._mode == "best" and self._held_back is not None and number in CHECKED_STEPS:
            self._measure(number)
            if self._choice(number) == number:
                self._snapshot = self._session.snapshot()

    def finish(self, number: int) -> int:
        """Measure after all `number` steps, and restore the weights that the evidence speaks for.

        Returns:
            The number of steps that those weights have taken.
        """
        if not number or self._held_back is None:
            return number
        if number not in self.bits_per_byte:
            self._measure(number)
        chosen = self._choice(number)
        if chosen != number:
            self._session.restore(self._snapshot if chosen else None)
        return chosen

    def _choice(self, number: int) -> int:
        """The number of steps to keep of `number`; of equally good ones the fewest."""
        bits = self.bits_per_byte
        if self._mode == "best":
            return min(bits, key=bits.__getitem__)
        undone = self._mode == "check" and bits[number] > UNDONE_ABOVE * bits[0]
        return 0 if undone else number

    def _measure(self, number: int) -> None:
        if self._held_back is None:
            return
        part = self._held_back
        bits = self._session.model.score(part.text, context=part.context).bits_per_byte
        self.bits_per_byte[number] = bits if math.isfinite(bits) else math.inf
