"""A retriever of LlamaIndex: `pip install llama-index-core`.

from whet.integrations.llama_index import WhetRetriever

retriever = WhetRetriever("docs.whet", n=5, where='lang == "en"')
retriever.retrieve("How do bees find flowers?")
"""

import asyncio
from pathlib import Path
from typing import Any

from whet.errors import require
from whet.integrations.retrieval import DocumentRetriever
from whet.space.space import DataSpace

require("llama_index.core", "llama-index")

from llama_index.core.retrievers import BaseRetriever  # noqa: E402
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode  # noqa: E402


class WhetRetriever(BaseRetriever):
    """Documents that SIFT, or another selector of whet, selects for a query, as nodes with scores.

    A score is the similarity to the query; the metadata has `score`, `gain` and `count` too.
    """

    def __init__(self, space: DataSpace | str | Path, **options: Any) -> None:
        """Open the data space.

        Args:
            space: A data space, or its path.
            options: Fields of `whet.SelectionConfig`, such as `n`, `selector`, `lam`, `where`.

        Raises:
            SpaceError: If the data space cannot be opened.
            TypeError: If an option is unknown.
            ValueError: If an option is invalid.
        """
        self._documents = DocumentRetriever(space, **options)
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=ranked.document.id, text=ranked.document.text, metadata=ranked.metadata
                ),
                score=ranked.score,
            )
            for ranked in self._documents.select(query_bundle.query_str)
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
