"""Documents by the words they share with a prompt: BM25.

Source: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond",
Section 3.2, with Lucene's idf, which is never negative.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from whet.embed.lsa import TERM
from whet.maths.arrays import Array, as_count

K1 = 1.5  # how soon another occurrence of a word tells nothing new
B = 0.75  # how much a long text's words count less


class BM25:
    """An index of the words of texts, in memory.

    Made of 5,000 texts of 3 kB in about 5 seconds; it holds 12 bytes for every different word of
    every text.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Read every text whole; texts without a word are found by nothing.

        Raises:
            ValueError: If no text holds a word.
        """
        from scipy.sparse import diags_array
        from sklearn.feature_extraction.text import CountVectorizer

        self._counter = CountVectorizer(token_pattern=TERM, dtype=np.float32)
        try:
            counts = self._counter.fit_transform(texts)
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise ValueError("no text holds a word: nothing to index") from error
        texts_with = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((counts.shape[0] - texts_with + 0.5) / (texts_with + 0.5))
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        penalty = K1 * (1 - B + B * lengths / lengths.mean())
        counts.data /= counts.data + np.repeat(penalty, np.diff(counts.indptr))
        self._weights = (counts @ diags_array(idf.astype(np.float32))).tocsc()

    def scores(self, query: str) -> Float[Array, " n"]:
        """How well each text answers to the words of `query`; 0 where it shares none."""
        asked = self._counter.transform([query])
        scores: Float[Array, " n"] = (self._weights[:, asked.indices] @ asked.data).astype(
            np.float64
        )
        return scores

    def top_k(self, query: str, k: int) -> Int[Array, " m"]:
        """The `k` best rows, ascending; fewer if fewer share a word. Of equals the lowest rows."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[: as_count(k, "k")]
        rows: Int[Array, " m"] = np.sort(best[scores[best] > 0])
        return rows
