"""Passages by the document they were cut from, and documents that repeat a prompt.

A document contains another text to the extent that it shares its 13-grams of words (Brown et al.,
arXiv 2005.14165, Appendix C). Cosines do not decide: those of an embedder of words are high for
texts that share no sentence, such as exercises made from one template.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from whet.data.documents import Document

if TYPE_CHECKING:
    from jaxtyping import Int

    from whet.data.filters import Filter
    from whet.maths.arrays import Array
    from whet.space.space import DataSpace

Gram: TypeAlias = tuple[str | None, ...]  # of words; None is a word that the prompt does not have

GRAM = 13  # words
MIN_WORDS = 2 * GRAM  # of a prompt that can have a copy: documents repeat shorter texts by chance
MAX_SHARING = 5  # documents that a 13-gram may be in before it is standard wording
FOLLOWING = 1  # passages that are read on after a copy; 2 were worse: benchmarks/LOG.md


@dataclass(frozen=True, slots=True)
class Passages:
    """Those of some documents that were cut from one document: the document itself, or passages."""

    places: list[int]
    """Their indices among the documents, in the order of the text."""
    texts: list[str]
    """Their texts, in which passages that follow each other are joined."""

    def overlap(self, text: str) -> float:
        """The share of the 13-grams of `text` that the passages contain together."""
        return overlap(text, self.texts)


def by_parent(documents: Sequence[Document]) -> list[Passages]:
    """The documents by the document that they were cut from."""
    places = defaultdict[object, list[int]](list)
    for place, document in enumerate(documents):
        places[parent(document)].append(place)
    return [_passages(documents, group) for group in places.values()]


def parent(document: Document) -> object:
    """Id of the document that `document` was cut from; its own if it is whole."""
    is_passage = "parent" in document.meta and "span" in document.meta
    return document.meta["parent"] if is_passage else document.id


def overlap(text: str, others: Iterable[str]) -> float:
    """The share of the distinct 13-grams of `text` that `others` contain together.

    Words are compared without case. A shorter text counts as one gram of all its words.

    >>> overlap("to be or not to be", ["To be or not to be?"])
    0.0
    >>> overlap("to be or not to be", ["he said to be or not to be"])
    1.0
    """
    grams = _grams(text)
    return len(_shared(grams, others)) / len(grams) if grams else 0.0


def find_copy(
    space: "DataSpace",
    prompt: str,
    rows: "Int[Array, ' k']",
    min_overlap: float,
    where: "Filter | None" = None,
) -> dict[int, Document]:
    """The document that repeats the prompt: its passages in `rows`, and those that follow.

    That is the document whose passages in `rows` contain the largest share of the prompt's
    13-grams of words, at least `min_overlap`; of its passages, those that contain one of these,
    and the one that follows the last. A 13-gram that more than 5 documents contain is standard
    wording, such as a license, and does not count. Prompts with fewer than 13 others, and those of
    fewer than 26 words, have no copy.

    Reads and compares the texts of `rows`, some milliseconds for 200 passages.

    Args:
        space: Where the passages are.
        prompt: The text that may be repeated.
        rows: Candidates of the prompt.
        min_overlap: Share of the 13-grams, above 0 and at most 1.
        where: Filter that the passage that follows must pass, too.

    Returns:
        Passages by row, in the order of the text, none if no document repeats the prompt. Passages that
        the data space does not show, because of a filter or a label, are never among them.
    """
    if len(prompt.split()) < MIN_WORDS:
        return {}
    documents = space.documents(rows)
    groups, grams = by_parent(documents), _grams(prompt)
    shared = [_shared(grams, group.texts) for group in groups]
    counts = Counter(gram for found in shared for gram in found)
    grams = {gram for gram in grams if counts[gram] <= MAX_SHARING}
    if len(grams) < GRAM:
        return {}
    sizes = [len(found & grams) for found in shared]
    best = int(np.argmax(sizes))
    if sizes[best] < min_overlap * len(grams):
        return {}
    places = groups[best].places
    repeated = [place for place in places if _shared(grams, [documents[place].text])]
    repeated = repeated or places  # cut where they meet, so that no gram is in one
    following = _following(space, int(rows[repeated[-1]]), where)
    return {int(rows[i]): documents[i] for i in repeated} | following


def _following(space: "DataSpace", row: int, where: "Filter | None") -> dict[int, Document]:
    """The passages after that in `row`, of the same document: their rows follow each other."""
    wanted = np.arange(row + 1, row + 1 + FOLLOWING)
    visible = wanted[np.isin(wanted, space.store.ids(where))].tolist()
    [previous, *others] = space.documents([row, *visible])
    following = dict[int, Document]()
    for place, document in zip(visible, others, strict=True):
        if not _continues(document, previous):
            break
        following[place] = previous = document
    return following


def _continues(document: Document, previous: Document) -> bool:
    span, previous_span = document.meta.get("span"), previous.meta.get("span")
    adjacent = span and previous_span and span[0] == previous_span[1]
    return bool(adjacent) and parent(document) == parent(previous)


def _passages(documents: Sequence[Document], places: list[int]) -> Passages:
    """The texts of passages by their position; those that follow each other are one text."""
    spans = [documents[place].meta.get("span") for place in places]
    if any(span is None for span in spans):
        return Passages(places, [documents[place].text for place in places])
    order = [place for _, place in sorted(zip(spans, places, strict=True))]
    texts = list[str]()
    for previous, place in zip([None, *order], order, strict=False):
        if previous is not None and _continues(documents[place], documents[previous]):
            texts[-1] += documents[place].text
        else:
            texts.append(documents[place].text)
    return Passages(order, texts)


def _grams(text: str) -> set[Gram]:
    words = text.casefold().split()
    return set(_windows(words, min(GRAM, len(words))))


def _shared(grams: set[Gram], others: Iterable[str]) -> set[Gram]:
    """Those of `grams`, which have one length, that `others` contain together."""
    vocabulary = set[str | None]().union(*grams)
    size = len(next(iter(grams), ()))
    shared = set[Gram]()
    for other in others:
        known = [word if word in vocabulary else None for word in other.casefold().split()]
        shared |= grams.intersection(_windows(known, size))
    return shared


def _windows(words: Sequence[str | None], size: int) -> Iterable[Gram]:
    return zip(*(words[i:] for i in range(size)), strict=False)
