"""The errors that whet raises, and the import of optional dependencies.

    WhetError
    ├── SourceError                a file or data set of documents cannot be read
    ├── SpaceError                 a data space is missing, damaged, or of a newer format
    │   └── EmbedderMismatchError  a data space was built with another embedder
    ├── NoMatchError               a prompt shares nothing with the data space (also a ValueError)
    ├── ModelError                 a language model cannot be loaded or used
    ├── EngineError                an engine cannot accept or finish a request
    │   ├── QueueFullError         the engine's queue is full
    │   ├── EngineClosedError      the engine was closed
    │   └── AdaptationError        a request's loss is not finite; `trace` holds its steps
    ├── RunFolderError             a run's folder belongs to another run or is damaged
    └── MissingDependencyError     an optional dependency is not installed

Invalid arguments, such as a negative count or a wrong shape, raise `ValueError`.
"""

import importlib
from types import ModuleType
from typing import Any


class WhetError(Exception):
    """Base class of whet's runtime errors.

    Messages state the problem, the value, what was expected, and what to do.
    """


class SourceError(WhetError):
    """A file or data set of documents cannot be read."""


class SpaceError(WhetError):
    """A data space is missing, damaged, or of a newer format."""


class EmbedderMismatchError(SpaceError):
    """A data space was built with another embedder."""


class NoMatchError(WhetError, ValueError):
    """A prompt is blank or shares nothing with the data space."""


class ModelError(WhetError):
    """A language model cannot be loaded or used."""


class EngineError(WhetError):
    """An engine cannot accept or finish a request."""


class QueueFullError(EngineError):
    """The engine's queue is full: retry later."""


class EngineClosedError(EngineError):
    """The engine was closed and accepts no more requests."""


class AdaptationError(EngineError):
    """A request's loss is not finite. Other requests are not affected."""

    def __init__(self, message: str, trace: Any = None) -> None:
        super().__init__(message)
        self.trace = trace
        """The steps taken before the error: a `whet.AdaptationTrace`."""


class RunFolderError(WhetError):
    """A run's folder belongs to another run, or is damaged."""


class MissingDependencyError(WhetError):
    """An optional dependency is not installed."""


EXTRAS = {
    "space": (
        "charset_normalizer", "faiss", "filelock", "markdown_it", "pathspec", "pyarrow", "rich",
        "scipy", "sklearn", "threadpoolctl",
    ),
    "adapt": ("safetensors", "tokenizers", "torch", "transformers"),
    "serve": ("fastapi", "llguidance", "prometheus_client", "uvicorn"),
}  # fmt: skip
"""Packages that several modules import, by the extra that installs them (pyproject.toml)."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which needs the optional dependencies of `extra`.

    `module` may be one of whet's own modules; the message names the package that is missing.

    >>> require("json", "adapt").dumps([1])
    '[1]'

    Raises:
        MissingDependencyError: If `module`, or a package that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_dependency(error, extra) from error


def missing_dependency(error: ModuleNotFoundError, extra: str | None = None) -> Exception:
    """The error that names the extra with the package that `error` did not find.

    Args:
        error: What an import raised.
        extra: The extra of packages that `EXTRAS` does not list; without it, `error` itself is
            returned for these.
    """
    package = (error.name or "").partition(".")[0]
    extra = next((name for name, packages in EXTRAS.items() if package in packages), extra)
    if package in ("", "whet") or extra is None:
        return error
    return MissingDependencyError(f"{package} is not installed: run `pip install 'whet[{extra}]'`")
