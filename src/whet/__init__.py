"""Test-time fine-tuning: for each prompt, select documents (SIFT), train on them, answer, restore.

`__init__.pyi` lists the public names. Each is imported when it is first used, so that
`import whet` is fast and needs neither torch nor transformers.
"""

import re as _re
from pathlib import Path as _Path

from whet._version import __version__ as __version__
from whet.errors import require as _require

_MODULES = {
    name: module
    for module, name in _re.findall(
        r"^from (\S+) import (\w+)", _Path(__file__).with_suffix(".pyi").read_text("utf-8"), _re.M
    )
}
_RENAMED = {
    "Answer": "Output",
    "Full": "FullFineTuning",
    "Head": "LMHead",
    "Optimiser": "OptimizerConfig",
    "Options": "SelectionConfig",
    "Query": "Request",
    "Sampling": "SamplingParams",
    "Sifting": "SIFT",
    "Training": "TrainingConfig",
    "build_space": "DataSpace.build",
    "open_space": "DataSpace.open",
    "random": "random_selection",
}

__all__ = tuple(_MODULES)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(_require(_MODULES[name], "adapt"), name)
    if name in _RENAMED:
        raise AttributeError(f"whet.{name} is now whet.{_RENAMED[name]}")
    raise AttributeError(f"module 'whet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_MODULES)
