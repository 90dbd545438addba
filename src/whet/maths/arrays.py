"""The one door for arrays from outside: NumPy or torch, any float type, checked once."""

from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray

_LARGEST = 1e70  # gains hold fourth powers of the numbers, which float64 must hold in turn
_SMALLEST = 1e-70
_NOISE = 1e-14  # of a squared length: a smaller λ' drowns in the rounding of posterior variances


def check_matrix(vectors: Any, name: str, *, finite: bool = True) -> Float[Array, "k d"]:
    """`vectors` as a finite, C-contiguous float matrix of the width that it came in.

    With `finite=False` a caller who will see every number anyway saves a pass over them, and passes
    a row that turns out not to be finite to `refuse_row`. A memory-mapped array stays on disk.

    Raises:
        ValueError: Unless `vectors` is two-dimensional, real, finite, and has at least one row and
            one column.
    """
    rows = _numpy(vectors, name)
    if rows.ndim != 2:
        raise ValueError(f"{name} has shape {rows.shape}: expected a matrix, one vector a row")
    if 0 in rows.shape:
        raise ValueError(f"{name} is empty, with shape {rows.shape}: expected at least one vector")
    return _finite(rows, name) if finite else np.ascontiguousarray(rows)


def raise_bad_row(rows: Float[Array, "k d"], index: int, name: str) -> NoReturn:
    """Say what is wrong with a row whose squared norm is not finite."""
    row = rows[index]
    if np.isfinite(row).all():
        raise ValueError(
            f"{name} holds {row[np.abs(row).argmax()]} at row {index}, whose square is infinite: "
            "scale the vectors down"
        )
    value = row[~np.isfinite(row)][0]
    raise ValueError(f"{name} holds {value} at row {index}: expected finite numbers")


def as_targets(vectors: Any, name: str, dimension: int) -> Float[Array, "m d"]:
    """One vector or a matrix of several as float64, none of them empty, not all of them zero."""
    array = _numpy(vectors, name)
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected one vector, or one a row")
    if array.shape[-1] != dimension:
        raise ValueError(
            f"{name} has {array.shape[-1]} dimensions, but the candidates have {dimension}"
        )
    return np.atleast_2d(_finite(array, name)).astype(np.float64)


def as_weights(weights: Any, name: str, count: int) -> Float[Array, " m"]:
    """`count` finite numbers, none negative, not all zero."""
    array = _finite(_numpy(weights, name), name).astype(np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}: expected {count}, one a target")
    if (array < 0).any() or not array.any():
        raise ValueError(f"{name} is {array}: expected no negative number, and one above zero")
    return array


def as_indices(indices: Any, name: str, count: int) -> Int[Array, " n"]:
    """Whole numbers in 0 … `count` − 1, in the order given; a negative one does not count back."""
    array = np.asarray(indices)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} is an array of {array.dtype}, shape {array.shape}: expected whole numbers, "
            "one a row; of a mask, np.flatnonzero gives them"
        )
    if array.min() < 0 or array.max() >= count:
        wrong = array[(array < 0) | (array >= count)][0]
        raise ValueError(f"{name} holds {wrong}, but rows go from 0 to {count - 1}")
    return array.astype(np.int64)


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


def check_noise(lam: float, squared_lengths: Float[Array, " k"]) -> None:
    """Refuse a noise that float64 loses beside the longest candidate.

    Raises:
        ValueError: If `lam` is below 1e-14 of the largest squared length.
    """
    longest = float(squared_lengths.max())
    if lam < _NOISE * longest:
        raise ValueError(
            f"lam is {lam:g}, lost in float64 beside a candidate of squared length {longest:.3g}: "
            "normalise the vectors or raise lam"
        )


def duplicate_groups(rows: Float[Array, "k d"]) -> Int[Array, " k"]:
    """For every row, the lowest index of a row with the same bytes. O(k d)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


def normalize_rows(rows: Float[Array, "k d"]) -> Float[Array, "k d"]:
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
    top = float(max(array.max(), -array.min())) if array.size else 0.0
    if not np.isfinite(top):
        bad = np.argwhere(~np.isfinite(array))[0]
        where = "row " + str(bad[0]) if array.ndim == 2 else "position " + str(bad[0])
        raise ValueError(f"{name} holds {array[tuple(bad)]} at {where}: expected finite numbers")
    if top > _LARGEST or 0 < top < _SMALLEST:
        raise ValueError(
            f"{name} holds numbers up to {top:.3g}, whose powers float64 loses: "
            "scale them, to vectors of length one if you can"
        )
    return np.ascontiguousarray(array)
