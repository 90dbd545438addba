"""SIFT-FAST: the paper's priority queue, exact only where gains never rise.

Source: SIFT, arXiv 2410.08020, Appendix on SIFT-FAST (Assumption C.1, submodularity). On embeddings
of text gains do rise (x* = e₁ with candidates (e₁ + e₂) / √2 and e₂: the second tells nothing until
the first is known), so that old gains are no upper bounds. `whet.sift` is exact, and faster.
"""

import heapq
from typing import Any

import numpy as np

from whet.maths.arrays import duplicate_groups
from whet.select.selection import GreedyState, Selection


def sift_lazy(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The `n` picks of a lazy priority queue: those of `sift` only if gains are submodular.

    Kept for comparison. Only the stale gain at the head of the queue is renewed, until it stays at
    the head. Raises as `sift` does.
    """
    trial = GreedyState(prompt, candidates, n, lam)
    gains = trial.posterior.gains()
    queue = [(-float(gains[i]), int(i)) for i in np.unique(duplicate_groups(trial.candidates))]
    heapq.heapify(queue)
    for _ in range(trial.n):
        gains = trial.posterior.gains()
        while True:
            _, i = queue[0]
            heapq.heapreplace(queue, (-float(gains[i]), i))
            if queue[0][1] == i:
                break
        trial.pick(i)
    return trial.selection()
