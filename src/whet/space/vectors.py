"""The vectors of a data space and the exact search for those nearest to a prompt.

float32 products nominate every row that could be among the k nearest; the nominees are measured
again in float64, and ties go to the lowest row. So what is found depends neither on the threads nor
on the batch of a product.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from jaxtyping import Float, Int

from whet.errors import SpaceError
from whet.maths.arrays import Array, as_count, as_rows

TIE = 1e-9  # relative; as in whet.select
BLOCK = 1024  # rows turned to float32 at a time: a block that stays in the cache is twice as fast
IN_MEMORY = 512 * 2**20  # bytes; a smaller space keeps a float32 copy: 8 times as fast

Sign = Literal["both", "positive"]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The rows nearest to a prompt, in ascending order: position order is row order."""

    rows: Int[Array, " k"]
    vectors: Float[Array, "k d"]
    scores: Float[Array, " k"]
    """Signed cosines to the prompt."""

    def __len__(self) -> int:
        return len(self.rows)


class Vectors:
    """float16 unit (or zero) rows, memory-mapped."""

    def __init__(self, path: Path) -> None:
        try:
            self._stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SpaceError(f"{path} cannot be read: {error}") from error
        if self._stored.dtype != np.float16 or self._stored.ndim != 2:
            raise SpaceError(
                f"{path} holds {self._stored.dtype} of shape {self._stored.shape}, "
                "expected float16 rows"
            )

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def dimension(self) -> int:
        return int(self._stored.shape[1])

    def __getitem__(self, rows: Any) -> Float[Array, "n d"]:
        """The vectors of `rows`, in float32."""
        return cast(Array, self._stored[rows].astype(np.float32))

    def nearest(self, queries: Any, k: int, sign: Sign = "both") -> list[Candidates]:
        """For each query the `k` rows of largest |cosine|, or of largest cosine (`positive`).

        The cosine of a zero row is 0. O(b n d), one pass over the rows for all queries.

        Raises:
            ValueError: If k < 1 or k > n, a query is zero, not finite or of another dimension.
        """
        aims = self._aims(queries)
        if as_count(k, "k") > len(self):
            raise ValueError(f"k is {k}, but the data space holds {len(self)} documents: lower k")
        if sign not in ("both", "positive"):
            raise ValueError(f"sign is {sign!r}: expected 'both' or 'positive'")
        size = np.abs if sign == "both" else np.asarray
        margin = 2 * _error(self.dimension)
        pools = [_Pool(k, margin) for _ in aims]
        narrow = aims.astype(np.float32).T
        for start, block in self._blocks():
            for pool, scores in zip(pools, size(block @ narrow).T, strict=True):
                pool.offer(start, scores)
        return [self._cut(aim, pool.rows, k, sign) for aim, pool in zip(aims, pools, strict=True)]

    def _aims(self, queries: Any) -> Float[Array, "b d"]:
        aims = as_rows(queries, "queries").astype(np.float64)
        if aims.shape[1] != self.dimension:
            raise ValueError(
                f"queries have {aims.shape[1]} dimensions, but the data space has {self.dimension}"
            )
        lengths = np.linalg.norm(aims, axis=1)
        if not lengths.all():
            raise ValueError(f"query {int(np.argmin(lengths))} is the zero vector: near to nothing")
        return cast(Array, aims / lengths[:, None])

    def _blocks(self) -> Iterator[tuple[int, Float[Array, "m d"]]]:
        small = self._stored.size * 4 <= IN_MEMORY
        step = 16 * BLOCK if small else BLOCK
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            yield start, self._in_memory[part] if small else self[part]

    @cached_property
    def _in_memory(self) -> Float[Array, "n d"]:
        return self[:]

    def _cut(
        self, aim: Float[Array, " d"], rows: Int[Array, " m"], k: int, sign: Sign
    ) -> Candidates:
        wide = self._stored[rows].astype(np.float64)
        lengths = np.sqrt(np.einsum("md,md->m", wide, wide))
        products = np.einsum("md,d->m", wide, aim)
        cosines = np.divide(products, lengths, out=np.zeros(len(rows)), where=lengths > 0)
        sizes = np.abs(cosines) if sign == "both" else cosines
        kth = np.partition(sizes, -k)[-k]
        slack = TIE * abs(kth)
        kept = sizes > kth + slack
        tied = np.flatnonzero(~kept & (sizes >= kth - slack))
        kept[tied[: k - int(kept.sum())]] = True
        return Candidates(rows[kept], self[rows[kept]], cosines[kept])


class _Pool:
    """The rows seen so far that may be among the k of largest score, given each score's error."""

    def __init__(self, k: int, margin: float) -> None:
        self.rows = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)
        self._k, self._margin, self._floor = k, margin, -np.inf

    def offer(self, start: int, scores: Float[Array, " m"]) -> None:
        new = np.flatnonzero(scores >= self._floor)
        self.rows = np.concatenate([self.rows, start + new])
        self._scores = np.concatenate([self._scores, scores[new]])
        if len(self.rows) > self._k:
            self._floor = float(np.partition(self._scores, -self._k)[-self._k]) - self._margin
            over = self._scores >= self._floor
            self.rows, self._scores = self.rows[over], self._scores[over]


def _error(d: int) -> float:
    """By how much a float32 product with a stored row may miss the cosine.

    Rounding a unit row to float16 changes its length by 2⁻¹¹ and, of tiny numbers, √d 2⁻²⁵; a sum
    of d products in float32 is off by (d + 2) 2⁻²⁴ (Higham, "Accuracy and Stability", Section 3.1).
    """
    return 2.0**-11 + math.sqrt(d) * 2.0**-25 + (d + 2) * 2.0**-23


def begin(file: IO[bytes], count: int, dimension: int) -> None:
    """The head of an `.npy` file of `count` float16 rows, which then follow with `put`."""
    head = {"descr": "<f2", "fortran_order": False, "shape": (count, dimension)}
    np.lib.format.write_array_header_1_0(file, cast(Any, head))


def put(file: IO[bytes], rows: Float[Array, "n d"]) -> None:
    """Write unit rows, their length corrected to 1 before they are rounded to float16."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    file.write(np.ascontiguousarray(unit, dtype="<f2").data)
