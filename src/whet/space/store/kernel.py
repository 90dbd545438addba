"""The scale of a store's vectors, from which the default λ' follows.

λ' is in units of the kernel. A component that all vectors share is learned with the first pick and
then only shrinks the rest, so the same λ' means more repeats in a space of higher cosines. What is
left is k(x, x) − k(x, y) on average, 1 − ā for unit vectors with mean cosine ā. The factor was
chosen with `lsa`, where ā is about 0.24 and λ' = 0.1 was best; with it, a space of ā = 0.92 gets
the paper's 0.01 (arXiv 2410.08020, Section 5).
"""

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.store.manifest import Manifest
from whet.space.store.protocol import Reader
from whet.space.store.reader import DiskReader

FACTOR = 0.13  # of λ'
FLOOR = (
    1e-3  # of λ', relative to k(x, x): where all vectors are equal, a positive number must remain
)
SAMPLE = 16_384  # rows of larger stores that are measured, in runs of neighboring rows
RUN = 64  # rows: a run is in one or two blocks of the file, whose checksums are cheap


@dataclass(frozen=True, slots=True)
class KernelScale:
    """Mean values of k(x, y) = xᵀy over the documents of a store that have content.

    >>> KernelScale(1.0, 0.24).lam
    0.0988
    """

    mean_square: float = 1.0
    """Mean of k(x, x), 1 for unit vectors."""
    mean_product: float = 0.0
    """Mean of k(x, y) over pairs of different documents; 0 if there are fewer than two."""

    @property
    def mean_cosine(self) -> float:
        """ā, the mean cosine of two documents; for vectors of any length, a ratio of means."""
        return self.mean_product / self.mean_square

    @property
    def lam(self) -> float:
        """The default λ', 0.13 (1 − ā) for unit vectors, to three digits, so that it can be typed.

        At least 0.001, for unit vectors: λ' must be positive if all documents are equal.
        """
        left = FACTOR * (self.mean_square - self.mean_product)
        return float(f"{max(left, FLOOR * self.mean_square):.3g}")

    def as_record(self) -> dict[str, float]:
        """The values as the manifest stores them."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, float]) -> "KernelScale | None":
        """The values that a manifest stores; None if it has none."""
        return cls(record["mean_square"], record["mean_product"]) if record else None


def measure_kernel(reader: Reader) -> KernelScale:
    """The mean values over the rows that `reader` sees; O(N), and no more than 16,384 vectors.

    Exact for stores of up to as many rows; of larger ones, runs of rows are measured that are evenly
    spread over the store, so that the result is always the same.
    """
    return kernel_of(reader.vectors(_sample(reader.ids())))


def kernel_record(path: Path, manifest: Manifest, deleted: Int[Array, " n"]) -> dict[str, float]:
    """`Manifest.kernel` of a version whose manifest is not written yet; empty if a file is broken.

    The first use then measures it, and raises the error.
    """
    with suppress(SpaceError):
        with closing(DiskReader.open_shard(path, manifest, deleted)) as reader:
            return measure_kernel(reader).as_record()
    return {}


def kernel_of(vectors: Float[Array, "n d"]) -> KernelScale:
    """The mean values over rows, of which zero ones (documents without content) are left out."""
    rows = vectors.astype(np.float64)
    squares = np.einsum("nd,nd->n", rows, rows)
    n = int(np.count_nonzero(squares))
    if not n:
        return KernelScale()
    total, square = rows.sum(axis=0), float(squares.sum())
    product = 0.0 if n == 1 else (float(total @ total) - square) / (n * (n - 1))
    return KernelScale(square / n, product)


def _sample(ids: Int[Array, " n"]) -> Int[Array, " m"]:
    if len(ids) <= SAMPLE:
        return ids
    runs = SAMPLE // RUN
    starts = np.arange(runs) * (len(ids) - RUN) // (runs - 1)
    sample: Int[Array, " m"] = ids[(starts[:, None] + np.arange(RUN)).ravel()]
    return sample
