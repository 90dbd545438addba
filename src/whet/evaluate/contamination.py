"""Contamination: whether a prompt, or a near-duplicate of it, is in the data space.

A near-duplicate is found by text: one document contains the prompt, or at least half of its
13-grams of words. Brown et al. (arXiv 2005.14165, Appendix C) count any common 13-gram as overlap.
Cosines do not decide: those of an embedder of words are high for texts that share no sentence, such
as exercises made from one template.

Only the candidates of the prompt are compared, the k documents nearest to its query and to its
whole text: a copy that no method can select does not matter. This takes milliseconds per prompt; an
index of all 13-grams of a data space would take minutes to build.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from whet.data.documents import Document
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
    """Whether it is exact, or the overlap is at least `near_overlap` of the configuration."""
    cosines: Float[Array, " k"]
    """Signed cosines of the documents nearest the query, in decreasing size."""


def find_contamination(
    space: DataSpace, query: str, text: str, whole: str, config: EvalConfig
) -> Contamination:
    """Look for a prompt among the documents nearest its whole text and nearest its query.

    Passages of one document are put together again before they are compared. Embeds and searches
    for two texts, and compares the words of up to 2k documents.

    Raises:
        ValueError: If the query or the text has no term in common with the data space.
    """
    vectors = space.embedder.encode([query or text, whole])
    near_query, near_whole = space.search(vectors, space.resolve_k(config.selection.k))
    documents = space.documents(np.union1d(near_query.rows, near_whole.rows))
    parents = _parents(documents)
    exact = any(parts.contain(whole, text) for parts in parents)
    largest = max(parts.overlap(whole, text) for parts in parents)
    by_size = np.argsort(-np.abs(near_query.scores), kind="stable")
    return Contamination(
        exact=exact,
        cosine=float(near_whole.scores.max()),
        overlap=largest,
        near=exact or largest >= config.near_overlap,
        cosines=near_query.scores[by_size],
    )


def near_duplicates(
    space: DataSpace, candidates: Neighbors, text: str, whole: str, config: EvalConfig
) -> Bool[Array, " k"]:
    """Which candidates are near-duplicates of a prompt, as `find_contamination` defines them.

    Of a document in passages, these are the passages that contain a 13-gram of the prompt.
    """
    documents = space.documents(candidates.rows)
    near: Bool[Array, " k"] = np.zeros(len(documents), bool)
    for parts in _parents(documents):
        exact = parts.contain(whole, text)
        if exact or parts.overlap(whole, text) >= config.near_overlap:
            for place in parts.places:
                own = _Parts([place], [documents[place].text])
                near[place] = len(parts.places) == 1 or own.overlap(whole, text) > 0
    return near


@dataclass(frozen=True, slots=True)
class _Parts:
    """The candidates that belong to one document: the document itself, or some of its passages."""

    places: list[int]
    """Their indices among the candidates."""
    texts: list[str]
    """Their texts, in which passages that follow each other are joined."""

    def contain(self, whole: str, text: str) -> bool:
        """Whether one text equals the whole prompt or contains the scored text."""
        whole, text = _normalized(whole), _normalized(text)
        normalized = map(_normalized, self.texts)
        return any(whole == other or (text != "" and text in other) for other in normalized)

    def overlap(self, whole: str, text: str) -> float:
        """The larger share of the 13-grams of the whole and of the scored text in all texts."""
        return max(overlap(whole, self.texts), overlap(text, self.texts))


def _parents(documents: Sequence[Document]) -> list[_Parts]:
    """The candidates by the document that they come from."""
    passages = defaultdict[object, list[int]](list)
    for place, document in enumerate(documents):
        is_passage = "parent" in document.meta and "span" in document.meta
        passages[document.meta["parent"] if is_passage else document.id].append(place)
    return [_Parts(places, _joined([documents[i] for i in places])) for places in passages.values()]


def _joined(documents: Sequence[Document]) -> list[str]:
    """The texts of passages by their position; those that follow each other are one text."""
    spans = [(document.meta.get("span"), document.text) for document in documents]
    if any(span is None for span, _ in spans):
        return [text for _, text in spans]
    texts, end = list[str](), -1
    for (start, stop), text in sorted(spans):
        if start == end:
            texts[-1] += text
        else:
            texts.append(text)
        end = stop
    return texts


def overlap(text: str, others: Iterable[str]) -> float:
    """The share of the distinct 13-grams of `text` that `others` contain together.

    Words are compared without case. A shorter text counts as one gram of all its words.

    >>> overlap("to be or not to be", ["To be or not to be?"])
    0.0
    >>> overlap("to be or not to be", ["he said to be or not to be"])
    1.0
    """
    words = text.casefold().split()
    size = min(GRAM, len(words))
    grams, vocabulary = set(_grams(words, size)), set(words)
    found = set[tuple[str | None, ...]]()
    for other in others:
        known = [word if word in vocabulary else None for word in other.casefold().split()]
        found |= grams.intersection(_grams(known, size))
    return len(found) / len(grams) if grams else 0.0


def _grams(words: list[str] | list[str | None], size: int) -> Iterable[tuple[str | None, ...]]:
    return zip(*(words[i:] for i in range(size)), strict=False)


def _normalized(text: str) -> str:
    return " ".join(text.split())
