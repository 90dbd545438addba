"""Faiss index of a large segment: it proposes candidates, which are scored by their stored vectors.

The index has inverted lists of 8-bit vectors (IVF,SQ8); it is written once and opened by memory
map. A list contains the rows around one centroid. A search probes the lists whose centroids have
the largest |product| with the query: those of positive sign for the query, those of negative sign
for its opposite. Neighbors of both signs therefore cost as much as those of one.

The design avoids these problems of Faiss: lists on disk lose recall when rows are added, and a file
overwritten while mapped is a bus error, so files never change; compressed indexes return no
vectors, or wrong ones, so vectors are stored separately; the parser trusts its input, so the
checksum of the header is verified before it is parsed.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.errors import SpaceError
from whet.io import checksum
from whet.maths.arrays import Array
from whet.space.store.protocol import Metric
from whet.space.store.segments.vectors import TopK, VectorFile, cosines, top_k

MIN_ROWS = 50_000  # scanning fewer rows is as fast as an index
TRAIN_ROWS = 100_000  # sample for k-means
KMEANS_ITERATIONS = 10
SAMPLE_BLOCK = 8192  # rows of the sample read at a time
RECALL_SAMPLE = 64  # queries for measuring recall
TARGET_RECALL = 0.95  # of the default probe fraction
STABLE = 0.02  # share of the k nearest that the last doubling of a search may add
FEW_HIDDEN = 0.01  # share of hidden rows up to which the measured recall holds
STABLE_K = 100  # neighbors whose changes are counted, if fewer are searched
PROBE_FRACTIONS = tuple(2.0 ** (-e / 2) for e in range(14, -1, -1))
Candidates = tuple[Int[Array, " _"], Float[Array, " _"]]
"""Rows with their approximate scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStats:
    """Layout and measured recall of an index; the field names are part of the on-disk format."""

    lists: int
    """Number of inverted lists."""
    head: int
    """Size of the file's header, which describes the layout of the rest, in bytes."""
    head_crc32: int
    """Checksum of the header."""
    k: int
    """Number of neighbors for which recall was measured."""
    efforts: list[float]
    """Probe fractions: shares of the lists that are searched."""
    recalls: list[float]
    """Mean share of the k nearest rows, by |cosine|, found at each probe fraction. The queries are
    rows on which the centroids were not fitted. At 1 all rows are scanned, without the index."""

    @property
    def probe_fraction(self) -> float:
        """The smallest probe fraction with a recall of at least 0.95."""
        pairs = zip(self.efforts, self.recalls, strict=True)
        return min((e for e, recall in pairs if recall >= TARGET_RECALL), default=1.0)

    @property
    def recall(self) -> float:
        """Recall at the default probe fraction."""
        return self.recalls[self.efforts.index(self.probe_fraction)]


def build_index(path: Path, vectors: VectorFile, seed: int = 0) -> IndexStats:
    """Write an index of `vectors` to `path`.

    Memory: one 8-bit copy of the vectors and 200,000 vectors in float32.
    """
    faiss = _faiss()
    n, d = len(vectors), vectors.dimension
    lists = 2 ** round(np.log2(2 * np.sqrt(n)))
    order = np.random.default_rng(seed).permutation(n)
    index = faiss.index_factory(d, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed = KMEANS_ITERATIONS, seed + 1
    index.cp.min_points_per_centroid = 1
    with _single_thread():
        index.train(_sample(vectors, np.sort(order[:TRAIN_ROWS])))
        _fill(index, vectors)
    faiss.write_index(index, str(path))
    k, recalls = _measure_recall(AnnIndex(index), vectors, np.sort(order[-RECALL_SAMPLE:]))
    head = min(path.stat().st_size, lists * (4 * d + 16) + 16 * d + 65_536)
    return IndexStats(
        lists=lists, head=head, head_crc32=checksum(path, head), k=k, efforts=list(PROBE_FRACTIONS),
        recalls=recalls,
    )  # fmt: skip


def _sample(vectors: VectorFile, rows: Int[Array, " m"]) -> Float[Array, "m d"]:
    """The given rows in float32, read in blocks because mapped pages count as memory in use."""
    sample = np.empty((len(rows), vectors.dimension), np.float32)
    for start in range(0, len(rows), SAMPLE_BLOCK):
        block = rows[start : start + SAMPLE_BLOCK]
        sample[start : start + SAMPLE_BLOCK] = vectors.gather(block)
        vectors.release_memory()
    return sample


def _fill(index: Any, vectors: VectorFile) -> None:
    """Add all rows to lists of the right size; lists that grow use up to twice the memory."""
    faiss, nearest_lists = _faiss(), []
    for _, block in vectors.blocks():
        nearest_lists.append(index.quantizer.search(block, 1)[1].ravel())
        vectors.release_memory()
    lists = faiss.downcast_InvertedLists(index.invlists)
    sizes = np.bincount(np.concatenate(nearest_lists), minlength=index.nlist)
    for number, size in enumerate(sizes):
        lists.resize(number, int(size))
        lists.resize(number, 0)  # keeps the allocated memory
    for (_, block), nearest in zip(vectors.blocks(), nearest_lists, strict=True):
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(nearest))
        vectors.release_memory()


