"""From texts to unit vectors.

`lsa` needs no download: tf-idf weights of a text's terms, projected on the leading right singular
vectors of the fitted texts (Deerwester et al. 1990, "Indexing by Latent Semantic Analysis").
`st:NAME` is any model of sentence-transformers.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float

from whet.embed.fingerprint import digest
from whet.errors import ModelError, SpaceError, require
from whet.io import load
from whet.maths.arrays import Array, as_count

TERM = r"\w+|[^\w\s]"  # words, numbers and single signs: code and formulas are made of the last
CUT = 4000  # characters of a text that are read
SAMPLE = 16_384  # texts that are fitted
TERMS = 50_000  # the most frequent are kept
NOISE = 1e-6  # a shorter projection is rounding: weights are 1 or more


@runtime_checkable
class Embedder(Protocol):
    """Texts to unit vectors. A text of which nothing is known becomes the zero vector.

    An embedder whose vectors are not of length 1 says so by an attribute `normalized = False`.
    """

    @property
    def name(self) -> str:
        """What `--embedder` calls it."""
        ...

    @property
    def dimension(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Equal for two embedders only if they give the same vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """One float32 row a text, of length 1 or 0; a row does not depend on the other texts."""
        ...


def check_embedder(embedder: Any) -> None:
    """Check that `embedder` is a specification or has the attributes of an `Embedder`.

    Raises:
        ValueError: If an attribute is missing.
    """
    if isinstance(embedder, str):
        return
    attributes = ("name", "dimension", "fingerprint", "encode")
    missing = [name for name in attributes if not hasattr(embedder, name)]
    if missing:
        raise ValueError(
            f"embedder is {embedder!r}, without {missing[0]}: expected a string such as 'lsa', or "
            f"an object with {', '.join(attributes)} (see whet.Embedder)"
        )


class LSA:
    """Latent semantic analysis of the data space's own texts."""

    name = "lsa"

    def __init__(self, terms: Sequence[str], weights: Float[Array, "terms d"]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._terms = list(terms)
        self._weights = weights  # idf × right singular vectors
        self._counter = CountVectorizer(
            vocabulary=self._terms, token_pattern=TERM, dtype=np.float32
        )
        digest = hashlib.sha256(json.dumps(self._terms).encode())
        digest.update(np.ascontiguousarray(weights).data)
        self.fingerprint = digest.hexdigest()[:32]
        self.dimension = weights.shape[1]

    @classmethod
    def fit(cls, texts: Sequence[str], dimension: int = 256, seed: int = 0) -> "LSA":
        """Fit on `texts`, or on 16,384 of them drawn with `seed`.

        The vectors have fewer dimensions than asked for where there are fewer texts or terms. Reads
        the first 4,000 characters of each text; about half a minute for any larger space.

        Raises:
            ValueError: If `texts` is empty or none of them holds a term.
        """
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        as_count(dimension, "dimension")
        rows = list(range(len(texts)))
        if len(rows) > SAMPLE:
            rows = sorted(np.random.default_rng(seed).permutation(len(rows))[:SAMPLE].tolist())
        if not any(texts[row][:CUT].strip() for row in rows):
            raise ValueError(f"none of {len(rows)} texts holds a term: nothing to fit lsa on")
        counter = CountVectorizer(max_features=TERMS, token_pattern=TERM, dtype=np.float32)
        counts = counter.fit_transform(texts[row][:CUT] for row in rows)
        tfidf = TfidfTransformer(sublinear_tf=True)
        weighted = tfidf.fit_transform(counts)
        rank = min(dimension, *weighted.shape)
        with threadpool_limits(
            1
        ):  # same bits on any machine; two threads on busy cores: 20 × slower
            _, _, right = randomized_svd(weighted, rank, n_iter=1, random_state=seed)
        weights = (tfidf.idf_[:, None] * right.T).astype(np.float32)
        return cls(counter.get_feature_names_out().tolist(), weights)

    def __repr__(self) -> str:
        return f"LSA({len(self._terms):,} terms, dimension {self.dimension})"

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Texts without a term that was fitted give zero rows. About 6,000 texts a second."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        counts = self._counter.transform(text[:CUT] for text in texts)
        counts.data = 1 + np.log(counts.data)
        return _unit(counts @ self._weights)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "terms.json").write_text(json.dumps(self._terms, ensure_ascii=False), "utf-8")
        np.save(folder / "weights.npy", self._weights)

    @classmethod
    def load(cls, folder: str | Path) -> "LSA":
        """What `save` wrote.

        Raises:
            SpaceError: If a file is missing or broken.
        """
        folder = Path(folder)
        try:
            terms = json.loads((folder / "terms.json").read_text("utf-8"))
            weights = load(folder / "weights.npy")
        except (OSError, ValueError, EOFError) as error:
            raise SpaceError(f"{folder} holds no readable lsa embedder: {error}") from error
        if weights.ndim != 2 or len(terms) != len(weights):
            raise SpaceError(
                f"{folder} holds {len(terms)} terms, but weights of shape {weights.shape}"
            )
        return cls(terms, weights)


CPU_TEXTS = 8  # a batch: more of some hundred tokens would leave a CPU's caches


class SentenceEncoder:
    """A model of sentence-transformers, by name or folder (`st:NAME`)."""

    def __init__(self, model: str, *, normalize: bool = True, device: str | None = None) -> None:
        """Load `model`; by default onto a GPU if there is one.

        Raises:
            ModelError: If it cannot be loaded.
        """
        library = require("sentence_transformers", "embed")
        try:
            self._model = library.SentenceTransformer(model, device=device)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"sentence encoder {model!r} cannot be loaded: {reason}") from error
        self.name = f"st:{model}" + ("" if normalize else "@normalize=false")
        self.normalized = normalize
        self._batch = CPU_TEXTS if self._model.device.type == "cpu" else 32
        self.dimension = int(self._model.encode(["length"], show_progress_bar=False).shape[1])
        weights = digest(self._model.state_dict())
        self.fingerprint = f"st {weights} {self._model.max_seq_length} {normalize}"

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Blank texts give zero rows; long ones are cut where the model does.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text holds half of a surrogate pair.
        """
        rows = np.zeros((len(texts), self.dimension), np.float32)
        told = [i for i, text in enumerate(texts) if text.strip()]
        for i in told:
            texts[i].encode()  # half of a surrogate pair is a ValueError with its place
        if told:
            rows[told] = self._model.encode(
                [texts[i] for i in told], batch_size=self._batch, show_progress_bar=False
            )
        if not np.isfinite(rows).all():
            text = texts[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise ModelError(
                f"{self.name} makes numbers that are not finite of the text {text[:40]!r}…: "
                "leave that text out"
            )
        return _unit(rows) if self.normalized else rows


def _unit(rows: Any) -> Float[Array, "n d"]:
    rows = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > NOISE)
    return cast(Array, unit)
