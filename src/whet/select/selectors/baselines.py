"""Baseline selectors; each reports the posterior variance along its own order.

Sources: arXiv 2410.08020, Section 5 (NN, NN-F, US) and the appendix on SIFT-FAST, whose assumption
of submodular gains (C.1) does not hold on text embeddings: for x* = e₁ and candidates
(e₁ + e₂) / √2 and e₂, the second has no gain until the first is observed, so an old gain is not
an upper bound of the new one. MMR: Carbonell & Goldstein (SIGIR 1998), Section 2.
"""

import heapq

import numpy as np

from whet.maths.arrays import ArrayLike, as_seed, duplicate_groups, normalize_rows
from whet.select.selection import TIE, GreedyState, Selection, WithoutReplacement, argmax_first


def nearest(query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01) -> Selection:
    """Pick the `n` candidates of highest signed cosine, nearest first (NN). O(k d + n k).

    Args:
        query: Embedding of the query, [d].
        candidates: Embeddings of the candidates, [k, d].
        n: Number of picks, at most k.
        lam: λ', used only for the reported variance.

    Returns:
        The picks, nearest first.

    Raises:
        ValueError: As for `sift`; or if `n` exceeds the number of candidates, because each is
            picked at most once.

    >>> nearest([1.0, 0.2], [[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], n=2).indices.tolist()
    [1, 0]
    """
    picks = WithoutReplacement(query, candidates, n, lam, name="nearest")
    cosines = picks.state.cosines()
    for _ in range(n):
        picks.pick_best(cosines)
    return picks.selection()


def nearest_repeated(
    query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01
) -> Selection:
    """Pick the nearest candidate `n` times (NN-F).

    The variance stays above 1 − cos² for any `n` (Proposition K.1). O(k d + n k). Raises as `sift`.
    """
    state = GreedyState(query, candidates, n, lam)
    best = argmax_first(state.cosines())
    for _ in range(state.n):
        state.pick(best)
    return state.selection()


def nearest_product(
    query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01
) -> Selection:
    """Pick the `n` candidates of largest inner product with the query, largest first. O(k d + n k).

    On unit vectors it is `nearest`. On others it favors long vectors, as the search for nearest
    neighbors by Faiss does (arXiv 2410.08020, Figure 11). The candidates are proposed by cosine: to
    rank all documents, pass their number as `k`. Raises as `nearest`.
    """
    picks = WithoutReplacement(query, candidates, n, lam, name="nearest-product")
    products = picks.state.products()
    for _ in range(n):
        picks.pick_best(products)
    return picks.selection()


def uncertainty(query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01) -> Selection:
    """Pick the candidate of largest posterior variance at each step (US).

    Among equal variances the candidate nearest to the query is picked; otherwise the query only
    matters through the choice of the candidates. O(n k (d + n)). Raises as `sift`.
    """
    state = GreedyState(query, candidates, n, lam)
    similarity = np.abs(state.cosines())
    for _ in range(state.n):
        variance = state.posterior.variance
        tied = variance >= variance.max() * (1 - TIE)
        state.pick_best(np.where(tied, similarity, -1.0))
    return state.selection()


def random_selection(
    query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01, seed: int = 0
) -> Selection:
    """Pick `n` different candidates uniformly at random; `seed` determines which.

    Raises as `nearest`.
    """
    picks = WithoutReplacement(query, candidates, n, lam, name="random")
    order = np.random.default_rng(as_seed(seed)).permutation(len(picks.state.candidates))
    for index in order[:n]:
        picks.pick(int(index))
    return picks.selection()


def mmr(
    query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01, balance: float = 0.5
) -> Selection:
    """Pick by maximal marginal relevance: near the query and far from every earlier pick. O(n k d).

    Each step picks the largest `balance`·cos(x, query) − (1 − `balance`)·max cos(x, earlier pick).
    With `balance` 1 this is `nearest`; with 0 the query determines the first pick only.

    Raises:
        ValueError: As for `nearest`, or if `balance` is not in [0, 1].
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance is {balance!r}: expected a number from 0 to 1")
    picks = WithoutReplacement(query, candidates, n, lam, name="mmr")
    rows, relevance = normalize_rows(picks.state.candidates), picks.state.cosines()
    last = picks.pick_best(relevance)
    redundancy = np.full(len(rows), -1.0)
    for _ in range(n - 1):
        redundancy = np.maximum(redundancy, rows @ rows[last])
        last = picks.pick_best(balance * relevance - (1 - balance) * redundancy)
    return picks.selection()


def sift_lazy(query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = 0.01) -> Selection:
    """Pick with a lazy priority queue (SIFT-FAST): the picks of `sift` only if gains never rise.

    Only the stale gain at the head of the queue is recomputed, until it stays at the head. Kept for
    comparison; `sift` is exact, and faster. Raises as `sift`.
    """
    state = GreedyState(query, candidates, n, lam)
    gains = state.posterior.gains()
    queue = [(-float(gains[i]), int(i)) for i in np.unique(duplicate_groups(state.candidates))]
    heapq.heapify(queue)
    for _ in range(state.n):
        gains = state.posterior.gains()
        while True:
            _, i = queue[0]
            heapq.heapreplace(queue, (-float(gains[i]), i))
            if queue[0][1] == i:
                break
        state.pick(i)
    return state.selection()
