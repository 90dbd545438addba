"""Validation of arrays from outside: NumPy or torch, of any float type, checked once."""

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import DTypeLike

Array = np.ndarray


@runtime_checkable
class SupportsArray(Protocol):
    """An object that NumPy can read as an array: a NumPy array, a torch tensor, a data frame."""

    def __array__(self, *arguments: Any, **options: Any) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


ArrayLike: TypeAlias = SupportsArray | Sequence[Any]
"""What whet's functions accept as an array: real numbers in a NumPy array, a torch tensor on any
device, or (nested) sequences. Float16 and bfloat16 are read without loss."""

_LARGEST = 1e70  # gains contain fourth powers of the numbers, which float64 must represent
_SMALLEST = 1e-70
_NOISE = 1e-14  # of a squared length: a smaller λ' drowns in the rounding of posterior variances


def check_matrix(vectors: ArrayLike, name: str, *, finite: bool = True) -> Float[Array, "k d"]:
    """Return `vectors` as a finite, C-contiguous matrix of the float type that it came in.

    A memory-mapped array stays on disk. With `finite=False` the check for finite numbers is
    skipped, which saves a pass over the array for callers that read every number anyway and pass a
    row that turns out not to be finite to `raise_bad_row`.

    Raises:
        ValueError: If `vectors` is not two-dimensional, real and finite, or is empty.
    """
    rows = _numpy(vectors, name)
    if rows.ndim != 2:
        raise ValueError(
            f"{name} has shape {rows.shape}: expected a matrix with one vector per row"
        )
    if 0 in rows.shape:
        raise ValueError(f"{name} is empty, with shape {rows.shape}: expected at least one vector")
    return _finite(rows, name) if finite else np.ascontiguousarray(rows)


def raise_bad_row(rows: Float[Array, "k d"], index: int, name: str) -> NoReturn:
    """Raise the error about row `index`, whose squared norm is not finite.

    Raises:
        ValueError: Always; the message contains the offending number.
    """
    row = rows[index]
    if np.isfinite(row).all():
        raise ValueError(
            f"{name} contains {row[np.abs(row).argmax()]} at row {index}, whose square is infinite: "
            "scale the vectors down"
        )
    value = row[~np.isfinite(row)][0]
    raise ValueError(f"{name} contains {value} at row {index}: expected finite numbers")


def as_targets(vectors: ArrayLike, name: str, dimension: int) -> Float[Array, "m d"]:
    """Return one vector, or a matrix of several, as a float64 matrix.

    Raises:
        ValueError: If the array is empty, not finite, or its vectors are not of length `dimension`.
    """
    array = _numpy(vectors, name)
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected one vector, or one per row")
    if array.shape[-1] != dimension:
        raise ValueError(
            f"{name} has {array.shape[-1]} dimensions, but the candidates have {dimension}"
        )
    return np.atleast_2d(_finite(array, name)).astype(np.float64)


def as_weights(weights: ArrayLike, name: str, count: int) -> Float[Array, " m"]:
    """Return `weights` as `count` finite numbers, none of them negative and not all zero.

    Raises:
        ValueError: If they are anything else.
    """
    array = _finite(_numpy(weights, name), name).astype(np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}: expected {count}, one per target")
    if (array < 0).any() or not array.any():
        raise ValueError(
            f"{name} is {array}: expected no negative number and at least one above zero"
        )
    return array


def as_indices(indices: ArrayLike, name: str, count: int) -> Int[Array, " n"]:
    """Return `indices` as whole numbers in 0 … `count` − 1; negative ones do not count from the end.

    Raises:
        ValueError: If they are anything else, a Boolean mask included.
    """
    array = np.asarray(indices)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} is an array of {array.dtype}, shape {array.shape}: expected row numbers; "
            "np.flatnonzero makes them of a mask"
        )
    if array.min() < 0 or array.max() >= count:
        wrong = array[(array < 0) | (array >= count)][0]
        raise ValueError(f"{name} contains {wrong}, but rows go from 0 to {count - 1}")
    return array.astype(np.int64)


