"""Is a prompt in the data space, exactly or nearly?

Near by the cosine of their embeddings, or by the words they share: the share of the prompt's
13-grams that one document holds, after Brown et al. (arXiv 2005.14165, Appendix C), who call any
shared 13-gram an overlap.
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
    """What of a prompt is in the data space."""

    exact: bool
    """A document is the prompt's whole text, or holds the scored text, but for white space."""
    cosine: float
    """The largest cosine of a document to the whole text."""
    overlap: float
    """The largest share in one document of the 13-grams of the whole or of the scored text."""
    near: bool
    """Exact, or over one of the thresholds of the run."""
    cosines: Float[Array, " k"]
    """Of the candidates of the query, descending in size."""


def find_contamination(
    space: DataSpace, query: str, text: str, whole: str, switches: EvalConfig
) -> Contamination:
    """Look for a prompt among the documents nearest its whole text and nearest its query.

    One batch of two is embedded and searched; the words of up to 2k documents are compared.

    Raises:
        ValueError: If the query or the text shares nothing with the data space.
    """
    vectors = space.embedder.encode([query or text, whole])
    near_query, near_whole = space.search(vectors, min(switches.k, len(space)))
    rows = np.union1d(near_query.rows, near_whole.rows)
    texts = space.texts(rows)
    overlap = float(_shares(whole, text, texts).max())
    exact = bool(_exact(whole, text, texts).any())
    cosine = float(near_whole.scores.max())
    near = exact or cosine >= switches.near_cosine or overlap >= switches.near_overlap
    by_size = np.argsort(-np.abs(near_query.scores), kind="stable")
    return Contamination(exact, cosine, overlap, near, near_query.scores[by_size])


def near_duplicates(
    space: DataSpace, candidates: Neighbors, text: str, whole: str, switches: EvalConfig
) -> Bool[Array, " k"]:
    """Which candidates of a prompt's query are near-duplicates of it, as `find_leak` has it."""
    texts = space.texts(candidates.rows)
    near: Bool[Array, " k"] = _exact(whole, text, texts) | (
        _shares(whole, text, texts) >= switches.near_overlap
    )
    cosines = space.score_rows(space.embedder.encode([whole]), candidates.rows).scores
    return near | (cosines >= switches.near_cosine)


def _exact(whole: str, text: str, others: list[str]) -> Bool[Array, " k"]:
    """Which are the whole text, or hold the scored one, but for white space."""
    wanted, part = _flat(whole), _flat(text)
    flats = map(_flat, others)
    return np.array([wanted == flat or (part != "" and part in flat) for flat in flats], bool)


def _shares(whole: str, text: str, others: list[str]) -> Float[Array, " k"]:
    return np.maximum(list(overlaps(whole, others)), list(overlaps(text, others)))


def overlaps(text: str, others: Iterable[str]) -> Iterable[float]:
    """The share of the distinct 13-grams of `text` that each of `others` holds.

    Words are compared without case. A text of fewer words is one gram, of as many.
    """
    words = text.casefold().split()
    size = min(GRAM, len(words))
    own, known = set(_grams(words, size)), set(words)
    for other in others:
        shared = [word if word in known else None for word in other.casefold().split()]
        yield len(own.intersection(_grams(shared, size))) / len(own) if own else 0.0


def _grams(words: list[str] | list[str | None], size: int) -> Iterable[tuple[str | None, ...]]:
    return zip(*(words[i:] for i in range(size)), strict=False)


def _flat(text: str) -> str:
    return " ".join(text.split())
