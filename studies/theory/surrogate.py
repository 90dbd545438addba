"""The paper's surrogate: a linear softmax model that is small enough to solve exactly.

Source: arXiv 2410.08020, Section 3: logits W φ(x), the regularized loss of Eq. (1) and its
minimizer, one gradient step, Proposition 3.3, and the constants κ and L of Eq. (2) and (3).

The logistic matrix A = diag(s) − s sᵀ has A·1 = 0, because adding a constant to all logits changes
no probability. Read literally, κ = sup 1/λ_min(A) is infinite. Every gradient of the loss has
columns that sum to zero, so no step and no minimizer leaves W_pre in the direction 1, and W* can be
chosen likewise. Therefore λ_min, and with it κ, is taken on the complement of 1.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array

MAX_NEWTON_STEPS = 200  # a few suffice


@dataclass(frozen=True, slots=True)
class Curvature:
    """Curvature of the loss over a set of models and inputs: κ, and L, the largest λ_max of A."""

    kappa: float
    largest: float


@dataclass(frozen=True, slots=True)
class StepGap:
    """Distance of one gradient step from the minimizer regularized by λ = 1 / step size."""

    distance: float
    bound: float
    """Right side of Proposition 3.3; the two sides are in fact equal."""
    smooth_bound: float
    """Bound known without solving, of second order in the step size."""


def probabilities(logits: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """Softmax over the last axis."""
    rising = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(rising / rising.sum(axis=-1, keepdims=True))


def logistic_matrix(logits: Float[Array, " V"]) -> Float[Array, "V V"]:
    """A = diag(s) − s sᵀ: the derivative of softmax; its rows sum to zero."""
    s = probabilities(logits)
    return np.diag(s) - np.outer(s, s)


def curvature(logits: Float[Array, "n V"]) -> Curvature:
    """κ on the complement of 1, and L, at exactly these logits. O(n V³)."""
    eigenvalues = np.array([np.linalg.eigvalsh(logistic_matrix(row)) for row in logits])
    return Curvature(float(1 / eigenvalues[:, 1].min()), float(eigenvalues[:, -1].max()))


def curvature_bound(logits: Float[Array, "n V"], radius: float) -> Curvature:
    """κ and L no smaller than those of any model within `radius` of the one with these logits.

    This holds for inputs of at most unit length. A model at Frobenius distance B changes the
    difference of two logits by at most √2 B, so no probability falls below e^(−√2 B) of its value;
    on the complement of 1, λ_min(A) ≥ min s. uᵀA u is the variance of u under s, so L ≤ (√2)² / 4.
    """
    least = float(probabilities(logits).min())
    return Curvature(float(np.exp(np.sqrt(2) * radius)) / least, 0.5)


def loss(
    weights: Float[Array, "V d"], inputs: Float[Array, "n d"], labels: Int[Array, " n"]
) -> float:
    """Summed negative log-likelihood of the labels, in nats."""
    logits = inputs @ weights.T
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(labels)), labels]).sum())


def gradient(
    weights: Float[Array, "V d"], inputs: Float[Array, "n d"], labels: Int[Array, " n"]
) -> Float[Array, "V d"]:
    """Gradient of `loss`; its columns sum to zero."""
    surprise = probabilities(inputs @ weights.T)
    surprise[np.arange(len(labels)), labels] -= 1
    slope: Float[Array, "V d"] = surprise.T @ inputs
    return slope


def gradient_step(
    inputs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    pretrained: Float[Array, "V d"],
    *,
    rate: float,
) -> Float[Array, "V d"]:
    """Ŵ_η: the pretrained model after one step of size `rate` on all observations."""
    return pretrained - rate * gradient(pretrained, inputs, labels)


def minimizer(
    inputs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    pretrained: Float[Array, "V d"],
    *,
    lam: float,
    radius: float = np.inf,
) -> Float[Array, "V d"]:
    """W_n of Eq. (1): least loss plus λ/2 ‖W − W_pre‖², at most `radius` from W_pre.

    Uses Newton's method. If the constraint is active, the minimizer is that of a larger λ, which is
    found by bisection. O(n (V d)² + (V d)³) per Newton step, so it is meant for small models.
    """
    weights = _newton(inputs, labels, pretrained, pretrained, lam)
    if np.linalg.norm(weights - pretrained) <= radius:
        return weights
    low, high = lam, lam + float(np.linalg.norm(gradient(pretrained, inputs, labels))) / radius
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        weights = _newton(inputs, labels, pretrained, weights, middle)
        inside = np.linalg.norm(weights - pretrained) <= radius
        low, high = (low, middle) if inside else (middle, high)
    return _newton(inputs, labels, pretrained, weights, high)


def step_gap(
    inputs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    pretrained: Float[Array, "V d"],
    *,
    rate: float,
) -> StepGap:
    """Proposition 3.3 on this model: ‖W_{1/η} − Ŵ_η‖ and its bound η ‖∇L(W_{1/η}) − ∇L(W_pre)‖.

    As ∇L is ½ λ_max(Φ Φᵀ)-Lipschitz and ‖W_{1/η} − W_pre‖ ≤ η ‖∇L(W_pre)‖, the distance is at
    most η² ½ λ_max(Φ Φᵀ) ‖∇L(W_pre)‖ (derived here, not stated in the paper).
    """
    solved = minimizer(inputs, labels, pretrained, lam=1 / rate)
    stepped = gradient_step(inputs, labels, pretrained, rate=rate)
    before = gradient(pretrained, inputs, labels)
    change = gradient(solved, inputs, labels) - before
    lipschitz = np.linalg.norm(inputs, 2) ** 2 / 2
    return StepGap(
        float(np.linalg.norm(solved - stepped)),
        float(rate * np.linalg.norm(change)),
        float(rate**2 * lipschitz * np.linalg.norm(before)),
    )


def _newton(
    inputs: Float[Array, "n d"],
    labels: Int[Array, " n"],
    pretrained: Float[Array, "V d"],
    start: Float[Array, "V d"],
    lam: float,
) -> Float[Array, "V d"]:
    def objective(weights: Array) -> float:
        return loss(weights, inputs, labels) + lam / 2 * float(np.sum((weights - pretrained) ** 2))

    weights = start
    for _ in range(MAX_NEWTON_STEPS):
        slope = gradient(weights, inputs, labels) + lam * (weights - pretrained)
        curved = _hessian(weights, inputs) + lam * np.eye(weights.size)
        step = np.linalg.solve(curved, slope.ravel()).reshape(weights.shape)
        if np.linalg.norm(step) <= 1e-8 * (1 + np.linalg.norm(weights)):
            return weights - step  # convergence is quadratic
        scale, decrease = 1.0, float(np.sum(step * slope))
        while (
            decrease > 1e-9
            and objective(weights - scale * step) > objective(weights) - decrease / 4 * scale
        ):
            scale /= 2  # a convex loss decreases for a small enough scale; near the end for 1
        weights = weights - scale * step
    raise ArithmeticError(f"Newton's method took more than {MAX_NEWTON_STEPS} steps at lam={lam}")


def _hessian(weights: Float[Array, "V d"], inputs: Float[Array, "n d"]) -> Float[Array, "Vd Vd"]:
    chance = probabilities(inputs @ weights.T)
    curved = chance[:, :, None] * (np.eye(len(weights)) - chance[:, None, :])
    whole = np.einsum("nab,ni,nj->aibj", curved, inputs, inputs, optimize=True)
    return np.asarray(whole.reshape(weights.size, weights.size))
