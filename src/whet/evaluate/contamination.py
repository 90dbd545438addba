"""Contamination: whether a prompt, or a near-duplicate of it, is in the data space.

Near-duplicates are found by the cosine of the embeddings and by common words: the share of the
prompt's 13-grams that one document contains, after Brown et al. (arXiv 2005.14165, Appendix C), who
count any common 13-gram as an overlap.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from whet.evaluate.config import EvalConfig
from whet.maths.arrays import Array
from whet.space.space import DataSpace
from whet.space.store.protocol import Neighbors

GRAM = 13  # words


@dataclass(frozen=True, slots=True, eq=False)
class Contamination:
    """How much of a prompt is in the data space."""

    exact: bool
    """Whether a document equals the prompt's whole text or contains the scored text, ignoring
    whitespace."""
    cosine: float
    """Largest cosine of a document to the whole text."""
    overlap: float
    """Largest share of the 13-grams of the whole or of the scored text in one document."""
    near: bool
    """Whether it is exact or exceeds one of the thresholds of the configuration."""
    cosines: Float[Array, " k"]
    """Signed cosines of the documents nearest the query, in decreasing size."""


def find_contamination(
    space: DataSpace, query: str, text: str, whole: str, config: EvalConfig
) -> Contamination:
    """Look for a prompt among the documents nearest its whole text and nearest its query.

    Embeds and searches for two texts, and compares the words of up to 2k documents.

    Raises:
        ValueError: If the query or the text has no term in common with the data space.
    """
    vectors = space.embedder.encode([query or text, whole])
    near_query, near_whole = space.search(vectors, space.resolve_k(config.selection.k))
    rows = np.union1d(near_query.rows, near_whole.rows)
    texts = space.texts(rows)
    overlap = float(_shares(whole, text, texts).max())
    exact = bool(_exact(whole, text, texts).any())
    cosine = float(near_whole.scores.max())
    near = exact or cosine >= config.near_cosine or overlap >= config.near_overlap
    by_size = np.argsort(-np.abs(near_query.scores), kind="stable")
    return Contamination(exact, cosine, overlap, near, near_query.scores[by_size])


def near_duplicates(
    space: DataSpace, candidates: Neighbors, text: str, whole: str, config: EvalConfig
) -> Bool[Array, " k"]:
    """Which candidates are near-duplicates of a prompt, as `find_contamination` defines them."""
    texts = space.texts(candidates.rows)
    near: Bool[Array, " k"] = _exact(whole, text, texts) | (
        _shares(whole, text, texts) >= config.near_overlap
    )
    cosines = space.score_rows(space.embedder.encode([whole]), candidates.rows).scores
    return near | (cosines >= config.near_cosine)


def _exact(whole: str, text: str, others: list[str]) -> Bool[Array, " k"]:
    """Which texts equal the whole text or contain the scored text, ignoring whitespace."""
    whole, text = _normalized(whole), _normalized(text)
    normalized = map(_normalized, others)
    return np.array([whole == n or (text != "" and text in n) for n in normalized], bool)


def _shares(whole: str, text: str, others: list[str]) -> Float[Array, " k"]:
    return np.maximum(list(overlaps(whole, others)), list(overlaps(text, others)))


def overlaps(text: str, others: Iterable[str]) -> Iterable[float]:
    """The share of the distinct 13-grams of `text` that each of `others` contains.

    Words are compared without case. A shorter text counts as one gram of all its words.

    >>> list(overlaps("to be or not to be", ["To be or not to be?", "he said to be or not to be"]))
    [0.0, 1.0]
    """
    words = text.casefold().split()
    size = min(GRAM, len(words))
    grams, vocabulary = set(_grams(words, size)), set(words)
    for other in others:
        common = [word if word in vocabulary else None for word in other.casefold().split()]
        yield len(grams.intersection(_grams(common, size))) / len(grams) if grams else 0.0


def _grams(words: list[str] | list[str | None], size: int) -> Iterable[tuple[str | None, ...]]:
    return zip(*(words[i:] for i in range(size)), strict=False)


def _normalized(text: str) -> str:
    return " ".join(text.split())
