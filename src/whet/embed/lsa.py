"""Latent semantic analysis: an embedder that needs no download.

Source: Deerwester et al. 1990, "Indexing by Latent Semantic Analysis": tf-idf weights of a text's
terms, projected on the leading right singular vectors of the fitted texts.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from whet.embed.terms import ANALYZER, legacy_terms, terms
from whet.errors import SpaceError
from whet.io import load_npy
from whet.maths.arrays import Array, as_count, normalize_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CUT = 4000  # characters of a text that are read
SAMPLE = 16_384  # texts that are fitted
TERMS = 50_000  # the most frequent terms are used
ANALYZERS = {1: legacy_terms, ANALYZER: terms}
MIN_NORM = 1e-6  # a shorter projection is rounding: weights are 1 or more


class LSA:
    """Latent semantic analysis, fitted on the texts of the data space.

    >>> lsa = LSA.fit(["red fox", "blue whale", "red whale"], dimension=2)
    >>> lsa.encode(["a whale", "unknown"]).shape
    (2, 2)
    """

    name = "lsa"

    def __init__(
        self, terms: Sequence[str], weights: Float[Array, "terms d"], analyzer: int = ANALYZER
    ) -> None:
        """Use `fit` or `load` instead. A row of `weights` is a term's idf × singular vectors."""
        self._terms = list(terms)
        self._columns = {term: column for column, term in enumerate(self._terms)}
        self._weights = weights
        self.analyzer = analyzer
        """Version of the terms (`whet.embed.terms`): 1 in data spaces that do not store one."""
        digest = hashlib.sha256(json.dumps(self._terms).encode())
        if analyzer > 1:  # fingerprints of version 1 stay as they were
            digest.update(f"analyzer {analyzer}".encode())
        digest.update(np.ascontiguousarray(weights).data)
        self.fingerprint = digest.hexdigest()[:32]
        self.dimension = weights.shape[1]

    @classmethod
    def fit(cls, texts: Sequence[str], dimension: int = 256, seed: int = 0) -> "LSA":
        """Fit on `texts`, or on 16,384 of them drawn with `seed`.

        Reads the first 4,000 characters of each text. Takes about half a minute for any larger data
        space.

        Args:
            texts: Texts to fit on.
            dimension: Length of the vectors; less if there are fewer texts or terms.
            seed: Seed of the draw and of the singular value decomposition.

        Raises:
            ValueError: If `texts` is empty or none of them contains a term.
        """
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        as_count(dimension, "dimension")
        rows = list(range(len(texts)))
        if len(rows) > SAMPLE:
            rows = sorted(np.random.default_rng(seed).permutation(len(rows))[:SAMPLE].tolist())
        if not any(texts[row][:CUT].strip() for row in rows):
            raise ValueError(f"none of {len(rows)} texts contains a term: nothing to fit lsa on")
        counter = CountVectorizer(max_features=TERMS, analyzer=terms, dtype=np.float32)
        counts = counter.fit_transform(texts[row][:CUT] for row in rows)
        tfidf = TfidfTransformer(sublinear_tf=True)
        weighted = tfidf.fit_transform(counts)
        rank = min(dimension, *weighted.shape)
        # one thread: the same bits on any machine; two threads on busy cores are 20 times slower
        with threadpool_limits(1):
            _, _, right = randomized_svd(weighted, rank, n_iter=1, random_state=seed)
        weights = (tfidf.idf_[:, None] * right.T).astype(np.float32)
        return cls(counter.get_feature_names_out().tolist(), weights)

    def __repr__(self) -> str:
        return f"LSA({len(self._terms):,} terms, dimension {self.dimension})"

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed texts; one without a fitted term gets a zero row. About 6,000 texts per second."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        counts = self._counts(text[:CUT] for text in texts)
        counts.data = 1 + np.log(counts.data)
        return normalize_rows(counts @ self._weights, dtype=np.float32, min_norm=MIN_NORM)

    def _counts(self, texts: Iterable[str]) -> "csr_array":
        """How often each term occurs in each text.

        As scikit-learn's `CountVectorizer` with this vocabulary, whose import takes a second.
        """
        from scipy.sparse import csr_array

        columns, counts, ends = array("i"), array("f"), [0]
        for text in texts:
            known = (self._columns.get(term, -1) for term in ANALYZERS[self.analyzer](text))
            for column, count in sorted(Counter(known).items()):
                if column >= 0:
                    columns.append(column)
                    counts.append(count)
            ends.append(len(columns))
        data = np.array(counts, np.float32), np.array(columns, np.int32), ends
        return csr_array(data, shape=(len(ends) - 1, len(self._terms)))

    def save(self, folder: str | Path) -> None:
        """Write the embedder to `folder`, which is created if needed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "terms.json").write_text(json.dumps(self._terms, ensure_ascii=False), "utf-8")
        if self.analyzer > 1:  # version 1 had no such file
            (folder / "analyzer.json").write_text(json.dumps({"version": self.analyzer}), "utf-8")
        np.save(folder / "weights.npy", self._weights)

    @classmethod
    def load(cls, folder: str | Path) -> "LSA":
        """Read the embedder that `save` wrote.

        Raises:
            SpaceError: If a file is missing or broken.
        """
        folder = Path(folder)
        try:
            terms = json.loads((folder / "terms.json").read_text("utf-8"))
            path = folder / "analyzer.json"
            analyzer = json.loads(path.read_text("utf-8"))["version"] if path.exists() else 1
            weights = load_npy(folder / "weights.npy")
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise SpaceError(
                f"{folder} does not contain a readable lsa embedder: {error}"
            ) from error
        if analyzer not in ANALYZERS:
            raise SpaceError(
                f"{folder} was made by a later whet (analyzer {analyzer}, known: "
                f"{', '.join(map(str, ANALYZERS))}): upgrade whet"
            )
        if weights.ndim != 2 or len(terms) != len(weights):
            raise SpaceError(
                f"{folder} has {len(terms)} terms, but weights of shape {weights.shape}"
            )
        return cls(terms, weights, analyzer)
