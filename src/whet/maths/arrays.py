"""The one door for arrays from outside: NumPy or torch, any float type, checked once."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


def as_rows(vectors: Any, name: str) -> Float[Array, "k d"]:
    """`vectors` as a finite, C-contiguous float matrix of the width that it came in.

    Raises:
        ValueError: Unless `vectors` is two-dimensional, real, finite, and has at least one row and
            one column.
    """
    rows = _numpy(vectors, name)
    if rows.ndim != 2:
        raise ValueError(f"{name} has shape {rows.shape}: expected a matrix, one vector a row")
    if 0 in rows.shape:
        raise ValueError(f"{name} is empty, with shape {rows.shape}: expected at least one vector")
    return _finite(rows, name)


def as_vector(vector: Any, name: str, dimension: int) -> Float[Array, " d"]:
    """`vector` as a finite float vector of `dimension` numbers; one row of a matrix is accepted."""
    array = _numpy(vector, name)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: expected one vector")
    if len(array) != dimension:
        raise ValueError(f"{name} has {len(array)} dimensions, but the candidates have {dimension}")
    return _finite(array, name)


def as_count(n: Any, name: str) -> int:
    """`n` as a positive whole number."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"{name} is {n!r}: expected a whole number, 1 or more")
    return int(n)


def as_positive(x: Any, name: str) -> float:
    """`x` as a positive finite number."""
    try:
        value = float(x)
    except (TypeError, ValueError):
        value = np.nan
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {x!r}: expected a positive finite number")
    return value


def row_groups(rows: Float[Array, "k d"]) -> Int[Array, " k"]:
    """For every row, the lowest index of a row with the same bytes. O(k d)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


def directions(rows: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Every row at unit length, in float64; a zero vector stays zero."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    norms[norms == 0] = 1.0
    unit: Float[Array, "k d"] = wide / norms
    return unit


def _numpy(values: Any, name: str) -> Array:
    if hasattr(values, "detach"):  # a torch tensor, on any device; NumPy has no bfloat16
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() == 2:
            values = values.float()
        values = values.numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: expected rows of equal length") from error
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} holds {array.dtype}: expected real numbers")
    return array


def _finite(array: Array, name: str) -> Array:
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        where = "row " + str(bad[0]) if array.ndim == 2 else "position " + str(bad[0])
        raise ValueError(f"{name} holds {array[tuple(bad)]} at {where}: expected finite numbers")
    return np.ascontiguousarray(array)
