"""Whether the steps help: bits per byte of the end of the prompt, held back, along the steps.

Source: arXiv 2606.15569, which chooses the number of steps by the evidence of the prompt. Here the
evidence is conditional: the last quarter of the prompt's tokens, given those before.
"""

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from whet.adapt.batches import Tokens
from whet.adapt.config import Use
from whet.adapt.decoding.sampling import SequenceGroup, TextPiece
from whet.adapt.model import LanguageModel
from whet.adapt.session import AdaptationSession
from whet.io import count_of

CHECKED_STEPS = (0, 2, 5, 10, 20, 50)
MIN_TOKENS = 16  # of the part held back: fewer say too little
MAX_TOKENS = 1024  # of the prompt's end, so that a long prompt does not cost more than a step
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
        read = count_of(len(self.in_context), "passage") + " in the context"
        if not steps:
            if not self.in_context:
                return f"base model, nothing was trained on {took}"
            return f"base model with {read} {took}: " + "; ".join(parts)
        numbers = f"{count_of(steps, 'step')} on {count_of(len(self.passages), 'passage')}"
        numbers += f", with {read} {took}" if self.in_context else f" {took}"
        if self.after is None:
            parts.insert(0, "whether it helped was not measured")
            return f"adapted by {numbers}: " + "; ".join(parts)
        if not self.num_steps:
            parts.insert(0, self._measured(self.after) + ", so the steps were undone")
            return f"base model after trying {numbers}: " + "; ".join(parts)
        parts.insert(0, self._measured(self.bits_per_byte[self.num_steps]))
        if self.num_steps < last:
            parts.insert(1, f"the best, after {count_of(self.num_steps, 'step')}")
        return f"adapted by {numbers}: " + "; ".join(parts)

    def _measured(self, after: float) -> str:
        return f"held-back part of the prompt {self.before:.2f} → {after:.2f} bits per byte"


@dataclass(frozen=True, slots=True, eq=False)
class HeldBack:
    """The end of a prompt, which is scored, and what is read before it."""

    tokens: Tokens
    """Both, without the start token."""
    num_scored: int
    num_bytes: int

    @classmethod
    def of(cls, prompt: Tokens, model: LanguageModel) -> "HeldBack | None":
        """The last quarter of the last 1024 tokens of `prompt`; None if that is too short.

        Args:
            prompt: The tokens of the prompt, without the start token.
            model: The model, by which bytes are counted.
        """
        tokens = prompt[-MAX_TOKENS:]
        num_scored = len(tokens) // 4
        if num_scored < MIN_TOKENS:
            return None
        text = model.decode_after(tokens[:-num_scored], tokens[-num_scored:].tolist())
        return cls(tokens, num_scored, max(1, len(text.encode())))


class EvidenceCheck:
    """Measures the evidence along the steps of a session, and keeps what it speaks for.

    Costs one forward pass of the end of the prompt per measurement, except where `decode` reads it
    anyway, and where intermediate steps are measured a copy of the trained weights.
    """

    def __init__(
        self, session: AdaptationSession, prompt: str | Tokens, *, is_copy: bool = False
    ) -> None:
        """Measure nothing yet.

        Args:
            session: The session, whose `training.evidence` says what is done.
            prompt: The prompt that the session adapts to, or its tokens without the start token.
            is_copy: Whether the steps learn a copy of the prompt by heart: if that harms what
                differs from the copy, `check` keeps the best of some fewer steps.
        """
        self._session, self._mode = session, session.training.evidence
        self._has_fewer = self._mode == "best" or (is_copy and self._mode == "check")
        self._prompt = None if self._mode == "off" else prompt  # until it is measured
        self._held_back: HeldBack | None = None
        self.bits_per_byte: dict[int, float] = {}
        """What was measured, by the number of steps before."""
        self._snapshot: Tensor | None = None

    def before_first(self) -> None:
        """Measure the model before the first step."""
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            return
        model = self._session.model
        if isinstance(prompt, str):
            prompt = model.without_start(model.encode(prompt))
        self._held_back = HeldBack.of(prompt, model)
        self._measure(0)

    def after_update(self, number: int) -> None:
        """Measure after `number` steps, if fewer steps than all may be kept."""
        if self._has_fewer and self._held_back is not None and number in CHECKED_STEPS:
            self._measure(number)
            if self._best() == number:
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

    def decode(
        self,
        group: SequenceGroup,
        number: int,
        *,
        restart: Callable[[], SequenceGroup],
        should_stop: Callable[[], bool],
        on_text: Callable[[TextPiece], None],
    ) -> Generator[SequenceGroup, list[TextPiece], tuple[SequenceGroup, int]]:
        """`finish`, and `AdaptationSession.decode` by the weights that the evidence speaks for.

        If `group` continues the prompt that is measured, it is measured when it is read, and read
        again only if steps are undone.

        Args:
            group: The sequences to generate.
            number: The number of all steps.
            restart: Returns the sequences anew, to generate them by other weights.
            should_stop: Called before each token; True ends the generation.
            on_text: Called with each piece of text.

        Returns:
            The generated sequences, and the number of steps that their weights have taken.
        """
        decode = partial(self._session.decode, should_stop=should_stop, on_text=on_text)
        chosen, part, first = number, self._held_back, group.sequences[0]
        if (
            not number
            or number in self.bits_per_byte
            or part is None
            or not torch.equal(part.tokens, first.prompt[1:])
        ):
            chosen = self.finish(number)
            yield from decode(group)
            return group, chosen
        first.num_scored = part.num_scored

        def accepts() -> bool:
            nonlocal chosen
            if first.prompt_nats is not None:
                self._note(number, first.prompt_nats / math.log(2) / part.num_bytes)
            chosen = self.finish(number)
            return chosen == number

        if not (yield from decode(group, accepts=accepts)):
            group = restart()
            yield from decode(group)
        return group, chosen

    def _choice(self, number: int) -> int:
        """The number of steps to keep of `number`."""
        bits = self.bits_per_byte
        undone = self._mode == "check" and bits[number] > UNDONE_ABOVE * bits[0]
        return self._best() if undone or self._mode == "best" else number

    def _best(self) -> int:
        """The number of steps that were best; of equally good ones the fewest."""
        return min(self.bits_per_byte, key=self.bits_per_byte.__getitem__)

    def _measure(self, number: int) -> None:
        if (part := self._held_back) is not None:
            score = self._session.model.score_tokens(part.tokens, part.num_scored, part.num_bytes)
            self._note(number, score.bits_per_byte)

    def _note(self, number: int, bits: float) -> None:
        self.bits_per_byte[number] = bits if math.isfinite(bits) else math.inf
