"""Prompts and documents for engines, of few words, so that texts have much in common."""

import numpy as np

from whet.adapt.config import FullFineTuning, LMHead, LoRA
from whet.data.documents import Document
from whet.engine import Request
from whet.space.space import DataSpace

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
ADAPTERS = [LoRA(lr=1e-2, r=4), LMHead(lr=1e-2), FullFineTuning(lr=1e-3)]
TEXT = " after it"
name = lambda mode: type(mode).__name__  # noqa: E731


def words(seed, count=4):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def query(seed, **options):
    return Request(prompt=words(100 + seed, 3), **options)


def space_of(folder):
    documents = [Document(f"d{i}", words(i), {}) for i in range(30)]
    return DataSpace.build(documents, folder)
