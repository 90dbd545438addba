"""From a prompt to the documents to train on: search for candidates, then select among them.

Source: SIFT, arXiv 2410.08020, Algorithm 1 on the k nearest neighbors of Section 4.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.data.documents import Document
from whet.embed.embedder import encode_queries
from whet.errors import NoMatchError
from whet.maths.arrays import Array, as_count
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.select.explain import Explanation, explain
from whet.select.registry import selector as selector_of
from whet.select.selection import Selection, Selector
from whet.select.selectors.baselines import nearest, nearest_product, nearest_repeated
from whet.space.context import Context, context
from whet.space.passages import find_copy
from whet.space.space import DataSpace
from whet.space.store.protocol import Metric, Neighbors
from whet.space.store.segments.vectors import cosines, normalize_queries

RESERVE = 4  # picks per step of which some may be skipped
NEAREST: tuple[Selector, ...] = (nearest, nearest_product, nearest_repeated)  # by signed cosine


def check_space(space: Any) -> None:
    """Raises ValueError unless `space` is an opened data space, rather than a path, say."""
    if not isinstance(space, DataSpace):
        shown = repr(str(space) if isinstance(space, Path) else space)
        advice = f", as `whet.DataSpace.open({shown})`" if isinstance(space, str | Path) else ""
        raise ValueError(f"space is {shown}: expected a DataSpace{advice}")


def resolve_lam(space: DataSpace, config: SelectionConfig) -> ResolvedSelection:
    """`config` with the data space's own λ' in place of `embedder`; takes no time.

    Raises:
        ValueError: If `lam` or `stop_alpha` is `auto`: see `whet.space.tuning.resolve`.
    """
    return ResolvedSelection.of(
        config, embedder_lam=space.kernel.lam if config.lam == "embedder" else None
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Retrieval:
    """The documents selected for a prompt. Notebooks show it as a table."""

    documents: tuple[Document, ...]
    """In the order selected; a document that is selected twice occurs twice."""
    rows: Int[Array, " n"]
    """Rows of the documents in the data space."""
    selection: Selection
    """Indices among the candidates, with gains and variances."""
    candidates: Neighbors
    """What the documents were selected from."""
    query: Float[Array, " d"]
    """Embedding of the prompt."""
    seconds: dict[str, float]
    """Wall time of the stages `embed`, `search` and `select`."""
    copy: Mapping[int, Document] = field(default_factory=dict)
    """Passages, by row, of a document that repeats the prompt, which are trained on instead: see
    `whet.space.passages.find_copy`."""

    reserve: tuple[tuple[int, Document], ...] = ()
    """Rows and documents of further picks of a selector that repeats itself, for steps on repeats
    that are skipped."""

    def training_texts(self) -> list[tuple[int, Document]]:
        """Rows and documents to train on, in order, of which as many are to be taken as were
        selected: the passages of the copy in turn, otherwise the picks, then the reserve."""
        if self.copy:
            return list(islice(cycle(self.copy.items()), len(self.documents)))
        return [*zip(self.rows.tolist(), self.documents, strict=True), *self.reserve]

    def training_documents(self) -> list[Document]:
        """The documents of `training_texts`."""
        return [document for _, document in self.training_texts()]

    def stop_at(self, alpha: float) -> "Retrieval":
        """Only the picks that adaptive stopping with `alpha` keeps: see `Selection.stop_at`."""
        selection = self.selection.stop_at(alpha)
        n = len(selection)
        return replace(self, documents=self.documents[:n], rows=self.rows[:n], selection=selection)

    def explain(self) -> Explanation:
        """What each pick contributed, and which earlier pick it is most similar to."""
        names = [""] * len(self.candidates.rows)
        for index, document in zip(self.selection.indices, self.documents, strict=True):
            names[index] = f"{document.id} {document.text}"
        explanation = explain(self.selection, self.query, self.candidates.vectors, names=names)
        picks = zip(explanation.picks, self.rows.tolist(), strict=True)
        return replace(explanation, picks=tuple(replace(pick, row=row) for pick, row in picks))

    def to_context(
        self,
        budget: int,
        *,
        count_tokens: Callable[[str], int] | None = None,
        separator: str = "\n\n",
    ) -> Context:
        """Join the texts that fit `budget`, to put them before a question: see `space.context`.

        The budget is in characters, or in tokens with `count_tokens`. The text is empty if no
        document fits.
        """
        return context(
            [document.text for document in self.documents],
            self.rows,
            budget=budget,
            gains=self.selection.gains,
            count_tokens=count_tokens,
            separator=separator,
        )

    def _repr_html_(self) -> str:
        return self.explain()._repr_html_()

    def __repr__(self) -> str:
        ids = [repr(name) for name in dict.fromkeys(d.id for d in self.documents)]
        shown = ", ".join([*ids[:3], *["…"] * (len(ids) > 3)]) or "nothing"
        counts = f"{len(self)} of {len(self.candidates.rows)} candidates"
        return f"Retrieval({counts}: {shown}; σ {self.selection.sigma[-1]:.3f})"

    def __len__(self) -> int:
        return len(self.documents)


class Retriever:
    """Selects documents of a data space for a prompt; replaces nearest-neighbor retrieval.

    >>> texts = ["bees dance", "bees sting", "ants walk"]
    >>> space = DataSpace.build(texts, "insects.whet")
    >>> retriever = Retriever(space, SelectionConfig(n=1))
    >>> [document.text for document in retriever.select("why do bees dance?").documents]
    ['bees dance']
    """

    def __init__(
        self,
        space: DataSpace,
        config: SelectionConfig | ResolvedSelection | None = None,
        *,
        selector: Selector | None = None,
    ) -> None:
        """Check the configuration against the data space.

        Args:
            space: Where to retrieve from.
            config: How to select. `lam` and `stop_alpha` must not be `auto`: then call
                `whet.space.tuning.resolve` first.
            selector: A function that selects, instead of the one that `config` names.

        Raises:
            ValueError: If fewer than `k` documents pass the filter, the filter has a field that no
                document has, a value is `auto`, or `space` is not a data space.
        """
        check_space(space)
        if not isinstance(config, ResolvedSelection):
            config = resolve_lam(space, config or SelectionConfig())
        self.space, self.config = space, config
        self.selector = selector_of(config.selector) if selector is None else selector
        self.k = space.resolve_k(config.k, config.where)
        self.metric: Metric = "cosine" if self.selector in NEAREST else "abs_cosine"
        if config.metric != "auto":
            self.metric = config.metric

    def select(self, prompt: str, n: int | None = None, *, for_training: bool = False) -> Retrieval:
        """Select documents for `prompt`; a document can be selected several times.

        With `stop_alpha`, the result ends where adaptive stopping does.

        Args:
            prompt: The text to select documents for.
            n: Number of picks; by default that of the configuration.
            for_training: Also look for a copy of the prompt, and make further picks as a reserve.

        Returns:
            The documents in order, with the selection and the candidates.

        Raises:
            NoMatchError: If the prompt is blank or has nothing in common with the data space.
            ValueError: If `n` < 1, or the prompt is not a string.
        """
        n = as_count(self.config.n if n is None else n, "n")
        start = time.perf_counter()
        query = self._embed(prompt)
        embedded = time.perf_counter()
        candidates = self._candidates(prompt, query)
        searched = time.perf_counter()
        selection = self.selector(query[0], candidates.vectors, n, lam=self.config.lam)
        seconds = {
            "embed": embedded - start,
            "search": searched - embedded,
            "select": time.perf_counter() - searched,
        }
        rows = candidates.rows[selection.indices]
        distinct, places = np.unique(rows, return_inverse=True)
        stored = self.space.documents(distinct)
        documents = tuple(stored[i] for i in places)
        retrieval = Retrieval(documents, rows, selection, candidates, query[0], seconds)
        if for_training:
            retrieval = self._for_training(prompt, retrieval)
        alpha = self.config.stop_alpha
        return retrieval if alpha is None else retrieval.stop_at(alpha)

    def search(self, prompt: str) -> Neighbors:
        """The candidates for `prompt` by ascending row, from which `select` picks.

        At most `k`; up to twice as many with the hybrid retriever, fewer with `bm25` if fewer
        documents share a word with the prompt.

        Raises:
            NoMatchError: If the prompt is blank or has nothing in common with the data space.
            ValueError: If the prompt is not a string.
        """
        return self._candidates(prompt, self._embed(prompt))

    def _for_training(self, prompt: str, retrieval: Retrieval) -> Retrieval:
        """Add the passages of a copy; without one, the reserve of a selector that repeats itself."""
        start, config, n = time.perf_counter(), self.config, len(retrieval)
        candidates, copy, reserve = retrieval.candidates, dict[int, Document](), list[int]()
        if config.copy_overlap:
            copy = find_copy(self.space, prompt, candidates.rows, config.copy_overlap, config.where)
        if not copy and len(retrieval.selection.counts()) < n and config.stop_alpha is None:
            further = self.selector(
                retrieval.query, candidates.vectors, RESERVE * n, lam=config.lam
            )
            reserve = candidates.rows[further.indices[n:]].tolist()
        select = retrieval.seconds["select"] + time.perf_counter() - start
        return replace(
            retrieval,
            copy=copy,
            reserve=tuple(zip(reserve, self.space.documents(reserve), strict=True)),
            seconds=retrieval.seconds | {"select": select},
        )

    def _embed(self, prompt: str) -> Float[Array, "1 d"]:
        if not isinstance(prompt, str):
            raise ValueError(f"prompt is {prompt!r}: expected one text")
        if not prompt.strip():
            raise NoMatchError(f"prompt is {prompt!r}: expected a text")
        query = encode_queries(self.space.embedder, [prompt])
        if not query.any():
            raise NoMatchError(
                "prompt shares no term with the data space according to "
                f"{self.space.embedder.name}: no document is near it; use other words, or a data space "
                "with another embedder"
            )
        return query

    def _candidates(self, prompt: str, query: Float[Array, "1 d"]) -> Neighbors:
        where = self.config.where
        if self.config.retriever == "bm25":
            rows = self.space.bm25_search(prompt, self.k, where)
            if not len(rows):
                raise NoMatchError("prompt shares no word with the data space: bm25 finds nothing")
            return self._score(query, rows)
        [neighbors] = self.space.search(query, self.k, metric=self.metric, where=where)
        if self.config.retriever == "dense":
            return neighbors
        rows = self.space.bm25_search(prompt, self.k, where)
        return self._score(query, np.union1d(neighbors.rows, rows))

    def _score(self, query: Float[Array, "1 d"], rows: Int[Array, " n"]) -> Neighbors:
        """Vectors of `rows` (ascending) and their cosines with `query`."""
        vectors = self.space.vectors(rows)
        [unit_query] = normalize_queries(query, self.space.dimension)
        return Neighbors(rows, vectors, cosines(unit_query, vectors))


def retrieve(
    space: DataSpace,
    prompt: str,
    config: SelectionConfig | ResolvedSelection | None = None,
    *,
    for_training: bool = False,
) -> Retrieval:
    """Select documents of `space` for one prompt; for several, keep a `Retriever`.

    Raises:
        NoMatchError: If the prompt is blank or has nothing in common with the data space.
        ValueError: As `Retriever`.
    """
    return Retriever(space, config).select(prompt, for_training=for_training)
