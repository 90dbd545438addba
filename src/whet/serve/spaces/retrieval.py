"""Selection and search in the part of a data space that a key may read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.data.filters import as_filter
from whet.engine import Engine, Request
from whet.errors import NoMatchError
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.serve.schemas.adapt import SelectedText
from whet.serve.schemas.spaces import DocumentHit
from whet.serve.spaces.registry import SpaceView
from whet.space.retrieve import Retrieval, Retriever
from whet.space.space import DEFAULT_K, DataSpace


@dataclass(frozen=True, slots=True)
class TextSize:
    """How much of a document a step trains on."""

    tokens: int
    bytes: int

    def bits_per_byte(self, loss: float) -> float:
        """Convert `loss`, in nats per token."""
        return loss * self.tokens / (math.log(2) * max(1, self.bytes))


def select(
    engine: Engine, view: SpaceView, query: str, config: SelectionConfig
) -> Retrieval | None:
    """Select documents for `query`; None if no document is near it or passes the filter.

    `engine` selects as it does for all its requests, but in the data space of `view`.

    Raises:
        ValueError: If the filter is invalid, or `auto` cannot be resolved on so few documents.
    """
    space = _filtered(view, config)
    if space is None:
        return None
    request = Request(query, space=space, selection=_resolved(view, space, config))
    try:
        return engine.retrieve(request)
    except NoMatchError:
        return None


def select_hits(
    engine: Engine, view: SpaceView, query: str, config: SelectionConfig, *, texts: bool
) -> tuple[list[DocumentHit], list[float]]:
    """Every pick in order, and σ before the first pick and after each. Raises as `select`."""
    retrieval = select(engine, view, query, config)
    if retrieval is None:
        return [], [1.0]
    sigma = retrieval.selection.sigma.tolist()
    picks = zip(retrieval.documents, sigma[1:], retrieval.selection.gains.tolist(), strict=True)
    return [_hit(view, d, texts, sigma=s, gain=g) for d, s, g in picks], sigma


def search(
    view: SpaceView, query: str, config: SelectionConfig, *, texts: bool
) -> list[DocumentHit]:
    """The candidates for `query`, by descending absolute cosine similarity. Raises as `select`."""
    space = _filtered(view, config)
    if space is None:
        return []
    try:
        neighbors = Retriever(space, _resolved(view, space, config)).search(query)
    except NoMatchError:
        return []
    pairs = zip(space.documents(neighbors.rows), neighbors.scores.tolist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: -abs(pair[1]))
    return [_hit(view, document, texts, score=score) for document, score in ranked]


def warm_up(engine: Engine, space: DataSpace) -> Retrieval | None:
    """Select two documents for a text of `space`: compiles and reads what the first use needs."""
    texts = space.texts(space.rows[:1].tolist())
    query = texts[0][:200] if texts else ""
    return select(engine, SpaceView("", space), query, SelectionConfig(n=2))


def selected_texts(retrieval: Retrieval, n: int, *, texts: bool) -> list[SelectedText]:
    """Each document of the first `n` steps once, in the order of its first step.

    σ of a copy's passages, which no selector picked, is that before the first pick.
    """
    selected: dict[str, SelectedText] = {}
    sigmas = retrieval.selection.sigma[1:].tolist()
    if retrieval.copy:
        sigmas = [float(retrieval.selection.sigma[0])] * len(sigmas)
    for document, sigma in zip(retrieval.training_documents()[:n], sigmas, strict=False):
        if (earlier := selected.get(document.id)) is not None:
            earlier.count += 1
            continue
        text = document.text if texts else None
        selected[document.id] = SelectedText(id=document.id, count=1, sigma=sigma, text=text)
    return list(selected.values())


def text_sizes(model: LanguageModel, documents: Sequence[Document]) -> dict[str, TextSize]:
    """By document id: the size of the first tokens that fit the model's context."""
    sizes = {}
    for document in documents:
        if document.id not in sizes:
            tokens = model.encode(document.text)
            text = document.text
            if len(tokens) > model.max_length:
                tokens = tokens[: model.max_length]
                text = str(model.tokenizer.decode(tokens))
            sizes[document.id] = TextSize(len(tokens), len(text.encode()))
    return sizes


def _filtered(view: SpaceView, config: SelectionConfig) -> DataSpace | None:
    """The documents that pass the filter; None if there are none.

    The filter is applied anew for each request, because a data space remembers the words of every
    filter that it is searched with.
    """
    where, space = as_filter(config.where), view.space
    if where is not None and len(space):
        space = space.filter(where)
    return space if len(space) else None


def _resolved(view: SpaceView, space: DataSpace, config: SelectionConfig) -> ResolvedSelection:
    """The selection among `space`, which is filtered already."""
    k = min(config.k or DEFAULT_K, len(space))
    return replace(view.resolve(config), where=None, k=k)


def _hit(view: SpaceView, document: Document, texts: bool, **numbers: float) -> DocumentHit:
    return DocumentHit(
        id=document.id,
        label=view.label(document),
        text=document.text if texts else None,
        # NaN is not valid JSON
        meta=json.loads(json.dumps(document.meta), parse_constant=lambda _: None),
        **numbers,
    )
