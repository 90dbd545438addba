"""The paper's formal statements, checked numerically.

K.1 and C.2 are checked on the vectors of a data space; 3.2 and 3.3 on linear softmax models that
are small enough to solve. Source: arXiv 2410.08020.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from studies import plotting
from studies.artifact import Artifact
from studies.retrieval_figures import PICKS, QuerySet
from studies.theory.confidence import beta
from studies.theory.convergence import convergence_bound, repeated_variance
from studies.theory.surrogate import curvature_bound, minimizer, probabilities, step_gap
from whet.maths.arrays import Array
from whet.maths.statistics import mean_estimate
from whet.select.sift import sift

MODELS, CLASSES, DIMENSION, OBSERVATIONS, TEST_POINTS = 40, 3, 3, 20, 10
DELTA, LAM, RADIUS = 0.1, 1.0, 0.5
COUNTS = (1, 10, PICKS)  # numbers of picks at which C.2 is checked


class _ModelCheck(NamedTuple):
    """Theorem 3.2 and Proposition 3.3 on one simulated model."""

    within: float
    """Whether every test prediction is within its bound of the truth."""
    vacuous: float
    """Share of bounds that are 1 or more."""
    gap: float
    """Distance between the gradient step and the minimizer, divided by the proposition's bound."""


class _VectorCheck(NamedTuple):
    """Propositions K.1 and C.2 on the vectors of one query."""

    lower_bound: float
    """1 − cos² of the nearest candidate: the limit of NN-F."""
    sift: float
    """σ²/σ²_0 after SIFT's picks."""
    repeated: float
    """σ²/σ²_0 after repeating the nearest candidate as often."""
    within: float
    """Share of `COUNTS` at which σ² is within its bound C.2."""
    vacuous: float
    """Share of `COUNTS` at which the bound is σ²_0 or more."""


def formal_statements(queries: QuerySet) -> Artifact:
    """Check Propositions 2.1 (K.1) and 3.3 and Theorems 3.2 and 4.1 (C.2)."""
    pairs = zip(queries.queries.astype(np.float64), queries.candidates(), strict=True)
    vectors = np.array([_check_vectors(query, rows) for query, rows in pairs])
    lower, reached, repeated, within, vacuous = vectors.T
    models = np.array([_check_model(seed) for seed in range(MODELS)])
    above = 100.0 * (repeated >= lower - 1e-9)
    numbers = {
        "K.1: σ² of SIFT − lower bound of NN-F": mean_estimate(reached - lower),
        "K.1: NN-F stays above its lower bound, %": mean_estimate(above),
        "3.2: within the bound, %": mean_estimate(100 * models[:, 0]),
        "3.2: vacuous bounds, %": mean_estimate(100 * models[:, 1]),
        "3.3: distance ÷ bound": mean_estimate(models[:, 2]),
        "C.2: within the bound, %": mean_estimate(100 * within),
        "C.2: vacuous bounds, %": mean_estimate(100 * vacuous),
    }
    return Artifact(
        columns=("statement", "n", "measured"),
        rows=tuple((name, e.n, e) for name, e in numbers.items()),
        n=len(queries.queries),
        draw=partial(_scatter, lower=lower, reached=reached),
        numbers=numbers,
        note=(
            f"K.1 and C.2 use {queries.k} candidates per prompt, λ' = 0.01 and {PICKS} picks. 3.2 "
            f"and 3.3 use {MODELS} linear softmax models with {CLASSES} classes, {DIMENSION} "
            f"dimensions, {OBSERVATIONS} labels and δ = {DELTA}."
        ),
    )


def _check_vectors(query: Float[Array, " d"], rows: Float[Array, "k d"]) -> _VectorCheck:
    prior = float(query @ query)
    selection = sift(query, rows, PICKS)
    nearest = rows[selection.indices[0]]  # by |cosine|, as the proposition's x₁
    unit = rows / max(1.0, float(np.linalg.norm(rows, axis=1).max()))
    bounds = np.array(
        [convergence_bound(query, unit, unit[selection.indices[:n]], 0.01) for n in COUNTS]
    )
    return _VectorCheck(
        lower_bound=repeated_variance(query, nearest, np.inf, 0.01) / prior,
        sift=float(selection.variance[-1]) / prior,
        repeated=repeated_variance(query, nearest, PICKS, 0.01) / prior,
        within=float(np.mean(selection.variance[list(COUNTS)] <= bounds + 1e-9)),
        vacuous=float(np.mean(bounds >= prior)),
    )


def _check_model(seed: int) -> _ModelCheck:
    """Draw a truth within `RADIUS` of a random pretrained model, and learn it from labels."""
    rng = np.random.default_rng(seed)
    inputs, tests = _unit_rows(rng, OBSERVATIONS), _unit_rows(rng, TEST_POINTS)
    pretrained = rng.normal(size=(CLASSES, DIMENSION))
    move = rng.normal(size=pretrained.shape)
    truth = pretrained + RADIUS * rng.random() * move / np.linalg.norm(move)
    labels = np.array([rng.choice(CLASSES, p=p) for p in probabilities(inputs @ truth.T)])
    learned = minimizer(inputs, labels, pretrained, lam=LAM, radius=RADIUS)
    kappa = curvature_bound(np.concatenate([inputs, tests]) @ pretrained.T, RADIUS).kappa
    width = beta(OBSERVATIONS, DELTA, classes=CLASSES, dimension=DIMENSION, radius=RADIUS, lam=LAM)
    kernel = inputs @ inputs.T + LAM * kappa * np.eye(OBSERVATIONS)
    cross = tests @ inputs.T
    explained = np.einsum("an,na->a", cross, np.linalg.solve(kernel, cross.T))
    sigma = np.sqrt(np.einsum("ad,ad->a", tests, tests) - explained)
    errors = np.abs(probabilities(tests @ learned.T) - probabilities(tests @ truth.T)).sum(1) / 2
    gap = step_gap(inputs, labels, pretrained, rate=0.05)
    return _ModelCheck(
        within=float((errors <= width * sigma).all()),
        vacuous=float(np.mean(width * sigma >= 1)),
        gap=gap.distance / gap.bound,
    )


def _unit_rows(rng: np.random.Generator, n: int) -> Float[Array, "n d"]:
    rows = rng.normal(size=(n, DIMENSION))
    unit: Float[Array, "n d"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _scatter(axes: Any, lower: Array, reached: Array) -> None:
    axes.scatter(lower, reached, s=14, color=plotting.RED, alpha=0.7, lw=0)
    top = float(max(lower.max(), reached.max())) * 1.05
    axes.plot([0, top], [0, top], color=plotting.MUTED, lw=0.9, ls=(0, (4, 3)))
    axes.set(
        xlabel="lower bound of NN-F: 1 − cos² of the nearest",
        ylabel=f"σ² of SIFT after {PICKS} picks",
        xlim=(0, top), ylim=(0, top),
    )  # fmt: skip
    axes.set_title("Proposition K.1, one point per prompt")
