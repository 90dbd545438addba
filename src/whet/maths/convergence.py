"""What observations can and cannot do for one prompt: limits, rates, thresholds, guarantees.

Source: arXiv 2410.08020, Appendix C (σ_∞, ψ, Assumption C.1, Theorem C.2) and K.4. The paper's text
of Proposition K.1 and of K.4 was not at hand; they are reconstructed from Eq. (2) and agree with
what Section 2 and Appendix C say of them.
"""

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array
from whet.maths.irreducible import irreducible_variance
from whet.maths.posterior import Posterior

SUBMODULAR = float(1 - np.exp(-1))  # Nemhauser et al. (1978): greedy's share of the best reduction
RISE = 1e-9  # relative to the gain, and a thousandth of it to the prior: less is rounding


def uncertainty_reduction(
    prompt: Float[Array, " d"], observed: Float[Array, "n d"], lam: float
) -> float:
    """ψ_{x*}(X) = σ²_0(x*) − σ²_X(x*): what the observations took off the variance; 0 for none."""
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

    Holds under Assumption C.1, for candidates of at most unit length. λ_min is that of `basis`. At
    or above σ²_0 the bound says nothing, which is the rule unless d is tiny or n is large.
    """
    longest = float(np.linalg.norm(candidates, axis=1).max())
    if longest > 1 + 1e-6:
        raise ValueError(f"candidates hold a vector of length {longest}: expected at most 1")
    d, n = candidates.shape[1], len(observed)
    least = np.linalg.norm(candidates[basis(candidates)], -2) ** 2
    most = np.linalg.norm(observed, 2) ** 2
    rate = d * (1 + 2 * d * lam / least) * np.log1p(most / lam) / np.sqrt(n)
    return float(irreducible_variance(prompt, candidates) + rate)


def basis(candidates: Float[Array, "k d"]) -> Int[Array, " m"]:
    """Candidates that span all of them, each in turn the farthest from the span of those before.

    The theorem takes any basis; this choice keeps its smallest eigenvalue from vanishing
    needlessly. O(m k d).
    """
    rest = candidates.copy()
    chosen: list[int] = []
    first = np.linalg.norm(rest, axis=1).max()
    for _ in range(min(candidates.shape)):
        length = np.linalg.norm(rest, axis=1)
        farthest = int(length.argmax())
        if length[farthest] <= first * max(candidates.shape) * np.finfo(float).eps:
            break
        axis = rest[farthest] / length[farthest]
        rest = rest - np.outer(rest @ axis, axis)
        chosen.append(farthest)
    return np.array(chosen, dtype=np.int64)


def copies_variance(
    prompt: Float[Array, " d"], row: Float[Array, " d"], n: float, lam: float
) -> float:
    """σ² after `n` observations of one row: k** − n k*² / (n |row|² + λ'); `n` may be infinite.

    Proposition K.1: for unit vectors this is 1 − n cos² / (n + λ'), which never falls below
    1 − cos², however often the nearest neighbour is repeated.
    """
    length = float(row @ row)
    shrunk = length if np.isinf(n) else length + lam / n
    return float(prompt @ prompt - (prompt @ row) ** 2 / shrunk)


def repeat_threshold(lam: float, *, first: float = 1.0, other: float = 1.0) -> float:
    """The least cos²(x*, x) / cos²(x*, x₁) at which an orthogonal x beats x₁ a second time.

    `first` and `other` are the squared lengths of x₁ and x. For unit vectors λ'/(2 + λ') of
    Appendix C.1: 0 as λ' → 0, where anything new is better, and 1 as λ' → ∞, where only closeness
    counts. For other lengths (K.4)

        |x₁|² / |x|² · λ' (|x|² + λ') / ((|x₁|² + λ') (2 |x₁|² + λ')).
    """
    return first / other * lam * (other + lam) / ((first + lam) * (2 * first + lam))


def greedy_share(lam: float, *, longest: float = 1.0) -> float:
    """A share of the best reduction that SIFT's n picks reach, whatever the candidates.

    1 − exp(−γ), γ = λ'/(`longest` + λ') with `longest` the largest squared length: Theorem 3.2 of
    Das & Kempe (2011), whose predictors are here the noisy responses, with repeats; the smallest
    eigenvalue of their correlations is at least γ. Tends to `SUBMODULAR` as λ' grows and to nothing
    as λ' → 0; Assumption C.1, where it holds, gives `SUBMODULAR` at any λ'. Not in the SIFT paper.
    """
    return float(-np.expm1(-lam / (longest + lam)))


def rising_gains(
    prompt: Float[Array, " d"],
    candidates: Float[Array, "k d"],
    order: Int[Array, " n"],
    lam: float,
) -> float:
    """The share of marginal gains that a pick of `order` raises, over all candidates and picks.

    Under Assumption C.1 none rises, Eq. (6), and a lazy queue is exact; the paper judges it by the
    gains along one path alone. O(n k (d + n)).
    """
    posterior = Posterior(candidates, prompt, lam=lam)
    floor = RISE / 1000 * float(prompt @ prompt)
    before, risen = posterior.gains(), 0
    for pick in order:
        posterior.observe(int(pick))
        after = posterior.gains()
        risen += int(np.count_nonzero(after > before * (1 + RISE) + floor))
        before = after
    return risen / (len(order) * len(candidates))
