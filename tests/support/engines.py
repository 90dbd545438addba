"""Prompts and documents for engines, of few words, so that texts have much in common."""

import numpy as np

from whet.adapt.config import FullFineTuning, LMHead, LoRA
from whet.data.documents import Document
from whet.engine import Request
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
LORA = LoRA(lr=1e-2, r=4)
ADAPTERS = [LORA, LMHead(lr=1e-2), FullFineTuning(lr=1e-3)]
TEXT = " after it"
name = lambda adapter: type(adapter).__name__  # noqa: E731


def words(seed, count=4):
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def request(seed, **options):
    return Request(prompt=words(100 + seed, 3), **options)


def picking(n, **options):
    """A selection of `n` documents among ten candidates."""
    return SelectionConfig(n=n, k=10, **options)


def space_of(folder):
    documents = [Document(f"d{i}", words(i), {}) for i in range(30)]
    return DataSpace.build(documents, folder)
