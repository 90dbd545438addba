"""Selectors of your own: Python functions that are named `module:function`, with checked results."""

import functools
import hashlib
import inspect
import os
import pkgutil
import re
import sys
from typing import Any

import numpy as np
from jaxtyping import Int

from whet.errors import WhetError
from whet.maths.arrays import Array, ArrayLike
from whet.select.selection import GreedyState, Selection, Selector, selection_along

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""A module and a function in it, such as `my_package.selectors:farthest`."""
SHOWN = 80  # characters of a value in messages
SIGNATURE = "(query, candidates, n, *, lam)"


def is_own(name: str) -> bool:
    """Whether `name` refers to a Python function, rather than to one of whet's selectors.

    >>> is_own("my_selectors:farthest"), is_own("sift")
    (True, False)
    """
    return ":" in name


def check_own(name: str) -> None:
    """Check that `name` has the form `module:function`; imports nothing.

    Raises:
        ValueError: If it has another form.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"selector is {name!r}: expected module:function with a module that Python can import, "
            "such as my_selectors:farthest for a file my_selectors.py in the current folder"
        )


def own_selector(name: str) -> Selector:
    """Import the function that `name` refers to, from the current folder too.

    Each call runs the function on copies of the embeddings, checks the rows that it returns, and
    computes the posterior variance along them.

    Raises:
        ValueError: If the module or the function does not exist, or the function cannot be called
            with the arguments of a selector.
    """
    check_own(name)
    function = _import(name)
    if not callable(function):
        raise ValueError(
            f"selector {name!r} is {_short(function)}: expected a function {SIGNATURE} that returns "
            "the rows of its picks"
        )
    try:
        signature = inspect.signature(function)
        signature.bind(None, None, 1, lam=0.01)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"selector {name!r} cannot be called as {SIGNATURE} ({error}): expected these arguments, "
            "whether it uses them or not"
        ) from error

    @functools.wraps(function)
    def select(
        query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01, **options: Any
    ) -> Selection:
        state = GreedyState(query, candidates, n, lam)
        try:
            picks = function(state.query.copy(), state.candidates.copy(), n, lam=lam, **options)
        except Exception as error:
            raise WhetError(
                f"selector {name!r} raised {type(error).__name__} for {len(state.candidates)} "
                f"candidates and n {n}: {error}"
            ) from error
        rows = _checked(picks, name, n=n, k=len(state.candidates))
        return selection_along(rows, state)

    return select


def source_digest(name: str) -> str | None:
    """Changes with the module of a selector of your own; None if its source cannot be read."""
    module = inspect.getmodule(inspect.unwrap(own_selector(name)))
    try:
        source = inspect.getsource(module) if module else None
    except (OSError, TypeError):
        return None
    return source and hashlib.sha256(source.encode()).hexdigest()[:16]


def _import(name: str) -> Any:
    """What `name` refers to; the current folder is searched after all others."""
    module, folder = name.partition(":")[0], os.getcwd()
    found = folder in sys.path
    if not found:
        sys.path.append(folder)
    try:
        return pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"selector {name!r}: module {module} cannot be imported ({error}): install what it "
                "imports"
            ) from error
        raise ValueError(
            f"selector {name!r}: there is no module {module} in {folder} or on Python's path: run "
            f"in the folder of its file, or add that folder to PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"selector {name!r}: {error}: expected the name of a function") from error
    except Exception as error:
        raise ValueError(
            f"selector {name!r}: module {module} cannot be imported "
            f"({type(error).__name__}: {error}): correct it"
        ) from error
    finally:
        if not found:
            sys.path.remove(folder)


def _checked(picks: Any, name: str, *, n: int, k: int) -> Int[Array, " n"]:
    """The rows that a selector returned, or those of the `Selection` that it returned."""
    if isinstance(picks, Selection):
        picks = picks.indices
    rows = np.asarray(picks.tolist() if hasattr(picks, "tolist") else picks)
    expected = f"expected {n} whole numbers from 0 to {k - 1}, the rows of its picks in order"
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise WhetError(f"selector {name!r} returned {_short(picks)}: {expected}")
    if len(rows) != n:
        raise WhetError(f"selector {name!r} returned {len(rows)} rows: {expected}")
    wrong = rows[(rows < 0) | (rows >= k)]
    if len(wrong):
        raise WhetError(f"selector {name!r} returned row {wrong[0]}: {expected}")
    return rows.astype(np.int64)


def _short(value: Any) -> str:
    """The beginning of a value's representation, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
