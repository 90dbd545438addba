"""LSA vectors of a sample of the benchmark corpus."""

import gzip
import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

CORPUS = Path(os.environ.get("WHET_CORPUS", "corpus/space.jsonl.gz"))


@cache
def lsa_vectors(documents: int = 6000, dimensions: int = 256) -> Any:
    """Return unit vectors of every seventh document, or None without a corpus.

    The environment variable WHET_CORPUS names the file of the corpus.
    """
    if not CORPUS.exists():
        return None
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    with gzip.open(CORPUS, "rt") as lines:
        texts = [json.loads(line)["text"][:2000] for line in itertools.islice(lines, 0, None, 7)]
    counts = TfidfVectorizer(max_features=20_000, sublinear_tf=True).fit_transform(
        texts[:documents]
    )
    vectors = TruncatedSVD(dimensions, random_state=0).fit_transform(counts)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
