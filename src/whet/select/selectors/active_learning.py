"""Other rules of active learning, on embeddings alone: the posterior in place of a model's output.

Sources: transductive active learning, Hübotter et al. (arXiv 2402.15898): ITL, CTL and VTL with
the candidates themselves for targets, which is BAIT's rule (arXiv 2106.09675). Information density:
Settles & Craven (EMNLP 2008), Section 3, with the prompt in the place of the pool, as the activeft
library has it. There, CTL and ITL also take many targets; here the target is the prompt.
"""

from typing import Any

import numpy as np

from whet.maths.arrays import duplicate_groups
from whet.select.selection import GreedyState, Selection, argmax_first

KNOWN = 1e-12  # of the prior variance; a smaller posterior variance is rounding


def itl(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The observation that tells most about the prompt's response, in nats: I(f(x*); y_x | picks).

    With one prompt this is SIFT by another formula (App. G): the same variance after each pick.
    They part ways only where there are many targets. O(n k (d + n)).
    """
    trial = GreedyState(prompt, candidates, n, lam)
    for _ in range(trial.n):
        left = trial.posterior.target_variance
        share = trial.posterior.gains() / left if left > 0 else np.zeros(len(trial.candidates))
        trial.pick_best(-np.log1p(-np.minimum(share, 1 - KNOWN)) / 2)
    return trial.selection()


def ctl(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The candidate whose response is most correlated, with its sign, with the prompt's.

    Correlation knows no noise, so a candidate observed before may still be the most correlated.
    A candidate of no variance counts as uncorrelated. O(n k (d + n)).
    """
    trial = GreedyState(prompt, candidates, n, lam)
    prior = trial.posterior.variance.copy()
    for _ in range(trial.n):
        now = trial.posterior
        spread = np.sqrt(now.variance)
        unknown = (now.variance > KNOWN * prior) & (now.variance > 0)
        trial.pick_best(
            np.divide(now.covariance, spread, out=np.zeros(len(prior)), where=unknown)
        )  # the prompt's own spread is the same for all
    return trial.selection()


def undirected_vtl(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """The observation that lowers the summed variance of all candidates most (BAIT).

    Looks at the prompt only through the choice of candidates. O(k² (d + n)), memory O(k²): the
    candidates' whole covariance.
    """
    trial = GreedyState(prompt, candidates, n, lam)
    rows = trial.candidates.astype(np.float64)
    covariance, first = rows @ rows.T, duplicate_groups(trial.candidates)
    for _ in range(trial.n):
        noisy = np.maximum(np.diag(covariance), 0.0) + lam
        pick = first[argmax_first(np.einsum("ij,ij->j", covariance, covariance) / noisy)]
        trial.pick(int(pick))
        covariance -= np.outer(covariance[pick], covariance[pick]) / noisy[pick]
    return trial.selection()


def information_density(
    prompt: Any, candidates: Any, n: int, *, lam: float = 0.01, beta: float = 1.0
) -> Selection:
    """The largest posterior variance times the `beta`-th power of the cosine to the prompt.

    Negative cosines count as 0; `beta` = 0 is `uncertainty` among the candidates of positive
    cosine. The original takes a classifier's entropy where this takes σ². O(n k (d + n)).

    Raises:
        ValueError: As `sift`, and if `beta` is negative.
    """
    if not beta >= 0:
        raise ValueError(f"beta is {beta!r}: expected a number, 0 or more")
    trial = GreedyState(prompt, candidates, n, lam)
    relevance = np.maximum(trial.cosines(), 0.0)
    weight = np.where(relevance > 0, relevance**beta, 0.0)
    for _ in range(trial.n):
        trial.pick_best(trial.posterior.variance * weight)
    return trial.selection()
