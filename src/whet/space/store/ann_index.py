"""The Faiss index of a segment: it nominates rows, whose stored vectors then decide.

Inverted lists of 8-bit vectors (IVF,SQ8), written once and opened by memory map. A list holds the
rows around one centroid, and a search looks into the lists whose centroid has the largest |product|
with the prompt: into those of positive sign for the prompt, into the others for its opposite. So
both signs are found by looking at as many rows as one sign takes.

Traps of Faiss that shape this: lists on disk that are added to lose their recall, and a file
overwritten under a map is a bus error, so files never change; compressed indexes give no vectors
back, or wrong ones; the parser trusts its file, so the head is checked before it is parsed.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.errors import SpaceError
from whet.io import checksum
from whet.maths.arrays import Array
from whet.space.store.protocol import Metric
from whet.space.store.vectors import TopK, Vectors, cosines, top_k

MIN_ROWS = 50_000  # rows; with fewer, looking at all of them is as fast
TRAIN_ROWS = 100_000  # rows that centroids are fitted on
KMEANS_ITERATIONS = 10  # of k-means
SAMPLE_BLOCK = 8192  # rows of the sample that are read at a time
RECALL_SAMPLE = 64  # rows by which recall is measured
TARGET_RECALL = 0.95  # recall of the default probe_fraction
PROBE_FRACTIONS = tuple(2.0 ** (-e / 2) for e in range(14, -1, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStats:
    """What an index found of what there was, for rows that its centroids were not fitted on."""

    lists: int
    head: int
    """Bytes at the file's beginning that say how the rest is laid out."""
    head_crc32: int
    k: int
    efforts: list[float]
    """Shares of the lists looked into."""
    recalls: list[float]
    """Mean over the rows of the share of the k nearest, of either sign, that was found. A fraction
    of 1 is to look at every row, without the index."""

    @property
    def probe_fraction(self) -> float:
        """The least that reaches a recall of 0.95."""
        good = [e for e, r in zip(self.efforts, self.recalls, strict=True) if r >= TARGET_RECALL]
        return min(good, default=1.0)

    @property
    def recall(self) -> float:
        return self.recalls[self.efforts.index(self.probe_fraction)]


def build_index(path: Path, vectors: Vectors, seed: int = 0) -> IndexStats:
    """Write the index of `vectors`. Holds one 8-bit copy of them, after 200,000 in float32."""
    faiss = _faiss()
    n, d = len(vectors), vectors.dimension
    lists = 2 ** round(np.log2(2 * np.sqrt(n)))
    order = np.random.default_rng(seed).permutation(n)
    index = faiss.index_factory(d, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed = KMEANS_ITERATIONS, seed + 1
    index.cp.min_points_per_centroid = 1
    with _one_thread():
        index.train(_sample(vectors, np.sort(order[:TRAIN_ROWS])))
        _fill(index, vectors)
    faiss.write_index(index, str(path))
    k, recalls = _recalls(AnnIndex(index), vectors, np.sort(order[-RECALL_SAMPLE:]))
    head = min(path.stat().st_size, lists * (4 * d + 16) + 16 * d + 65_536)
    return IndexStats(
        lists=lists, head=head, head_crc32=checksum(path, head), k=k, efforts=list(PROBE_FRACTIONS),
        recalls=recalls,
    )  # fmt: skip


def _sample(vectors: Vectors, rows: Int[Array, " m"]) -> Float[Array, "m d"]:
    """Rows in float32. Some at a time, since pages of the file count as memory while mapped."""
    sample = np.empty((len(rows), vectors.dimension), np.float32)
    for start in range(0, len(rows), SAMPLE_BLOCK):
        sample[start : start + SAMPLE_BLOCK] = vectors.gather(rows[start : start + SAMPLE_BLOCK])
        vectors.forget()
    return sample


def _fill(index: Any, vectors: Vectors) -> None:
    """Add all rows to lists of the right size: lists that grow take up to twice their memory."""
    faiss, keys = _faiss(), []
    for _, block in vectors.blocks():
        keys.append(index.quantizer.search(block, 1)[1].ravel())
        vectors.forget()
    lists = faiss.downcast_InvertedLists(index.invlists)
    for number, count in enumerate(np.bincount(np.concatenate(keys), minlength=index.nlist)):
        lists.resize(number, int(count))
        lists.resize(number, 0)  # its memory stays
    for (_, block), nearest in zip(vectors.blocks(), keys, strict=True):
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(nearest))
        vectors.forget()


