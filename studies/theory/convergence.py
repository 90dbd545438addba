"""Limits, rates and guarantees of observations for one prompt.

Source: arXiv 2410.08020, Appendix C (σ_∞, ψ, Assumption C.1, Theorem C.2) and K.4. The paper's text
of Proposition K.1 and of K.4 was not available; they are reconstructed from Eq. (2) and agree with
Section 2 and Appendix C.
"""

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array
from whet.maths.posterior import Posterior, irreducible_variance

SUBMODULAR = float(1 - np.exp(-1))  # Nemhauser et al. (1978): greedy's share of the best reduction
TOLERANCE = 1e-9  # relative to the gain (a thousandth of it relative to the prior): rounding


def uncertainty_reduction(
    prompt: Float[Array, " d"], observed: Float[Array, "n d"], lam: float
) -> float:
    """ψ_{x*}(X) = σ²_0(x*) − σ²_X(x*): the variance that observations remove; 0 without any."""
    kernel = observed @ observed.T + lam * np.eye(len(observed))
    cross = observed @ prompt
    return float(cross @ np.linalg.solve(kernel, cross))


def convergence_bound(
    prompt: Float[Array, " d"],
    candidates: Float[Array, "k d"],
    observed: Float[Array, "n d"],
    lam: float,
) -> float:
    """Theorem C.2's bound on σ²_n(x*) after SIFT's first n picks, `observed`.

        σ²_∞ + d (1 + 2 d λ' / λ_min) log(1 + λ̂_n / λ') / √n

    It holds under Assumption C.1 for candidates of at most unit length. λ_min is that of
    `spanning_subset`. The bound is vacuous (at least σ²_0) unless d is tiny or n is large.

    Raises:
        ValueError: If a candidate is longer than 1.
    """
    longest = float(np.linalg.norm(candidates, axis=1).max())
    if longest > 1 + 1e-6:
        raise ValueError(f"candidates contain a vector of length {longest}: expected at most 1")
    d, n = candidates.shape[1], len(observed)
    smallest = np.linalg.norm(candidates[spanning_subset(candidates)], -2) ** 2
    largest = np.linalg.norm(observed, 2) ** 2
    rate = d * (1 + 2 * d * lam / smallest) * np.log1p(largest / lam) / np.sqrt(n)
    return float(irreducible_variance(prompt, candidates) + rate)


def spanning_subset(candidates: Float[Array, "k d"]) -> Int[Array, " m"]:
    """Choose candidates that span all of them, each the farthest from the span of those before.

    The theorem allows any basis; this choice keeps its smallest eigenvalue away from zero.
    O(m k d).
    """
    residuals = candidates.copy()
    chosen: list[int] = []
    longest = np.linalg.norm(residuals, axis=1).max()
    for _ in range(min(candidates.shape)):
        lengths = np.linalg.norm(residuals, axis=1)
        farthest = int(lengths.argmax())
        if lengths[farthest] <= longest * max(candidates.shape) * np.finfo(float).eps:
            break
        axis = residuals[farthest] / lengths[farthest]
        residuals = residuals - np.outer(residuals @ axis, axis)
        chosen.append(farthest)
    return np.array(chosen, dtype=np.int64)


def repeated_variance(
    prompt: Float[Array, " d"], row: Float[Array, " d"], n: float, lam: float
) -> float:
    """σ² after `n` observations of one row: k** − n k*² / (n |row|² + λ'); `n` may be infinite.

    Proposition K.1: for unit vectors this is 1 − n cos² / (n + λ'), which never falls below
    1 − cos², however often the nearest neighbor is repeated.
    """
    length = float(row @ row)
    shrunk = length if np.isinf(n) else length + lam / n
    return float(prompt @ prompt - (prompt @ row) ** 2 / shrunk)


def repeat_threshold(lam: float, *, first: float = 1.0, other: float = 1.0) -> float:
    """The least cos²(x*, x) / cos²(x*, x₁) at which an orthogonal x beats repeating x₁.

    For unit vectors this is λ'/(2 + λ') of Appendix C.1. It is 0 as λ' → 0, where anything new is
    better, and 1 as λ' → ∞, where only closeness counts. For other lengths (K.4) it is

        |x₁|² / |x|² · λ' (|x|² + λ') / ((|x₁|² + λ') (2 |x₁|² + λ')).

    Args:
        first: Squared length of x₁.
        other: Squared length of x.
    """
    return first / other * lam * (other + lam) / ((first + lam) * (2 * first + lam))


def greedy_share(lam: float, *, longest: float = 1.0) -> float:
    """A share of the best reduction that SIFT's n picks reach for any candidates.

    This is 1 − exp(−γ) with γ = λ'/(`longest` + λ'), by Theorem 3.2 of Das & Kempe (2011): their
    predictors are the noisy responses, with repeats, and the smallest eigenvalue of the
    correlations is at least γ. It tends to `SUBMODULAR` as λ' grows and to 0 as λ' → 0. Where
    Assumption C.1 holds, the share is `SUBMODULAR` at any λ'. Not in the SIFT paper.

    Args:
        longest: Largest squared length of a candidate.
    """
    return float(-np.expm1(-lam / (longest + lam)))


def submodularity_violations(
    prompt: Float[Array, " d"],
    candidates: Float[Array, "k d"],
    order: Int[Array, " n"],
    lam: float,
) -> float:
    """The share of marginal gains, over all candidates and picks, that a pick of `order` raises.

    Under Assumption C.1 it is 0, Eq. (6), and a lazy priority queue is exact; the paper examines
    the gains along one path only. O(n k (d + n)).
    """
    posterior = Posterior(candidates, prompt, lam=lam)
    margin = TOLERANCE / 1000 * float(prompt @ prompt)
    before, violations = posterior.gains(), 0
    for pick in order:
        posterior.observe(int(pick))
        after = posterior.gains()
        violations += int(np.count_nonzero(after > before * (1 + TOLERANCE) + margin))
        before = after
    return violations / (len(order) * len(candidates))
