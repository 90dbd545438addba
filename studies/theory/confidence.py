"""The paper's confidence sets: how far the model may be from the truth, given σ.

Source: arXiv 2410.08020, Theorem 3.2 (classification) and Appendix K.5 (regression). The paper's
text of K.5 was not available: `beta_regression` is a reconstruction and is marked as such.

Both hold and are mostly wide: a total variation distance never exceeds 1, and β_n of Theorem 3.2
starts above 2 B √V. `count_vacuous` counts the bounds that are no better than trivial ones.
"""

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array


def beta(
    n: int,
    delta: float,
    *,
    classes: int,
    dimension: int,
    radius: float,
    lam: float,
    largest: float = 0.5,
) -> float:
    """β_n(δ) of Theorem 3.2, Eq. (3); it grows as log(n/δ).

    With probability 1 − δ, for all n ≥ 1 and all x simultaneously, the predictions of the model
    fitted on n observations are within β_n σ_n(x) of the true ones in total variation distance.

    Args:
        n: Number of observations.
        delta: Probability of error, between 0 and 1.
        classes: V, the number of classes.
        dimension: d, the dimension of the embeddings, which have at most unit length.
        radius: B, the largest distance of the truth from the pretrained model.
        lam: λ of Eq. (1), not λ'; σ_n uses λ' = λκ.
        largest: L, the largest eigenvalue of the logistic matrix; never above 1/2.

    Raises:
        ValueError: If `delta` is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}: expected a probability between 0 and 1")
    log_term = np.log(2 / delta * np.sqrt(1 + n / (dimension * lam)))
    spread = largest * classes**1.5 * dimension / lam * log_term
    return float(2 * np.sqrt(classes * (1 + 2 * radius)) * (radius + spread))


def beta_regression(
    information: float, delta: float, *, radius: float, noise: float, lam: float
) -> float:
    """β for squared error: |f_n(x) − f*(x)| ≤ β σ_n(x) for all n and x, with probability 1 − δ.

    The truth f* = ⟨w*, φ⟩ has ‖w* − w_pre‖ ≤ `radius` and is observed with `noise`-sub-Gaussian
    errors; f_n is the ridge regression with λ' around w_pre.

        β = B + ρ/√λ' · √(2 (I(X_n) + log 1/δ))

    This reconstructs Appendix K.5 by Theorem 2 of Abbasi-Yadkori, Pál & Szepesvári (2011), with
    σ_n²(x) = λ' φ(x)ᵀ (ΦᵀΦ + λ'I)⁻¹ φ(x).

    Args:
        information: Information I(X_n) of the observations, in nats.

    Raises:
        ValueError: If `delta` is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}: expected a probability between 0 and 1")
    return float(radius + noise / np.sqrt(lam) * np.sqrt(2 * (information - np.log(delta))))


def information(observed: Float[Array, "n d"], lam: float) -> float:
    """I(f; y_X) = ½ log det(I + K_X / λ'), in nats: the information about f in the observations.

    It is at most ½ rank · log(1 + λ_max(K_X) / λ'), as in the proof of C.2. O(n d min(n, d)).
    """
    singular = np.linalg.svd(observed, compute_uv=False)
    return float(np.log1p(singular**2 / lam).sum() / 2)


def information_gain(before: float, after: float) -> float:
    """I(f(x*); y_x | D_n) = ½ log(σ²_n(x*) / σ²_{n+1}(x*)), in nats; infinite if `after` is 0.

    Appendix G, reconstructed for Gaussians with noise ρ² = λ'. The observation that leaves the
    least σ² is the most informative one, so with one target greedy SIFT maximizes both.
    """
    if after == 0:
        return np.inf if before > 0 else 0.0
    return float(np.log(before / after) / 2)


def count_vacuous(bounds: Float[Array, " n"], trivial: float = 1.0) -> int:
    """Count the bounds that are no better than the `trivial` one."""
    return int(np.count_nonzero(bounds >= trivial))