class AnnIndex:
    """An index, in memory or on disk."""

    def __init__(self, index: Any) -> None:
        """Args:
        index: Of Faiss.
        """
        self._index = index
        self._centroids = index.quantizer.reconstruct_n(0, index.nlist)

    @classmethod
    def open(cls, path: Path, measured: IndexStats) -> "AnnIndex":
        """What `build_index` wrote, by memory map.

        Raises:
            SpaceError: If its head is not as it was written.
        """
        if checksum(path, measured.head) != measured.head_crc32:
            raise SpaceError(f"{path} is broken: its head has another checksum than when written")
        faiss = _faiss()
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))

    def search(
        self,
        aims: Float[Array, "b d"],
        k: int,
        metric: Metric,
        probe_fraction: float,
        allowed: Bool[Array, " n"] | None,
    ) -> list[tuple[Int[Array, " _"], Float[Array, " _"]]]:
        """For each aim at most k rows of either sign, with their approximate |cosine|."""
        faiss = _faiss()
        lists = max(1, round(probe_fraction * len(self._centroids)))
        narrow = aims.astype(np.float32)
        keys, products = _probes(narrow @ self._centroids.T, lists, metric)
        asked = np.concatenate([narrow, -narrow]) if metric == "abs_cosine" else narrow
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=keys.shape[1])
        scores = np.empty((len(asked), k), np.float32)
        rows = np.empty((len(asked), k), np.int64)
        arrays = [np.ascontiguousarray(a) for a in (asked, keys, products)]
        given = [faiss.swig_ptr(a) for a in (*arrays, scores, rows)]
        with _one_thread():  # the plain method of Faiss's Python takes no parameters
            self._index.search_preassigned_c(len(asked), given[0], k, *given[1:], False, parameters)
        if metric == "abs_cosine":
            rows = np.concatenate([rows[: len(aims)], rows[len(aims) :]], axis=1)
            scores = np.concatenate([scores[: len(aims)], scores[len(aims) :]], axis=1)
        return [_distinct(r, s) for r, s in zip(rows, scores, strict=True)]


def _probes(
    products: Float[Array, "b lists"], lists: int, metric: Metric
) -> tuple[Int[Array, "a p"], Float[Array, "a p"]]:
    """The lists to look into, a line an aim and, after them, a line for each opposite; -1 pads."""
    sizes = np.abs(products) if metric == "abs_cosine" else products
    chosen = np.argpartition(-sizes, lists - 1, axis=1)[:, :lists].astype(np.int64)
    values = np.take_along_axis(products, chosen, axis=1)
    if metric != "abs_cosine":
        return chosen, values
    order = np.argsort(-values, axis=1, kind="stable")
    chosen, values = np.take_along_axis(chosen, order, 1), np.take_along_axis(values, order, 1)
    keys = np.concatenate([np.where(values >= 0, chosen, -1), np.where(values < 0, chosen, -1)])
    return keys, np.concatenate([values, -values])


def _distinct(
    rows: Int[Array, " m"], scores: Float[Array, " m"]
) -> tuple[Int[Array, " c"], Float[Array, " c"]]:
    """Each row once, without padding; a row is in one list, so it is met with one sign alone."""
    found = rows >= 0
    return rows[found], scores[found]


def _recalls(
    index: AnnIndex, vectors: Vectors, probes: Int[Array, " p"]
) -> tuple[int, list[float]]:
    """Of the k nearest rows of each probe, the share that is found at each probe_fraction."""
    k = min(1000, max(1, len(vectors) // 50))
    aims = vectors.gather(probes).astype(np.float64)
    aims = aims[aims.any(axis=1)]
    if not len(aims):
        return k, [1.0] * len(PROBE_FRACTIONS)
    pools = [TopK(k, vectors.dimension) for _ in aims]
    narrow = aims.astype(np.float32).T
    for rows, block in vectors.blocks():
        for pool, scores in zip(pools, np.abs(block @ narrow).T, strict=True):
            pool.offer(rows, scores)
        vectors.forget()
    exact = []
    for aim, pool in zip(aims, pools, strict=True):
        scores = cosines(aim, vectors.gather(pool.rows))
        exact.append(pool.rows[top_k(scores, pool.rows, k, "abs_cosine")])
    recalls = []
    for probe_fraction in PROBE_FRACTIONS[:-1]:
        found = index.search(aims, k, "abs_cosine", probe_fraction, None)
        shares = []
        for nearest, (rows, scores) in zip(exact, found, strict=True):
            best = rows[np.argsort(-scores, kind="stable")[:k]]
            shares.append(len(np.intersect1d(nearest, best)) / k)
        recalls.append(float(np.mean(shares)))
    return k, [*recalls, 1.0]


def _faiss() -> Any:
    return importlib.import_module("faiss")  # its stubs know half of it


@contextmanager
def _one_thread() -> Iterator[None]:
    """Faiss on one thread, here only: two on busy cores are slower than one."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
