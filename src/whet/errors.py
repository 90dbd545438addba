"""Every error of whet that a user may see.

    WhetError                    the world is not as it must be
    ├── SourceError              a file or data set of texts cannot be read
    ├── SpaceError               a data space is missing, corrupt or of a newer format
    │   └── EmbedderMismatchError     a data space was made by another embedder
    ├── NoMatchError             a prompt shares nothing with the data space (also a ValueError)
    ├── ModelError               a language model cannot be loaded or used
    ├── EngineError              an engine cannot take or finish a prompt
    │   ├── QueueFullError            as many prompts wait as may
    │   ├── EngineClosedError         it was closed
    │   └── AdaptationError     a prompt's loss is not finite; `trace` tells its steps
    ├── RunFolderError                 a run's folder holds something else than what is asked for
    └── MissingDependencyError             an optional dependency is not installed

A caller's own mistake (a negative count, a wrong shape) is a `ValueError`.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class WhetError(Exception):
    """The world is not as it must be; the message says what, the value, and what to do."""


class SourceError(WhetError):
    """A file or data set of texts cannot be read."""


class SpaceError(WhetError):
    """A data space is missing, corrupt or of a newer format."""


class EmbedderMismatchError(SpaceError):
    """A data space was made by another embedder."""


class NoMatchError(WhetError, ValueError):
    """A prompt is blank or shares nothing with the data space."""


class ModelError(WhetError):
    """A language model cannot be loaded or used."""


class EngineError(WhetError):
    """An engine cannot take or finish a prompt."""


class QueueFullError(EngineError):
    """As many prompts wait as may; try again later."""


class EngineClosedError(EngineError):
    """The engine was closed and takes no more prompts."""


class AdaptationError(EngineError):
    """A prompt's loss is not finite; other prompts are not concerned."""

    def __init__(self, message: str, trace: Any = None) -> None:
        super().__init__(message)
        self.trace = trace
        """Its steps until then: a `whet.engine.AdaptationTrace`."""


class RunFolderError(WhetError):
    """A run's folder holds something else than what is asked for."""


class MissingDependencyError(WhetError):
    """An optional dependency is not installed."""


EXTRAS = {"torch": "adapt", "transformers": "adapt", "matplotlib": "eval"}


@contextmanager
def naming_extras() -> Iterator[None]:
    """Turn a missing optional dependency into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise MissingDependencyError(
            f"{error.name} is not installed: run `pip install 'whet[{EXTRAS[error.name]}]'`"
        ) from error


def optional(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of whet brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"{error.name} is not installed: run `pip install 'whet[{extra}]'`"
        ) from error
