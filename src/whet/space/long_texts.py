"""How many texts of a data space are longer than an embedder reads, or a model trains on at once.

Nothing is lost of a text that is longer than the model's context, but it takes several steps, which
is worth a remark where many do and passages would fit; of one that is longer than the embedder
reads, the selection knows the beginning only.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from whet.data.chunking import PASSAGE_WORDS, PASSAGES
from whet.space.space import DataSpace

SAMPLE = 512  # texts that are counted in larger data spaces: a share is then off by about 2 points
MANY = 0.2  # of the texts: fewer that take several steps hardly change a request
CHARACTERS = 8  # per token: a beginning of that many shows for almost all texts that they are long


@dataclass(frozen=True, slots=True)
class LongTexts:
    """Counts over the texts of a data space, or over a sample of them."""

    path: str
    texts: int
    """Texts of the data space."""
    counted: int
    """Texts that were counted."""
    chunks: str
    """How the texts were cut."""
    embedder: str
    by_embedder: int
    """Texts of which the embedder reads only the beginning."""
    model: str = ""
    context: int = 0
    """Tokens that the model trains on at once."""
    by_model: int = 0
    """Texts with more tokens."""

    def __str__(self) -> str:
        """One line for people; empty if no text is too long.

        Texts that are longer than the model's context are left out if they are a fifth at most, or
        passages of the default length.
        """
        rule, _, size = self.chunks.partition(":")
        facts, is_cut = [], rule == PASSAGES and int(size) <= PASSAGE_WORDS
        if self.by_embedder:
            count = self._count(self.by_embedder)
            facts.append(f"{self.embedder} reads only the beginning of {count} texts")
        if self.by_model > MANY * self.counted and not is_cut:
            count = self._count(self.by_model)
            facts.append(
                f"{count} texts have more than the {self.context:,} tokens that {self.model} trains "
                "on at once, so each takes several steps"
            )
        if not facts:
            return ""
        remedy = (
            "" if is_cut
            else "; for passages that fit, index the source again into a new data space"
        )  # fmt: skip
        return f"{self.path}: {', and '.join(facts)}{remedy}"

    def _count(self, long: int) -> str:
        share = f"{max(1, round(100 * long / self.counted))} %"
        if self.counted < self.texts:
            return f"about {share} of its {self.texts:,}"
        return f"{long:,} of its {self.texts:,} ({share})"


@runtime_checkable
class Model(Protocol):
    """What is needed of a language model: see `whet.LanguageModel`."""

    name: str
    max_length: int

    def encode(self, text: str, *, device: str | None = None) -> Any:
        """Token ids of a text."""
        ...


def count_long_texts(space: DataSpace, model: Model | None = None) -> LongTexts:
    """Count the texts of `space` that are too long; of more than 512 texts, a seeded sample.

    Takes less than a second: no text is tokenized whose bytes are fewer than the tokens that fit.
    """
    rows = space.rows
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    texts = space.texts(rows)
    count_truncated = getattr(space.embedder, "count_truncated", None)
    return LongTexts(
        path=str(space.path),
        texts=len(space),
        counted=len(texts),
        chunks=space.manifest.chunking,
        embedder=space.embedder.name,
        by_embedder=0 if count_truncated is None else count_truncated(texts),
        model="" if model is None else model.name,
        context=0 if model is None else model.max_length,
        by_model=0 if model is None else sum(_is_long(text, model) for text in texts),
    )


def _is_long(text: str, model: Model) -> bool:
    limit = model.max_length
    if len(text.encode()) <= limit:
        return False
    beginning = text[: CHARACTERS * limit]
    is_long = len(model.encode(beginning, device="cpu")) > limit
    return is_long or (beginning != text and len(model.encode(text, device="cpu")) > limit)
