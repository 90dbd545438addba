"""Sharpen a language model on every prompt: select (SIFT), adapt, answer, put it back."""

import importlib
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError, naming_extras
from whet.select.baselines import nearest, nearest_repeated, random, uncertainty
from whet.select.lazy import sift_lazy
from whet.select.selection import Selection, Selector
from whet.select.sift import sift, sift_batch
from whet.select.sifting import Pick, Sifting

if TYPE_CHECKING:
    from whet.adapt.adaptation import Full, Head, LoRA
    from whet.adapt.model import LanguageModel
    from whet.engine import Answer, Engine, Query
    from whet.space.retrieve import Retriever
    from whet.space.space import DataSpace
    from whet.space.targeted import TrainingSet, training_set

__version__ = "0.1.0"

_LATER = {  # loaded when first used: `import whet` needs NumPy alone
    "Answer": "whet.engine",
    "DataSpace": "whet.space.space",
    "Engine": "whet.engine",
    "Full": "whet.adapt.adaptation",
    "Head": "whet.adapt.adaptation",
    "LanguageModel": "whet.adapt.model",
    "LoRA": "whet.adapt.adaptation",
    "Query": "whet.engine",
    "Retriever": "whet.space.retrieve",
    "TrainingSet": "whet.space.targeted",
    "training_set": "whet.space.targeted",
}

__all__ = [
    "Answer",
    "DataSpace",
    "Engine",
    "Full",
    "Head",
    "LanguageModel",
    "LoRA",
    "Pick",
    "Query",
    "Retriever",
    "Selection",
    "Selector",
    "Sifting",
    "TrainingSet",
    "WhetError",
    "nearest",
    "nearest_repeated",
    "random",
    "sift",
    "sift_batch",
    "sift_lazy",
    "training_set",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        with naming_extras():
            return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'whet' has no attribute {name!r}")
