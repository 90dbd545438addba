"""activeft's `Retriever` on exact selection: change the import and keep the calls.

    from whet.integrations.activeft import Retriever  # was: from activeft.sift import Retriever

Takes the arguments of activeft 0.1.1 (`llambda`) and of its later head (`lambda_`, `alpha`) and
returns the same tuple. Where activeft 0.1.1 is right (unit vectors, K ≤ 1000, one thread, a fresh
object) the picks are the same; elsewhere they are what SIFT defines (arXiv 2410.08020, Eq. 3).

What differs, on purpose:

* `values` always mean one thing: minus the posterior variance, summed over the query's embeddings,
  that is left after each pick. They rise towards 0.
* Embeddings are normalised for the selection, as in Section 4.2 of the paper; `normalize=False`
  takes them as they are. The embeddings that come back are those of the index either way.
* `fast=True` gives the exact answer: it takes less time here than activeft's queue, whose answer is
  exact only where gains never rise.
* `alpha` stops at the first step over the line, and what lies far beyond is not computed.
* No state is kept between calls, no process is started, no global setting or random state touched.
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
    """Seconds spent, summed over the queries."""

    faiss: float
    sift: float


class _Answer(NamedTuple):
    values: Float[Array, " n"]
    indices: Int[Array, " n"]
    embeddings: Float[Array, "n d"]
    time: RetrievalTime


class Retriever:
    """Nominates candidates with a Faiss index, then chooses among them with SIFT.

    Args:
        index: An index with `search_and_reconstruct`; with `vectors`, one with `search`.
        acquisition_function: A whet selector in place of `sift`, such as `whet.nearest`.
        llambda: λ', the variance of the observation noise; 0.01 unless given.
        fast: Accepted; the answer is exact either way.
        also_query_opposite: Nominate by the absolute inner product, as SIFT learns from either
            sign. Needs an index of inner products.
        only_faiss: Keep the index's own order, each candidate once.
        device: Accepted; selection runs on the CPU, and another device is warned about.
        lambda_: `llambda` by its later name.
        alpha: Stop before the first step m with σ_m > 1 / (α m).
        normalize: Select on unit vectors.
        vectors: The exact embeddings by id, for an index that cannot give them back or gives
            back compressed ones.
    """

    def __init__(
        self,
        index: Any,
        acquisition_function: Callable[..., Selection] | Any = None,
        llambda: float | None = None,
        fast: bool = False,
        also_query_opposite: bool = True,
        only_faiss: bool = False,
        device: Any = None,
        *,
        lambda_: float | None = None,
        alpha: float | None = None,
        normalize: bool = True,
        vectors: Any = None,
    ) -> None:
        if llambda is not None and lambda_ is not None:
            raise ValueError(
                f"llambda is {llambda} and lambda_ is {lambda_}: they are one setting, give one"
            )
        given = lambda_ if llambda is None else llambda
        self._lam = as_positive(0.01 if given is None else given, "lambda_")
        self._alpha = None if alpha is None else as_positive(alpha, "alpha")
        self._selector = _selector(acquisition_function, only_faiss)
        self._nominator = FaissCandidates(index, both_signs=also_query_opposite, vectors=vectors)
        self._keeps_order = only_faiss
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
        """Choose `N` for one query of m embeddings, [m, d], or of one, [d].

        As `batch_search` of one, but with nothing padded: with `alpha`, n ≤ N and may be 0.
        """
        found = self._search([query], N, K, mean_pooling, threads)[0]
        return found.values, found.indices, found.embeddings, found.time

    def batch_search(
        self,
        queries: Any,
        N: int,
        K: int | None = None,
        mean_pooling: bool = False,
        threads: int = 1,
    ) -> tuple[Float[Array, "q n"], Int[Array, "q n"], Float[Array, "q n d"], RetrievalTime]:
        """Choose `N` for each of the queries, [q, m, d] or [q, d]; row i answers query i.

        Holds the candidates of one query a thread. With `alpha`, n is the most that a query keeps,
        and shorter rows end as Faiss ends them: index −1, value and embedding NaN.

        Args:
            queries: Each query's embeddings; m may differ between queries.
            N: Number of picks, with repetition; may exceed K, save where each is chosen once.
            K: Number of candidates that the index nominates, by the mean of a query's embeddings;
                all of the index unless given. More than it holds means all.
            mean_pooling: Make the mean of a query's embeddings the one target.
            threads: Queries that are worked on at once; Faiss's own threads are its own setting.

        Raises:
            ValueError: If the index is empty, or an argument is out of range, not finite, of
                another shape, or holds a zero vector.
        """
        answers = self._search(queries, N, K, mean_pooling, threads)
        n = max((len(found.values) for found in answers), default=N)
        values = np.full((len(answers), n), np.nan)
        indices = np.full((len(answers), n), -1, dtype=np.int64)
        embeddings = np.full((len(answers), n, self.index.d), np.nan, dtype=np.float32)
        for i, found in enumerate(answers):
            kept = slice(len(found.values))
            values[i, kept], indices[i, kept] = found.values, found.indices
            embeddings[i, kept] = found.embeddings
        faiss, chosen = (sum(found.time[part] for found in answers) for part in (0, 1))
        return values, indices, embeddings, RetrievalTime(faiss, chosen)

    def _search(
        self, queries: Any, N: int, K: int | None, mean_pooling: bool, threads: int
    ) -> list[_Answer]:
        n, threads = as_count(N, "N"), as_count(threads, "threads")
        if self.index.ntotal == 0:
            raise ValueError("the index is empty: add vectors before searching")
        k = self.index.ntotal if K is None else as_count(K, "K")
        targets = [_targets(query, i, self.index.d) for i, query in enumerate(queries)]

        def answer(query: Float[Array, "m d"]) -> _Answer:
            return self._answer(query, n, k, mean_pooling)

        if threads == 1 or len(targets) < 2:
            return [answer(query) for query in targets]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(answer, targets))  # in the order of the queries

    def _answer(self, query: Float[Array, "m d"], n: int, k: int, mean_pooling: bool) -> _Answer:
        start = perf_counter()
        mean = query.mean(axis=0)
        if not mean.any() and (mean_pooling or k < self.index.ntotal):
            raise ValueError(
                "the mean of a query's embeddings is the zero vector, which is like no candidate: "
                "pass K=None and mean_pooling=False"
            )
        ids, rows = self._nominator.nominate(mean, k)
        if not self._keeps_order:  # SIFT's ties go to the lowest id
            order = np.argsort(ids)
            ids, rows = ids[order], rows[order]
        middle = perf_counter()
        goals, candidates = (
            (normalize_rows(query), normalize_rows(rows)) if self._normalize else (query, rows)
        )
        goals = goals.mean(axis=0, keepdims=True) if mean_pooling else goals
        chosen = self._choose(goals, check_matrix(candidates, "the index"), n)
        spent = RetrievalTime(middle - start, perf_counter() - middle)
        picks = chosen.indices
        return _Answer(-chosen.variance[1:], ids[picks], rows[picks], spent)

    def _choose(self, goals: Float[Array, "m d"], rows: Float[Array, "k d"], n: int) -> Selection:
        target = goals[0] if len(goals) == 1 else goals
        if self._alpha is None:
            return self._selector(target, rows, n, lam=self._lam)
        tried = min(4, n)  # an early stop saves what lies beyond; a late one costs a third more
        while True:
            chosen = self._selector(target, rows, tried, lam=self._lam)
            kept = chosen.stop_at(self._alpha)
            if len(kept) < tried or tried == n:
                return kept
            tried = min(4 * tried, n)


def _selector(given: Any, only_faiss: bool) -> Callable[..., Selection]:
    if given is None:
        return _in_order if only_faiss else sift
    if only_faiss:
        raise ValueError("only_faiss=True keeps the index's order: drop acquisition_function")
    if not callable(given):
        raise ValueError(
            f"acquisition_function is {given!r}: expected a whet selector such as whet.nearest; "
            "drop it for SIFT, which is activeft's VTL"
        )
    return given  # type: ignore[no-any-return]


def _in_order(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The first `n` candidates as they come, with the variance that each leaves."""
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


def _targets(query: Any, place: int, d: int) -> Float[Array, "m d"]:
    """A query's embeddings, checked; a single vector is a query of one."""
    name = f"query {place}"
    rows = check_matrix(query[None] if getattr(query, "ndim", None) == 1 else query, name)
    if rows.shape[1] != d:
        raise ValueError(f"{name} has {rows.shape[1]} dimensions, but the index has {d}")
    if not rows.any(axis=1).all():
        raise ValueError(f"{name} holds a zero vector: no candidate tells anything about it")
    return rows.astype(np.float64)
