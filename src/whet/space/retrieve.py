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
from whet.data.filters import Filter, as_filter
from whet.maths.arrays import Array, as_count, as_positive
from whet.select.explain import Explanation, explain
from whet.select.registry import selector as selector_of
from whet.select.selection import Selection, Selector
from whet.select.selectors.baselines import nearest, nearest_repeated
from whet.select.sift import sift
from whet.space.context import Context, context
from whet.space.space import DataSpace
from whet.space.store.protocol import Neighbors, Sign

CANDIDATES = ("vectors", "bm25", "hybrid")
NEAREST: tuple[Selector, ...] = (nearest, nearest_repeated)  # an opposite text is far to them


def check_candidates(name: str) -> None:
    """Raises ValueError if nothing nominates candidates by that name."""
    if name not in CANDIDATES:
        raise ValueError(f"candidates is {name!r}: expected vectors, bm25 or hybrid")


def check_space(space: Any) -> None:
    """Raises ValueError if `space` is no opened data space, but a path, say."""
    if not isinstance(space, DataSpace):
        shown = repr(str(space) if isinstance(space, Path) else space)
        how = f", as `whet.open_space({shown})` gives" if isinstance(space, str | Path) else ""
        raise ValueError(f"space is {shown}: expected a DataSpace{how}")


class NoMatchError(ValueError):
    """A prompt is blank, or shares nothing with the data space."""


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
        """The picks that adaptive stopping keeps: see `Selection.until`."""
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

    def to_prompt(
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
    """A data space and a selector: the drop-in for nearest-neighbour retrieval."""

    def __init__(
        self,
        space: DataSpace,
        *,
        selector: Selector | str = sift,
        k: int | None = None,
        lam: float = 0.01,
        sign: Sign | None = None,
        where: Filter | str | None = None,
        candidates: str = "vectors",
    ) -> None:
        """See `select`.

        Args:
            space: Where to look.
            selector: Orders the candidates; or its name in `whet.select.registry`.
            k: Number of candidates; without, 200 or all documents that pass.
            lam: λ' of the paper, for the selector.
            sign: Candidates by |cosine| (`both`) or by cosine (`positive`); None means `positive`
                for `nearest` and `nearest_repeated`, else `both`.
            where: What a document must pass to be a candidate: a filter, or a text as `--where`.
            candidates: The k nearest by `vectors`, the k best by their words (`bm25`), or the union
                of both (`hybrid`): see `DataSpace.by_words`. The selector sees their vectors
                whoever nominates them.

        Raises:
            ValueError: If a number is out of range, fewer than `k` documents pass, `space`,
                `selector` or `candidates` is none, or the filter has a field of no document.
        """
        check_candidates(candidates)
        check_space(space)
        self.nominated_by = candidates
        self.space, self.where = space, as_filter(where)
        self.selector = selector_of(selector) if isinstance(selector, str) else selector
        self.k, self.lam = space.holds(k, self.where), as_positive(lam, "lam")
        self.sign: Sign = sign or ("positive" if self.selector in NEAREST else "both")

    def select(self, prompt: str, n: int) -> Retrieval:
        """Choose `n` documents for `prompt`, repeats included.

        Raises:
            ValueError: If `n` < 1, or the prompt is blank or shares nothing with the data space.
        """
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
        selection = self.selector(query[0], candidates.vectors, n, lam=self.lam)
        seconds = {
            "embed": embedded - start,
            "search": searched - embedded,
            "select": time.perf_counter() - searched,
        }
        rows = candidates.rows[selection.indices]
        distinct, place = np.unique(rows, return_inverse=True)
        known = self.space.documents(distinct)
        documents = tuple(known[i] for i in place)
        return Retrieval(documents, rows, selection, candidates, query[0], seconds)

    def _candidates(self, prompt: str, query: Float[Array, "1 d"]) -> Neighbors:
        if self.nominated_by == "bm25":
            rows = self.space.by_words(prompt, self.k, self.where)
            if not len(rows):
                raise NoMatchError("prompt shares no word with the data space: bm25 finds nothing")
            return self.space.measured(query, rows)
        [near] = self.space.search(query, self.k, sign=self.sign, where=self.where)
        if self.nominated_by == "vectors":
            return near
        rows = self.space.by_words(prompt, self.k, self.where)
        return self.space.measured(query, np.union1d(near.rows, rows))
