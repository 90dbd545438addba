"""From a prompt to the texts that a request is sharpened on, as one key sees them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.data.filters import as_filter
from whet.errors import NoMatchError
from whet.select.config import SelectionConfig
from whet.serve.answers import Found, Picked
from whet.serve.space_registry import View
from whet.space.retrieve import Retrieval, Retriever, retrieve
from whet.space.space import DEFAULT_K, DataSpace


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


def choose(view: View, query: str, options: SelectionConfig) -> Choice:
    """The documents for `query`; none if it shares nothing with the data space."""
    found = _retrieved(view, query, options)
    if found is None:
        return Choice((), (), (1.0,), "nothing_near", 0.0)
    return Choice(
        found.documents,
        tuple(found.rows.tolist()),
        tuple(found.selection.sigma.tolist()),
        "n" if len(found) == options.n else "alpha",
        sum(found.seconds.values()),
    )


def tried(view: View) -> Choice:
    """Two documents for the first one: what is compiled or read on first use is so afterwards."""
    first = view.space.texts(view.space.rows[:1].tolist())
    return choose(view, first[0][:200] if first else "", SelectionConfig(n=2))


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
    view: View, query: str, options: SelectionConfig, texts: bool
) -> tuple[list[Found], list[float]]:
    """Every pick in order, and σ before the first and after each."""
    found = _retrieved(view, query, options)
    if found is None:
        return [], [1.0]
    sigma = found.selection.sigma.tolist()
    picks = zip(found.documents, sigma[1:], found.selection.gains.tolist(), strict=True)
    return [_found(view, d, texts, sigma=s, gain=g) for d, s, g in picks], sigma


def nearest(view: View, query: str, options: SelectionConfig, texts: bool) -> list[Found]:
    """The candidates for `query`, those of the largest cosine first, whatever its sign."""
    space, options = _bounded(view, options)
    if not len(space):
        return []
    try:
        near = Retriever(space, options).search(query)
    except NoMatchError:
        return []
    pairs = zip(space.documents(near.rows), near.scores.tolist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: -abs(pair[1]))
    return [_found(view, document, texts, score=score) for document, score in ranked]


def _retrieved(view: View, query: str, options: SelectionConfig) -> Retrieval | None:
    """None if nothing of the data space is near `query`."""
    space, options = _bounded(view, options)
    if not len(space):
        return None
    try:
        return retrieve(space, query, options)
    except NoMatchError:
        return None


def _bounded(view: View, options: SelectionConfig) -> tuple[DataSpace, SelectionConfig]:
    """What passes the filter, and options of no more candidates than that.

    Opened anew for each request: a data space remembers the words of every filter it is asked with.

    Raises:
        ValueError: If the filter has a field that no document of the view has.
    """
    where, space = as_filter(options.where), view.space
    if where is not None and len(space):
        space = space.filter(where)
    k = max(1, min(options.k or DEFAULT_K, len(space)))
    return space, replace(options, where=None, k=k)


def _found(view: View, document: Document, texts: bool, **numbers: float) -> Found:
    return Found(
        id=document.id,
        label=view.label(document),
        text=document.text if texts else None,
        meta=json.loads(json.dumps(document.meta), parse_constant=lambda _: None),  # NaN is no JSON
        **numbers,
    )
