"""A drop-in for activeft's `Retriever` that selects exactly: only the import changes.

    from whet.integrations.activeft import Retriever  # was: from activeft.sift import Retriever

It accepts the arguments of activeft 0.1.1 (`llambda`) and of its development version (`lambda_`,
`alpha`), and returns the same tuple. Where activeft 0.1.1 is correct (unit vectors, K ≤ 1000, one
thread, a new object), the picks are the same; otherwise they are those that SIFT defines (arXiv
2410.08020, SIFT(λ') of Section 4).

Intended differences:

* `values` always contain the negative posterior variance after each pick, summed over the query's
  embeddings. They rise towards 0.
* Embeddings are normalized for the selection, as in Section 4.2 of the paper; `normalize=False`
  uses them unchanged. The returned embeddings are those of the index in both cases.
* `fast=True` returns the exact result. activeft's queue is exact only where gains never increase,
  and takes longer than the exact selection here.
* `alpha` stops at the first step above the threshold, and steps far beyond it are not computed.
* No state is carried between calls, no process is started, and no global setting or random state
  is changed.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from whet.integrations.faiss_candidates import FaissCandidates
from whet.maths.arrays import Array, as_count, as_positive, check_matrix, normalize_rows
from whet.maths.posterior import Posterior
from whet.select.selection import Selection
from whet.select.sift import sift


class RetrievalTime(NamedTuple):
    """Seconds in the index and in the selection, summed over the queries."""

    faiss: float
    sift: float


class _Result(NamedTuple):
    """What `search` returns for one query."""

    values: Float[Array, " n"]
    indices: Int[Array, " n"]
    embeddings: Float[Array, "n d"]
    time: RetrievalTime


class Retriever:
    """Retrieves candidates with a Faiss index, then selects among them with SIFT.

    >>> import faiss, numpy as np
    >>> index = faiss.IndexFlatIP(2)
    >>> index.add(np.eye(2, dtype=np.float32))
    >>> values, indices, embeddings, time = Retriever(index).search(np.array([[0.6, 0.8]]), N=2)
    >>> indices.tolist()
    [1, 0]

    Args:
        index: An index with `search_and_reconstruct`, or with `search` if `vectors` is passed.
        acquisition_function: A whet selector to use instead of `sift`, such as `whet.nearest`.
        llambda: λ', the variance of the observation noise [default: 0.01].
        fast: Ignored; the result is always exact.
        also_query_opposite: Retrieve candidates by the absolute inner product, because SIFT also
            learns from opposite embeddings. Requires an index of inner products.
        only_faiss: Keep the order of the index, each candidate once.
        device: Ignored, with a warning unless it is the CPU, where selection runs.
        lambda_: Later name of `llambda`.
        alpha: Stop before the first step m with σ_m > 1 / (α m).
        normalize: Select on unit vectors.
        vectors: The exact embeddings, for an index that cannot return them or returns compressed
            ones: rows by id, a dictionary from id to vector, or, if the ids of an `IndexIDMap` are
            not row numbers, one row per vector in the order of adding.

    In activeft's development version `alpha` is the sixth argument, before `only_faiss`: a sixth
    argument that is not True or False is taken as `alpha`, and a seventh one that is as
    `only_faiss`.
    """

    def __init__(
        self,
        index: Any,
        acquisition_function: Callable[..., Selection] | Any = None,
        llambda: float | None = None,
        fast: bool = False,
        also_query_opposite: bool = True,
        only_faiss: bool | float | None = False,
        device: Any = None,
        *,
        lambda_: float | None = None,
        alpha: float | None = None,
        normalize: bool = True,
        vectors: Any = None,
    ) -> None:
        if not isinstance(only_faiss, bool | np.bool_):  # the order of the development version
            if only_faiss is not None and alpha is not None:
                raise ValueError(
                    f"only_faiss is {only_faiss!r} and alpha is {alpha!r}: expected True or False "
                    "for only_faiss; pass alpha once"
                )
            alpha = alpha if only_faiss is None else only_faiss
            only_faiss = False
            if isinstance(device, bool | np.bool_):
                only_faiss, device = bool(device), None
        elif isinstance(device, bool | np.bool_):
            raise ValueError(f"device is {device}: expected a device such as 'cpu'")
        if llambda is not None and lambda_ is not None:
            raise ValueError(
                f"llambda is {llambda} and lambda_ is {lambda_}: these are one setting, pass one"
            )
        lam = lambda_ if llambda is None else llambda
        self._lam = as_positive(0.01 if lam is None else lam, "lambda_")
        self._alpha = None if alpha is None else as_positive(alpha, "alpha")
        self._selector = _selector(acquisition_function, bool(only_faiss))
        self._candidates = FaissCandidates(index, both_signs=also_query_opposite, vectors=vectors)
        self._only_faiss = bool(only_faiss)
        self._normalize = normalize
        self.index = index
        if device is not None and str(device) != "cpu":
            warnings.warn(f"device {device} is not used: selection runs on the CPU", stacklevel=2)

    def search(
        self,
        query: Any,
        N: int,
        K: int | None = None,
        mean_pooling: bool = False,
        threads: int = 1,
    ) -> tuple[Float[Array, " n"], Int[Array, " n"], Float[Array, "n d"], RetrievalTime]:
        """Select `N` candidates for one query of m embeddings, [m, d], or of one, [d].

        Like `batch_search` with one query, but without padding: with `alpha`, n ≤ N and may be 0.

        Returns:
            Values, indices and embeddings of the picks, and the time spent.
        """
        [result] = self._search([query], N, K, mean_pooling, threads)
        return result.values, result.indices, result.embeddings, result.time

    def batch_search(
        self,
        queries: Any,
        N: int,
        K: int | None = None,
        mean_pooling: bool = False,
        threads: int = 1,
    ) -> tuple[Float[Array, "q n"], Int[Array, "q n"], Float[Array, "q n d"], RetrievalTime]:
        """Select `N` candidates for each query, [q, m, d] or [q, d]; row i belongs to query i.

        Memory holds the candidates of one query per thread. With `alpha`, n is the largest number
        of picks of a query; shorter rows are padded as in Faiss: index −1, value and embedding NaN.

        Args:
            queries: Each query's embeddings; m may differ between queries.
            N: Number of picks, with repetition. It may exceed K, except for selectors that pick
                each candidate at most once.
            K: Number of candidates to retrieve, by the mean of a query's embeddings [default: all
                of the index]. A number larger than the index means all.
            mean_pooling: Use the mean of a query's embeddings as the only target.
            threads: Number of queries to process at once; Faiss's threads are set in Faiss.

        Returns:
            Values, indices and embeddings of the picks, and the time spent.

        Raises:
            ValueError: If the index is empty, or an argument is out of range, is not finite, has
                another shape, or contains a zero vector.
        """
        results = self._search(queries, N, K, mean_pooling, threads)
        n = max((len(result.values) for result in results), default=N)
        values = np.full((len(results), n), np.nan)
        indices = np.full((len(results), n), -1, dtype=np.int64)
        embeddings = np.full((len(results), n, self.index.d), np.nan, dtype=np.float32)
        for i, result in enumerate(results):
            picks = slice(len(result.values))
            values[i, picks], indices[i, picks] = result.values, result.indices
            embeddings[i, picks] = result.embeddings
        time = RetrievalTime(
            faiss=sum(result.time.faiss for result in results),
            sift=sum(result.time.sift for result in results),
        )
        return values, indices, embeddings, time

    def _search(
        self, queries: Any, N: int, K: int | None, mean_pooling: bool, threads: int
    ) -> list[_Result]:
        n, threads = as_count(N, "N"), as_count(threads, "threads")
        if self.index.ntotal == 0:
            raise ValueError("the index is empty: add vectors before searching")
        k = self.index.ntotal if K is None else as_count(K, "K")
        targets = [_targets(query, i, self.index.d) for i, query in enumerate(queries)]

        def search_one(query: Float[Array, "m d"]) -> _Result:
            return self._search_one(query, n, k, mean_pooling)

        if threads == 1 or len(targets) < 2:
            return [search_one(query) for query in targets]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(search_one, targets))  # in the order of the queries

    def _search_one(
        self, query: Float[Array, "m d"], n: int, k: int, mean_pooling: bool
    ) -> _Result:
        start = perf_counter()
        mean = query.mean(axis=0)
        if not mean.any() and (mean_pooling or k < self.index.ntotal):
            raise ValueError(
                "the mean of a query's embeddings is the zero vector, so no candidate is nearest: "
                "pass K=None and mean_pooling=False"
            )
        ids, rows = self._candidates.search(mean, k)
        if not self._only_faiss:  # SIFT's ties go to the lowest id
            order = np.argsort(ids)
            ids, rows = ids[order], rows[order]
        retrieved = perf_counter()
        targets, candidates = (
            (normalize_rows(query), normalize_rows(rows)) if self._normalize else (query, rows)
        )
        targets = targets.mean(axis=0, keepdims=True) if mean_pooling else targets
        selection = self._select(targets, check_matrix(candidates, "the index"), n)
        time = RetrievalTime(retrieved - start, perf_counter() - retrieved)
        picks = selection.indices
        return _Result(-selection.variance[1:], ids[picks], rows[picks], time)

    def _select(self, targets: Float[Array, "m d"], rows: Float[Array, "k d"], n: int) -> Selection:
        target = targets[0] if len(targets) == 1 else targets
        if self._alpha is None:
            return self._selector(target, rows, n, lam=self._lam)
        steps = min(4, n)  # stopping early saves most steps; stopping late costs a third more
        while True:
            selection = self._selector(target, rows, steps, lam=self._lam)
            stopped = selection.stop_at(self._alpha)
            if len(stopped) < steps or steps == n:
                return stopped
            steps = min(4 * steps, n)


def _selector(function: Any, only_faiss: bool) -> Callable[..., Selection]:
    if function is None:
        return _in_order if only_faiss else sift
    if only_faiss:
        raise ValueError("only_faiss=True keeps the order of the index: drop acquisition_function")
    if not callable(function):
        raise ValueError(
            f"acquisition_function is {function!r}: expected a whet selector such as whet.nearest; "
            "drop it for SIFT, which activeft calls VTL"
        )
    return function  # type: ignore[no-any-return]


def _in_order(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The first `n` candidates in their order, with the variance after each."""
    if n > len(candidates):
        raise ValueError(
            f"N is {n}, but only_faiss takes each of {len(candidates)} candidates at most once: "
            "lower N or raise K"
        )
    total = np.zeros(n + 1)
    for target in np.atleast_2d(prompt):
        posterior = Posterior(candidates[:n], target, lam=lam)
        total[0] += posterior.target_variance
        for step in range(n):
            posterior.observe(step)
            total[step + 1] += posterior.target_variance
    return Selection(np.arange(n), -np.diff(total), total)


def _targets(query: Any, number: int, d: int) -> Float[Array, "m d"]:
    """A query's embeddings, checked; a single vector is a query of one."""
    name = f"query {number}"
    rows = check_matrix(query[None] if getattr(query, "ndim", None) == 1 else query, name)
    if rows.shape[1] != d:
        raise ValueError(f"{name} has {rows.shape[1]} dimensions, but the index has {d}")
    if not rows.any(axis=1).all():
        raise ValueError(f"{name} contains a zero vector, about which no candidate is informative")
    return rows.astype(np.float64)
