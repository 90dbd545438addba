"""Contamination: whether a prompt, or a near-duplicate of it, is in the data space.

A near-duplicate is found by text: one document contains the prompt, or at least half of its
13-grams of words; see `whet.space.passages`.

Only the candidates of the prompt are compared, the k documents nearest to its query and to its
whole text: a copy that no method can select does not matter. This takes milliseconds per prompt; an
index of all 13-grams of a data space would take minutes to build.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from whet.evaluate.config import EvalConfig
from whet.maths.arrays import Array
from whet.space.passages import Passages, by_parent, overlap
from whet.space.space import DataSpace
from whet.space.store.protocol import Neighbors


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
    parents = by_parent(documents)
    exact = any(_contain(parts, whole, text) for parts in parents)
    largest = max(_overlap(parts, whole, text) for parts in parents)
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
    for parts in by_parent(documents):
        exact = _contain(parts, whole, text)
        if exact or _overlap(parts, whole, text) >= config.near_overlap:
            for place in parts.places:
                own = Passages([place], [documents[place].text])
                near[place] = len(parts.places) == 1 or _overlap(own, whole, text) > 0
    return near


def _contain(passages: Passages, whole: str, text: str) -> bool:
    """Whether one text equals the whole prompt or contains the scored text."""
    whole, text = _normalized(whole), _normalized(text)
    normalized = map(_normalized, passages.texts)
    return any(whole == other or (text != "" and text in other) for other in normalized)


def _overlap(passages: Passages, whole: str, text: str) -> float:
    """The larger share of the 13-grams of the whole and of the scored text in all texts."""
    return max(overlap(whole, passages.texts), overlap(text, passages.texts))


def _normalized(text: str) -> str:
    return " ".join(text.split())
