"""A retriever of LangChain: `pip install langchain-core`.

from whet.integrations.langchain import WhetRetriever

retriever = WhetRetriever.of("docs.whet", n=5, where='lang == "en"')
retriever.invoke("How do bees find flowers?")
"""

from pathlib import Path
from typing import Any

from whet.errors import require
from whet.integrations.retrieval import DocumentRetriever
from whet.space.space import DataSpace

require("langchain_core", "langchain")

from langchain_core.callbacks import CallbackManagerForRetrieverRun  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.retrievers import BaseRetriever  # noqa: E402


class WhetRetriever(BaseRetriever):
    """Documents that SIFT, or another selector of whet, selects for a query.

    Each document has its id and its metadata, with `score` (similarity to the query), `gain` and
    `count`. `invoke`, `ainvoke` and `batch` accept the options of `of` for that query, such as `where`
    and `n`.
    """

    documents: Any
    """The `DocumentRetriever` of the data space."""

    @classmethod
    def of(cls, space: DataSpace | str | Path, **options: Any) -> "WhetRetriever":
        """A retriever of a data space, or of the one at a path.

        Args:
            space: A data space, or its path.
            options: Fields of `whet.SelectionConfig`, such as `n`, `selector`, `lam`, `where`.

        Raises:
            SpaceError: If the data space cannot be opened.
            TypeError: If an option is unknown.
            ValueError: If an option is invalid.
        """
        return cls(documents=DocumentRetriever(space, **options))

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return [
            Document(
                id=ranked.document.id, page_content=ranked.document.text, metadata=ranked.metadata
            )
            for ranked in self.documents.select(query, **options)
        ]