def as_vector(vector: ArrayLike, name: str, dimension: int) -> Float[Array, " d"]:
    """Return `vector` as a finite float vector; a matrix of one row is accepted.

    Raises:
        ValueError: If it is anything else, or its length is not `dimension`.
    """
    array = _numpy(vector, name)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: expected one vector")
    if len(array) != dimension:
        raise ValueError(f"{name} has {len(array)} dimensions, but the candidates have {dimension}")
    return _finite(array, name)


def as_count(n: Any, name: str) -> int:
    """Return `n` as an int.

    Raises:
        ValueError: If `n` is not a positive whole number.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"{name} is {n!r}: expected a whole number, 1 or more")
    return int(n)


def as_seed(seed: Any, name: str = "seed") -> int:
    """Return `seed` as an int.

    Raises:
        ValueError: If `seed` is not a whole number, 0 or more.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"{name} is {seed!r}: expected a whole number, 0 or more")
    return int(seed)


def as_positive(x: Any, name: str) -> float:
    """Return `x` as a float.

    Raises:
        ValueError: If `x` is not a positive finite number.
    """
    try:
        value = float(x)
    except (TypeError, ValueError):
        value = np.nan
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {x!r}: expected a positive finite number")
    return value


def check_noise(lam: float, squared_lengths: Float[Array, " k"]) -> None:
    """Reject an observation noise that float64 cannot resolve next to the longest candidate.

    Raises:
        ValueError: If `lam` is below 1e-14 of the largest squared length.
    """
    longest = float(squared_lengths.max())
    if lam < _NOISE * longest:
        raise ValueError(
            f"lam is {lam:g}, too small for float64 next to a candidate of squared length "
            f"{longest:.3g}: normalize the vectors or raise lam"
        )


def duplicate_groups(rows: Float[Array, "k d"]) -> Int[Array, " k"]:
    """Return for every row the lowest index of a row with the same bytes. O(k d).

    >>> duplicate_groups(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
    [0, 1, 0]
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


def normalize_rows(
    rows: Float[Array, "k d"], *, dtype: DTypeLike = np.float64, min_norm: float = 0.0
) -> Float[Array, "k d"]:
    """Return every row scaled to unit length, computed in `dtype`.

    A row whose norm is at most `min_norm` becomes zero.

    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    rows = np.asarray(rows, dtype=dtype)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    normalized: Float[Array, "k d"] = np.divide(
        rows, norms, out=np.zeros_like(rows), where=norms > min_norm
    )
    return normalized


def _numpy(values: ArrayLike, name: str) -> Array:
    if hasattr(values, "detach"):
        values = _from_torch(values, name)
    try:
        array = np.asarray(values)
        if array.dtype == object and array.ndim == 1 and len(array):
            array = np.array([*array])  # a column of lists, as of pandas or Arrow
    except ValueError as error:
        raise ValueError(f"{name} is ragged: expected rows of equal length") from error
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind == "O" and not array.ndim:
        raise ValueError(f"{name} is of {type(values)}: expected real numbers in an array or lists")
    if array.dtype.kind == "U":
        raise ValueError(f"{name} contains text: expected real numbers, such as its embeddings")
    if array.dtype.kind != "f":
        raise ValueError(f"{name} contains {array.dtype}: expected real numbers")
    return array


def _from_torch(tensor: Any, name: str) -> Array:
    if tensor.is_sparse or tensor.is_meta or str(tensor.layout) != "torch.strided":
        raise ValueError(f"{name} is a sparse or meta tensor: expected real numbers in a dense one")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() == 2:  # NumPy lacks bfloat16
        tensor = tensor.float()
    array: Array = tensor.numpy()
    return array


def _finite(array: Array, name: str) -> Array:
    largest = float(max(array.max(), -array.min())) if array.size else 0.0
    if not np.isfinite(largest):
        bad = np.argwhere(~np.isfinite(array))[0]
        place = f"row {bad[0]}" if array.ndim == 2 else f"position {bad[0]}"
        raise ValueError(f"{name} contains {array[tuple(bad)]} at {place}: expected finite numbers")
    if largest > _LARGEST or 0 < largest < _SMALLEST:
        raise ValueError(
            f"{name} contains numbers up to {largest:.3g}, whose powers float64 cannot represent: "
            "scale the vectors, preferably to length one"
        )
    return np.ascontiguousarray(array)
