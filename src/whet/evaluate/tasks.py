"""What of a document is asked and what is scored: the three levels of leakage.

Definitions: docs/protocol.md, "Leakage".
"""

from dataclasses import dataclass
from itertools import pairwise

from whet.evaluate.config import EvalConfig


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """What is embedded for a document, what the model reads unscored, and what it is scored on."""

    query: str
    """Empty where nothing is known of the document yet: there the base model answers."""
    context: str
    text: str

    @classmethod
    def of(cls, text: str, switches: EvalConfig) -> "tuple[ScoringTask, ...]":
        """The tasks of a document, whose bits add up.

        split: one, the second half, cut at the character nearest the middle. whole: one.
        score-first: one a chunk, each asked with what came before it.

        Raises:
            ValueError: If a part would be empty.
        """
        if switches.leakage == "whole":
            return (cls(text, "", text),)
        count = 2 if switches.leakage == "split" else switches.chunks
        if len(text) < count:
            raise ValueError(f"document {text!r} is too short to split into {count} parts")
        cuts = [(len(text) * i + count - 1) // count for i in range(count + 1)]
        tasks = tuple(
            cls(text[:start], text[:start] if switches.left_context else "", text[start:stop])
            for start, stop in pairwise(cuts)
        )
        return tasks[1:] if switches.leakage == "split" else tasks
