"""How far the model may be from the truth, given σ: the paper's confidence sets.

Source: arXiv 2410.08020, Theorem 3.2 (classification) and Appendix K.5 (regression). The paper's
text of K.5 was not at hand: `beta_regression` is a reconstruction, marked as such.

Both are honest and mostly wide: a total variation distance never exceeds 1, and β_n of Theorem 3.2
starts above 2 B √V. `vacuous` counts the bounds that say nothing.
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
    """β_n(δ) of Theorem 3.2, Eq. (3); grows as log(n/δ).

    With probability 1 − δ, for all n ≥ 1 and all x at once: the model fitted on n observations has
    predictions within β_n σ_n(x) of the true ones, in total variation distance.

    Args:
        delta: Probability of error, between 0 and 1.
        classes: V, the number of classes.
        dimension: d, of the embeddings, which are at most of unit length.
        radius: B, how far the truth may be from the pretrained model.
        lam: λ of Eq. (1), not λ'; σ_n is taken at λ' = λκ.
        largest: L, λ_max of the logistic matrix; never above 1/2.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}: expected a probability between 0 and 1")
    doubt = np.log(2 / delta * np.sqrt(1 + n / (dimension * lam)))
    spread = largest * classes**1.5 * dimension / lam * doubt
    return float(2 * np.sqrt(classes * (1 + 2 * radius)) * (radius + spread))


def beta_regression(
    information: float, delta: float, *, radius: float, noise: float, lam: float
) -> float:
    """β for squared error: |f_n(x) − f*(x)| ≤ β σ_n(x) for all n and x, with probability 1 − δ.

    f* = ⟨w*, φ⟩ with ‖w* − w_pre‖ ≤ `radius`, observed with `noise`-sub-Gaussian errors; f_n is the
    ridge regression with λ' around w_pre; `information` is that of the observations.

        β = B + ρ/√λ' · √(2 (I(X_n) + log 1/δ))

    A reconstruction of Appendix K.5: Theorem 2 of Abbasi-Yadkori, Pál & Szepesvári (2011), with
    σ_n²(x) = λ' φ(x)ᵀ (ΦᵀΦ + λ'I)⁻¹ φ(x).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta!r}: expected a probability between 0 and 1")
    return float(radius + noise / np.sqrt(lam) * np.sqrt(2 * (information - np.log(delta))))


def information(observed: Float[Array, "n d"], lam: float) -> float:
    """I(f; y_X) = ½ log det(I + K_X / λ'), in nats: what the observations tell about f.

    At most ½ rank · log(1 + λ_max(K_X) / λ'), as in the proof of Theorem C.2. O(n d min(n, d)).
    """
    singular = np.linalg.svd(observed, compute_uv=False)
    return float(np.log1p(singular**2 / lam).sum() / 2)


def information_gain(before: float, after: float) -> float:
    """I(f(x*); y_x | D_n) = ½ log(σ²_n(x*) / σ²_{n+1}(x*)), in nats; infinite if `after` is 0.

    Appendix G, reconstructed by the algebra of Gaussians with noise ρ² = λ': the observation of
    least σ² afterwards is the one of most information, so with one target greedy SIFT is both.
    """
    if after == 0:
        return np.inf if before > 0 else 0.0
    return float(np.log(before / after) / 2)


def vacuous(bounds: Float[Array, " n"], trivial: float = 1.0) -> int:
    """How many of `bounds` are no better than what holds of itself, `trivial`."""
    return int(np.count_nonzero(bounds >= trivial))