class AnnIndex:
    """An approximate index, in memory or on disk."""

    def __init__(self, index: Any) -> None:
        """Wrap a Faiss index."""
        self._index = index
        self._centroids = index.quantizer.reconstruct_n(0, index.nlist)

    @classmethod
    def open(cls, path: Path, stats: IndexStats) -> "AnnIndex":
        """Memory-map an index that `build_index` wrote.

        Raises:
            SpaceError: If its header was changed.
        """
        if checksum(path, stats.head) != stats.head_crc32:
            raise SpaceError(f"{path} is broken: its head has another checksum than when written")
        faiss = _faiss()
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))

    def search(
        self, queries: Float[Array, "b d"], k: int, metric: Metric, probe_fraction: float
    ) -> list[Candidates]:
        """Candidates of each query among all rows: rows with their approximate scores.

        With `abs_cosine`, there are at most k of either sign.
        """
        lists = max(1, round(probe_fraction * len(self._centroids)))
        narrow = queries.astype(np.float32)
        keys, products = _choose_lists(narrow @ self._centroids.T, lists, metric)
        both_signs = metric == "abs_cosine"
        signed = np.concatenate([narrow, -narrow]) if both_signs else narrow
        rows, scores = self._search_lists(signed, keys, products, k)
        if both_signs:  # a row is in one list, so it has been found with one sign only
            rows = np.concatenate([rows[: len(queries)], rows[len(queries) :]], axis=1)
            scores = np.concatenate([scores[: len(queries)], scores[len(queries) :]], axis=1)
        if (rows >= self._index.ntotal).any():
            raise SpaceError("index.faiss is broken: `whet space verify` names its folder")
        return [(r[r >= 0], s[r >= 0]) for r, s in zip(rows, scores, strict=True)]

    def search_visible(
        self,
        query: Float[Array, " d"],
        k: int,
        metric: Metric,
        probe_fraction: float,
        visible: Bool[Array, " n"],
        *,
        until_stable: bool,
    ) -> Candidates | None:
        """Candidates of one query among the visible rows, wherever these are.

        Lists without visible rows are skipped, and the share is that of the visible rows. The
        share at which recall was measured says little here: what a filter leaves may lie far from
        the query, spread over many lists. If lists near the query have hidden rows, the share is
        therefore doubled until that adds hardly any of the k nearest. Each list is searched with
        both signs.

        Args:
            query: A unit vector.
            k: Number of neighbors.
            metric: As of `Reader.search`.
            probe_fraction: The share of the visible rows to search, at first.
            visible: The rows that count.
            until_stable: Whether to double the share; otherwise it grows only to reach k rows.

        Returns:
            Rows with their approximate scores; None if scanning all visible rows is about as fast.
        """
        counts = np.bincount(self._row_lists[visible], minlength=len(self._centroids))
        products = self._centroids @ query.astype(np.float32)
        sizes = np.abs(products) if metric == "abs_cosine" else products
        order = np.argsort(-sizes, kind="stable")
        usual = order[: max(1, round(probe_fraction * len(order)))]
        if counts[usual].sum() >= (1 - FEW_HIDDEN) * self._list_sizes[usual].sum():
            until_stable = False
        order = order[counts[order] > 0]
        covered = np.cumsum(counts[order])
        total = int(covered[-1]) if len(covered) else 0
        if until_stable:
            k = max(k, STABLE_K)
        target, start = max(probe_fraction * total, 2.0 * k, float(counts[usual].sum())), 0
        rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        while target <= (total / 2 if until_stable else total):
            stop = int(np.searchsorted(covered, target)) + 1
            new = self._search_both_signs(query, k, metric, order[start:stop], products, visible)
            rows = np.concatenate([rows, new[0]])
            scores = np.concatenate([scores, new[1]])
            best = np.argsort(-scores, kind="stable")[:k]
            added = np.count_nonzero(best >= len(rows) - len(new[0]))
            if not until_stable or (start and added <= STABLE * k):
                return rows, scores
            start, target = stop, 2 * target
        return None

    def _search_both_signs(
        self,
        query: Float[Array, " d"],
        k: int,
        metric: Metric,
        lists: Int[Array, " p"],
        products: Float[Array, " lists"],
        visible: Bool[Array, " n"],
    ) -> Candidates:
        """At most k visible rows of the given lists, each with the larger of its scores."""
        signs = (1, -1) if metric == "abs_cosine" else (1,)
        signed = np.stack([sign * query.astype(np.float32) for sign in signs])
        keys = np.stack([lists.astype(np.int64)] * len(signs))
        values = np.stack([sign * products[lists] for sign in signs])
        rows, scores = self._search_lists(signed, keys, values, k, visible)
        rows, scores = rows[rows >= 0], scores[rows >= 0]
        order = np.argsort(-scores, kind="stable")
        distinct = order[np.sort(np.unique(rows[order], return_index=True)[1])][:k]
        return rows[distinct], scores[distinct]

    def _search_lists(
        self,
        queries: Float[Array, "b d"],
        keys: Int[Array, "b p"],
        products: Float[Array, "b p"],
        k: int,
        visible: Bool[Array, " n"] | None = None,
    ) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
        """The k rows of the lists `keys` with the largest products, padded with row -1."""
        faiss, selector = _faiss(), None
        if visible is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(visible, bitorder="little"))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=keys.shape[1])
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        inputs = [np.ascontiguousarray(a) for a in (queries, keys, products)]
        x, *pointers = [faiss.swig_ptr(a) for a in (*inputs, scores, rows)]
        with _single_thread():  # Faiss's Python method takes no parameters
            self._index.search_preassigned_c(len(queries), x, k, *pointers, False, parameters)
        return rows, scores

    @cached_property
    def _row_lists(self) -> Int[Array, " n"]:
        """The list that each row is in."""
        faiss = _faiss()
        lists = faiss.downcast_InvertedLists(self._index.invlists)
        numbers = np.zeros(self._index.ntotal, np.int32)
        for number in range(self._index.nlist):
            size = lists.list_size(number)
            if size:
                numbers[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
        return numbers

    @cached_property
    def _list_sizes(self) -> Int[Array, " lists"]:
        return np.bincount(self._row_lists, minlength=len(self._centroids))


def _choose_lists(
    products: Float[Array, "b lists"], lists: int, metric: Metric
) -> tuple[Int[Array, "a p"], Float[Array, "a p"]]:
    """The lists to probe, and the products with their centroids, padded with -1.

    With `abs_cosine`, the lines of the queries are followed by those of their opposites.
    """
    both_signs = metric == "abs_cosine"
    sizes = np.abs(products) if both_signs else products
    chosen = np.argpartition(-sizes, lists - 1, axis=1)[:, :lists].astype(np.int64)
    values = np.take_along_axis(products, chosen, axis=1)
    if not both_signs:
        return chosen, values
    order = np.argsort(-values, axis=1, kind="stable")
    chosen, values = np.take_along_axis(chosen, order, 1), np.take_along_axis(values, order, 1)
    keys = np.concatenate([np.where(values >= 0, chosen, -1), np.where(values < 0, chosen, -1)])
    return keys, np.concatenate([values, -values])


def _measure_recall(
    index: AnnIndex, vectors: VectorFile, sample: Int[Array, " p"]
) -> tuple[int, list[float]]:
    """The number of neighbors k, and the recall at k for each probe fraction."""
    k = min(1000, max(1, len(vectors) // 50))
    queries = vectors.gather(sample).astype(np.float64)
    queries = queries[queries.any(axis=1)]
    if not len(queries):
        return k, [1.0] * len(PROBE_FRACTIONS)
    exact = _exact_neighbors(queries, vectors, k)
    recalls = []
    for probe_fraction in PROBE_FRACTIONS[:-1]:
        results = index.search(queries, k, "abs_cosine", probe_fraction)
        shares = []
        for nearest, (rows, scores) in zip(exact, results, strict=True):
            best = rows[np.argsort(-scores, kind="stable")[:k]]
            shares.append(len(np.intersect1d(nearest, best)) / k)
        recalls.append(float(np.mean(shares)))
    return k, [*recalls, 1.0]


def _exact_neighbors(
    queries: Float[Array, "b d"], vectors: VectorFile, k: int
) -> list[Int[Array, " k"]]:
    tops = [TopK(k, vectors.dimension) for _ in queries]
    narrow = queries.astype(np.float32).T
    for rows, block in vectors.blocks():
        for top, scores in zip(tops, np.abs(block @ narrow).T, strict=True):
            top.offer(rows, scores)
        vectors.release_memory()
    exact = []
    for query, top in zip(queries, tops, strict=True):
        scores = cosines(query, vectors.gather(top.rows))
        exact.append(top.rows[top_k(scores, top.rows, k, "abs_cosine")])
    return exact


def _faiss() -> Any:
    return importlib.import_module("faiss")  # its type stubs are incomplete


@contextmanager
def _single_thread() -> Iterator[None]:
    """Run Faiss on one thread: on busy cores, two are slower than one."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
