"""Sharpen a language model on every prompt: select (SIFT), adapt, answer, put it back."""

import importlib
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError, naming_extras
from whet.select.selection import Selection, Selector
from whet.select.selectors.baselines import (
    nearest,
    nearest_repeated,
    random_selection,
    sift_lazy,
    uncertainty,
)
from whet.select.sift import SIFT, sift, sift_batch

if TYPE_CHECKING:
    from whet.adapt.adapters import Adapter
    from whet.adapt.config import FullFineTuning, LMHead, LoRA, OptimizerConfig
    from whet.adapt.model import LanguageModel
    from whet.adapt.sampling import SamplingParams
    from whet.data.documents import Document
    from whet.engine import Engine, Output, Request, TrainingConfig
    from whet.select.config import SelectionConfig
    from whet.space.retrieve import Retriever
    from whet.space.space import DataSpace
    from whet.space.training_set import TrainingSet, training_set
    from whet.spaces import build_space, open_space

__version__ = "0.1.0"

_LATER = {  # loaded when first used: `import whet` needs NumPy alone
    "Adapter": "whet.adapt.adapters",
    "Output": "whet.engine",
    "DataSpace": "whet.space.space",
    "Document": "whet.data.documents",
    "Engine": "whet.engine",
    "FullFineTuning": "whet.adapt.config",
    "LMHead": "whet.adapt.config",
    "LanguageModel": "whet.adapt.model",
    "LoRA": "whet.adapt.config",
    "OptimizerConfig": "whet.adapt.config",
    "SelectionConfig": "whet.select.config",
    "Request": "whet.engine",
    "Retriever": "whet.space.retrieve",
    "SamplingParams": "whet.adapt.sampling",
    "TrainingConfig": "whet.engine.types",
    "TrainingSet": "whet.space.training_set",
    "build_space": "whet.spaces",
    "open_space": "whet.spaces",
    "training_set": "whet.space.training_set",
}

_RENAMED = {  # old public names, and what to use instead
    "Pick": "whet.select.sift.Pick",
    "random": "whet.random_selection",
}

__all__ = [
    "SIFT",
    "Adapter",
    "DataSpace",
    "Document",
    "Engine",
    "FullFineTuning",
    "LMHead",
    "LanguageModel",
    "LoRA",
    "OptimizerConfig",
    "Output",
    "Request",
    "Retriever",
    "SamplingParams",
    "Selection",
    "SelectionConfig",
    "Selector",
    "TrainingConfig",
    "TrainingSet",
    "WhetError",
    "build_space",
    "nearest",
    "nearest_repeated",
    "open_space",
    "random_selection",
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
    if name in _RENAMED:
        raise AttributeError(f"whet.{name} is now {_RENAMED[name]}")
    raise AttributeError(f"module 'whet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
