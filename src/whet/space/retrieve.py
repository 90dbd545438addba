"""From a prompt to the documents to learn from: search, then a selector.

Source: SIFT, arXiv 2410.08020, Algorithm 1 over the k nearest of Section 4.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.data.documents import Document
from whet.errors import NoMatchError
from whet.maths.arrays import Array, as_count
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.select.explain import Explanation, explain
from whet.select.registry import selector as selector_of
from whet.select.selection import Selection, Selector
from whet.select.selectors.baselines import nearest, nearest_repeated
from whet.space.context import Context, context
from whet.space.space import DataSpace
from whet.space.store.protocol import Metric, Neighbors

NEAREST: tuple[Selector, ...] = (nearest, nearest_repeated)  # an opposite text is far to them


def check_space(space: Any) -> None:
    """Raises ValueError if `space` is no opened data space, but a path, say."""
    if not isinstance(space, DataSpace):
        shown = repr(str(space) if isinstance(space, Path) else space)
        how = f", as `whet.open_space({shown})` gives" if isinstance(space, str | Path) else ""
        raise ValueError(f"space is {shown}: expected a DataSpace{how}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Retrieval:
    """The documents chosen for a prompt; shows as a table in a notebook."""

    documents: tuple[Document, ...]
    """In the order chosen, a repeated one again."""
    rows: Int[Array, " n"]
    """Their rows in the data space."""
    selection: Selection
    """The choice among the candidates."""
    candidates: Neighbors
    query: Float[Array, " d"]
    """The prompt's embedding."""
    seconds: dict[str, float]
    """Wall time of embed, search and select."""

    def stop_at(self, alpha: float) -> "Retrieval":
        """The picks that adaptive stopping keeps: see `Selection.stop_at`."""
        selection = self.selection.stop_at(alpha)
        n = len(selection)
        return replace(self, documents=self.documents[:n], rows=self.rows[:n], selection=selection)

    def explain(self) -> Explanation:
        """For each pick what it told, its row here, and which earlier pick it is most like."""
        names = [""] * len(self.candidates.rows)
        for place, document in zip(self.selection.indices, self.documents, strict=True):
            names[place] = f"{document.id} {document.text}"
        told = explain(self.selection, self.query, self.candidates.vectors, names=names)
        picks = zip(told.picks, self.rows.tolist(), strict=True)
        return replace(told, picks=tuple(replace(pick, row=row) for pick, row in picks))

    def to_context(
        self,
        budget: int,
        *,
        count_tokens: Callable[[str], int] | None = None,
        separator: str = "\n\n",
    ) -> Context:
        """The texts that fit `budget` to put in front of a question: see `space.context`.

        The budget is in characters, or in tokens with `count_tokens`, and so is `Context.tokens`.
        The text is empty if no text fits.
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
        names = [repr(name) for name in dict.fromkeys(d.id for d in self.documents)]
        shown = ", ".join([*names[:3], *["…"] * (len(names) > 3)]) or "nothing"
        told = f"{len(self)} of {len(self.candidates.rows)} candidates: {shown}"
        return f"Retrieval({told}; σ {self.selection.sigma[-1]:.3f})"

    def __len__(self) -> int:
        return len(self.documents)


class Retriever:
    """A data space and a selector: the drop-in for nearest-neighbor retrieval."""

    def __init__(
        self,
        space: DataSpace,
        config: SelectionConfig | ResolvedSelection | None = None,
        *,
        selector: Selector | None = None,
    ) -> None:
        """Checks the configuration against the data space.

        Args:
            space: Where to retrieve from.
            config: How to select; `lam` and `stop_alpha` must be numbers, not `auto`.
            selector: A function to select with, in place of the one that `config` names.

        Raises:
            ValueError: If fewer than `k` documents pass the filter, `space` is not a data space,
                or the filter has a field that no document has.
        """
        check_space(space)
        if not isinstance(config, ResolvedSelection):
            config = ResolvedSelection.of(config or SelectionConfig())
        self.space, self.config = space, config
        self.selector = selector_of(config.selector) if selector is None else selector
        self.k = space.resolve_k(config.k, config.where)
        near: Metric = "cosine" if self.selector in NEAREST else "abs_cosine"
        signs: dict[str, Metric] = {"auto": near, "abs_cosine": "abs_cosine", "cosine": "cosine"}
        self.metric = signs[config.metric]

    def select(self, prompt: str, n: int | None = None) -> Retrieval:
        """Select documents for `prompt`, repeats included: `n`, by default as configured.

        With `stop_alpha`, only the picks that adaptive stopping keeps.

        Raises:
            ValueError: If `n` < 1, or the prompt is blank or shares nothing with the data space.
        """
        n = self.config.n if n is None else n
        as_count(n, "n")
        if not isinstance(prompt, str):
            raise ValueError(f"prompt is {prompt!r}: expected one text")
        if not prompt.strip():
            raise NoMatchError(f"prompt is {prompt!r}: expected a text")
        start = time.perf_counter()
        query = self.space.embedder.encode([prompt])
        embedded = time.perf_counter()
        if not query.any():
            raise NoMatchError(
                f"prompt shares no term with the data space, as {self.space.embedder.name} sees "
                "them: there is nothing near it"
            )
        candidates = self._candidates(prompt, query)
        searched = time.perf_counter()
        selection = self.selector(query[0], candidates.vectors, n, lam=self.config.lam)
        seconds = {
            "embed": embedded - start,
            "search": searched - embedded,
            "select": time.perf_counter() - searched,
        }
        rows = candidates.rows[selection.indices]
        distinct, place = np.unique(rows, return_inverse=True)
        known = self.space.documents(distinct)
        documents = tuple(known[i] for i in place)
        found = Retrieval(documents, rows, selection, candidates, query[0], seconds)
        alpha = self.config.stop_alpha
        return found if alpha is None else found.stop_at(alpha)

    def _candidates(self, prompt: str, query: Float[Array, "1 d"]) -> Neighbors:
        if self.config.retriever == "bm25":
            rows = self.space.bm25_search(prompt, self.k, self.config.where)
            if not len(rows):
                raise NoMatchError("prompt shares no word with the data space: bm25 finds nothing")
            return self.space.score_rows(query, rows)
        [near] = self.space.search(query, self.k, metric=self.metric, where=self.config.where)
        if self.config.retriever == "dense":
            return near
        rows = self.space.bm25_search(prompt, self.k, self.config.where)
        return self.space.score_rows(query, np.union1d(near.rows, rows))
