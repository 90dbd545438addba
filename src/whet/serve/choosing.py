"""From a prompt to the texts that a request is sharpened on, as one key sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.adapt.model import LanguageModel
from whet.serve.answers import Found, Picked
from whet.serve.catalogue import View
from whet.space.documents import Document
from whet.space.retrieve import NothingNear
from whet.spaces import Options, retrieve


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a document is learned from."""

    tokens: int
    bytes: int

    def bits_per_byte(self, loss: float) -> float:
        """The same as `loss` nats per token."""
        return loss * self.tokens / (math.log(2) * max(1, self.bytes))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The documents of a request's steps, in order."""

    documents: tuple[Document, ...]
    rows: tuple[int, ...]
    sigma: tuple[float, ...]
    """One more than documents."""
    reason: str
    """Why there are no more: n, alpha, or nothing_near."""
    seconds: float

    def first(self, n: int) -> "Choice":
        """The first `n` of them."""
        return replace(
            self, documents=self.documents[:n], rows=self.rows[:n], sigma=self.sigma[: n + 1]
        )

    def picked(self, texts: bool) -> list[Picked]:
        """Each document once, in the order first picked."""
        found: dict[str, Picked] = {}
        for document, sigma in zip(self.documents, self.sigma[1:], strict=True):
            known = found.get(document.id)
            if known is None:
                text = document.text if texts else None
                found[document.id] = Picked(id=document.id, count=1, sigma=sigma, text=text)
            else:
                found[document.id] = known.model_copy(update={"count": known.count + 1})
        return list(found.values())


def fitted(options: Options, view: View) -> Options:
    """`options` with no more candidates than there are."""
    return replace(options, k=min(options.k, len(view.space)))


def choose(view: View, query: str, options: Options) -> Choice:
    """The documents for `query`; none if it shares nothing with the data space."""
    try:
        found = retrieve(view.space, query, fitted(options, view))
    except NothingNear:
        return Choice((), (), (1.0,), "nothing_near", 0.0)
    return Choice(
        found.documents,
        tuple(found.rows.tolist()),
        tuple(found.selection.sigma.tolist()),
        "n" if len(found) == options.n else "alpha",
        sum(found.seconds.values()),
    )


def sizes(model: LanguageModel, documents: Sequence[Document]) -> dict[str, Size]:
    """What is learned from each document: as many of its first tokens as the context holds."""
    measured = {}
    for document in documents:
        if document.id not in measured:
            tokens = model.tokens(document.text)
            text = document.text
            if len(tokens) > model.context:
                tokens = tokens[: model.context]
                text = str(model.tokenizer.decode(tokens))
            measured[document.id] = Size(len(tokens), len(text.encode()))
    return measured


def selected(
    view: View, query: str, options: Options, texts: bool
) -> tuple[list[Found], list[float]]:
    """Every pick in order, and σ before the first and after each."""
    try:
        found = retrieve(view.space, query, fitted(options, view))
    except NothingNear:
        return [], [1.0]
    sigma = found.selection.sigma.tolist()
    picks = zip(found.documents, sigma[1:], found.selection.gains.tolist(), strict=True)
    return [_found(view, d, texts, sigma=s, gain=g) for d, s, g in picks], sigma


def nearest(view: View, query: str, k: int, texts: bool) -> list[Found]:
    """The documents nearest `query`, of either sign, the nearest first."""
    encoded = view.space.embedder.encode([query])
    if not encoded.any():
        return []
    [near] = view.space.search(encoded, min(k, len(view.space)))
    pairs = zip(view.space.documents(near.rows), near.scores.tolist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: -abs(pair[1]))
    return [_found(view, document, texts, score=score) for document, score in ranked]


def _found(view: View, document: Document, texts: bool, **numbers: float) -> Found:
    text = document.text if texts else None
    return Found(id=document.id, label=view.label(document), text=text, **numbers)
