"""BM25: ranks documents by the words they share with a prompt.

Source: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond",
Section 3.2, with Lucene's idf, which is never negative.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from whet.embed.terms import terms
from whet.maths.arrays import Array, as_count

K1 = 1.5  # how fast the effect of further occurrences of a word saturates
B = 0.75  # how strongly scores are normalized by the length of the text


class BM25:
    """An in-memory index of the words of texts.

    Building it takes about 5 seconds for 5,000 texts of 3 kB; it needs 12 bytes for every distinct
    word of every text.

    >>> BM25(["red fox", "blue whale", "red whale"]).top_k("whale", 2).tolist()
    [1, 2]
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Index the whole of every text; texts without a word are never found.

        Raises:
            ValueError: If no text contains a word.
        """
        from scipy.sparse import diags_array
        from sklearn.feature_extraction.text import CountVectorizer

        self._counter = CountVectorizer(analyzer=terms, dtype=np.float32)
        try:
            counts = self._counter.fit_transform(texts)
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise ValueError("no text contains a word: nothing to index") from error
        texts_with = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((counts.shape[0] - texts_with + 0.5) / (texts_with + 0.5))
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        penalty = K1 * (1 - B + B * lengths / lengths.mean())
        counts.data /= counts.data + np.repeat(penalty, np.diff(counts.indptr))
        self._weights = (counts @ diags_array(idf.astype(np.float32))).tocsc()

    def scores(self, query: str) -> Float[Array, " n"]:
        """BM25 score of every text for the words of `query`; 0 if it shares none."""
        counts = self._counter.transform([query])
        scores: Float[Array, " n"] = (self._weights[:, counts.indices] @ counts.data).astype(
            np.float64
        )
        return scores

    def top_k(self, query: str, k: int) -> Int[Array, " m"]:
        """Rows of the `k` best texts, ascending; fewer if fewer share a word. Ties: lowest rows."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[: as_count(k, "k")]
        rows: Int[Array, " m"] = np.sort(best[scores[best] > 0])
        return rows
