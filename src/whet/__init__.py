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
    from whet.adapt.adaptation import Full, Head, LoRA, Optimiser
    from whet.adapt.adapters import Adapter
    from whet.adapt.decode import Sampling
    from whet.adapt.model import LanguageModel
    from whet.engine import Answer, Engine, Query, Training
    from whet.space.documents import Document
    from whet.space.retrieve import Retriever
    from whet.space.space import DataSpace
    from whet.space.targeted import TrainingSet, training_set
    from whet.spaces import Options, build_space, open_space

__version__ = "0.1.0"

_LATER = {  # loaded when first used: `import whet` needs NumPy alone
    "Adapter": "whet.adapt.adapters",
    "Answer": "whet.engine",
    "DataSpace": "whet.space.space",
    "Document": "whet.space.documents",
    "Engine": "whet.engine",
    "Full": "whet.adapt.adaptation",
    "Head": "whet.adapt.adaptation",
    "LanguageModel": "whet.adapt.model",
    "LoRA": "whet.adapt.adaptation",
    "Optimiser": "whet.adapt.adaptation",
    "Options": "whet.spaces",
    "Query": "whet.engine",
    "Retriever": "whet.space.retrieve",
    "Sampling": "whet.adapt.decode",
    "Training": "whet.engine.query",
    "TrainingSet": "whet.space.targeted",
    "build_space": "whet.spaces",
    "open_space": "whet.spaces",
    "training_set": "whet.space.targeted",
}

__all__ = [
    "Adapter",
    "Answer",
    "DataSpace",
    "Document",
    "Engine",
    "Full",
    "Head",
    "LanguageModel",
    "LoRA",
    "Optimiser",
    "Options",
    "Pick",
    "Query",
    "Retriever",
    "Sampling",
    "Selection",
    "Selector",
    "Sifting",
    "Training",
    "TrainingSet",
    "WhetError",
    "build_space",
    "nearest",
    "nearest_repeated",
    "open_space",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
