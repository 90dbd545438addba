"""What the retrievers of other libraries share: the selected documents, each once, with scores."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from whet.config import unknown_name
from whet.data.documents import Document
from whet.errors import NoMatchError
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

N = 5  # documents, where the caller sets no number


@dataclass(frozen=True, slots=True)
class Ranked:
    """A selected document."""

    document: Document
    score: float
    """Its similarity to the query."""
    gain: float
    """How much it reduced the variance about the query when it was first selected."""
    count: int
    """How often it was selected: a document that is worth several gradient steps."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The document's metadata, with `score`, `gain` and `count`."""
        own = {"score": self.score, "gain": self.gain, "count": self.count}
        return self.document.meta | own


class DocumentRetriever:
    """Selects documents of a data space for queries."""

    def __init__(self, space: DataSpace | str | Path, **options: Any) -> None:
        """Open the data space.

        Args:
            space: A data space, or its path.
            options: Fields of `whet.SelectionConfig`; `n` is 5 by default.

        Raises:
            SpaceError: If the data space cannot be opened.
            TypeError: If an option is unknown.
            ValueError: If an option is invalid.
        """
        self.space = space if isinstance(space, DataSpace) else DataSpace.open(space)
        self.config = SelectionConfig(**({"n": N} | _checked(options)))
        self._retriever = Retriever(self.space, self.config)

    def select(self, query: str, **options: Any) -> list[Ranked]:
        """The selected documents in order; none if the query has nothing in common with any.

        Args:
            query: A question or another text.
            options: Fields of `whet.SelectionConfig` that are replaced for this query; None leaves
                one as it is.

        Raises:
            TypeError: If an option is unknown.
            ValueError: If an option is invalid.
        """
        retriever = self._retriever
        changed = {name: value for name, value in _checked(options).items() if value is not None}
        if changed:
            retriever = Retriever(self.space, replace(self.config, **changed))
        try:
            retrieval = retriever.select(query)
        except NoMatchError:
            return []
        ranked: dict[int, Ranked] = {}
        picks = zip(
            retrieval.rows.tolist(),
            retrieval.documents,
            retrieval.candidates.scores[retrieval.selection.indices].tolist(),
            retrieval.selection.gains.tolist(),
            strict=True,
        )
        for row, document, score, gain in picks:
            if row in ranked:
                ranked[row] = replace(ranked[row], count=ranked[row].count + 1)
            else:
                ranked[row] = Ranked(document, score, gain, 1)
        return list(ranked.values())


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(SelectionConfig)]
    for name in options.keys() - set(names):
        raise TypeError(unknown_name(name, names))
    return options
