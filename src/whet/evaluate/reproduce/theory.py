"""The paper's formal statements, checked on numbers: K.1 and C.2 on a data space's own vectors,
3.2 and 3.3 on linear softmax models small enough to solve. Source: arXiv 2410.08020.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from whet.evaluate.reproduce import style
from whet.evaluate.reproduce.ground import PICKS, Ground
from whet.evaluate.reproduce.shown import Shown
from whet.maths.arrays import Array
from whet.maths.confidence import beta
from whet.maths.convergence import convergence_bound, copies_variance
from whet.maths.statistics import mean_estimate
from whet.maths.surrogate import curvature_bound, minimiser, probabilities, step_gap
from whet.select.sift import sift

WORLDS, CLASSES, DIMENSION, SEEN, ASKED = 40, 3, 3, 20, 10
DELTA, LAM, RADIUS = 0.1, 1.0, 0.5
COUNTS = (1, 10, PICKS)


class _World(NamedTuple):
    """What one simulated model says of Theorem 3.2 and Proposition 3.3."""

    within: float
    """Whether every asked prediction is within its bound of the truth."""
    vacuous: float
    """Share of bounds that are no less than 1."""
    gap: float
    """Distance of step and minimiser over the proposition's bound."""


def statements(ground: Ground) -> Shown:
    """Propositions 2.1 (K.1) and 3.3, Theorems 3.2 and 4.1 (C.2)."""
    floors, reached, repeated, within, empty = _on_vectors(ground)
    worlds = np.array([_simulated(seed) for seed in range(WORLDS)])
    numbers = {
        "K.1: σ² of SIFT − floor of NN-F": mean_estimate(reached - floors),
        "K.1: NN-F stays above its floor, %": mean_estimate(100.0 * (repeated >= floors - 1e-9)),
        "3.2: within the bound, %": mean_estimate(100 * worlds[:, 0]),
        "3.2: bounds that say nothing, %": mean_estimate(100 * worlds[:, 1]),
        "3.3: distance ÷ bound": mean_estimate(worlds[:, 2]),
        "C.2: within the bound, %": mean_estimate(100 * within),
        "C.2: bounds that say nothing, %": mean_estimate(100 * empty),
    }
    return Shown(
        columns=("statement", "n", "measured"),
        rows=tuple((name, e.n, e) for name, e in numbers.items()),
        n=len(ground.queries),
        draw=partial(_drawn, floors=floors, reached=reached),
        numbers=numbers,
        note=(
            f"K.1 and C.2: {ground.k} candidates a prompt, λ' = 0.01, {PICKS} picks. 3.2 and 3.3: "
            f"{WORLDS} linear softmax models of {CLASSES} classes in {DIMENSION} dimensions, "
            f"{SEEN} labels, δ = {DELTA}."
        ),
    )


def _on_vectors(ground: Ground) -> tuple[Array, Array, Array, Array, Array]:
    """By prompt: 1 − cos² of the nearest, σ² of SIFT, of NN-F; C.2 as a mean over `COUNTS`."""
    floors, reached, repeated, within, empty = [], [], [], [], []
    for query, rows in zip(ground.queries.astype(np.float64), ground.candidates(), strict=True):
        prior = float(query @ query)
        picks = sift(query, rows, PICKS)
        closest = rows[picks.indices[0]]  # of either sign, as the proposition's x₁
        floors.append(copies_variance(query, closest, np.inf, 0.01) / prior)
        repeated.append(copies_variance(query, closest, PICKS, 0.01) / prior)
        reached.append(picks.variance[-1] / prior)
        unit = rows / max(1.0, float(np.linalg.norm(rows, axis=1).max()))
        bounds = [convergence_bound(query, unit, unit[picks.indices[:n]], 0.01) for n in COUNTS]
        left = picks.variance[list(COUNTS)]
        within.append(np.mean(left <= np.array(bounds) + 1e-9))
        empty.append(np.mean(np.array(bounds) >= prior))
    return (*map(np.array, (floors, reached, repeated, within, empty)),)  # type: ignore[return-value]


def _simulated(seed: int) -> _World:
    """A random truth within `RADIUS` of a random pretrained model, and what was learned of it."""
    rng = np.random.default_rng(seed)
    inputs, asked = _unit(rng, SEEN), _unit(rng, ASKED)
    pretrained = rng.normal(size=(CLASSES, DIMENSION))
    move = rng.normal(size=pretrained.shape)
    truth = pretrained + RADIUS * rng.random() * move / np.linalg.norm(move)
    chances = probabilities(inputs @ truth.T)
    labels = np.array([rng.choice(CLASSES, p=p) for p in chances])
    learned = minimiser(inputs, labels, pretrained, lam=LAM, radius=RADIUS)
    kappa = curvature_bound(np.concatenate([inputs, asked]) @ pretrained.T, RADIUS).kappa
    width = beta(SEEN, DELTA, classes=CLASSES, dimension=DIMENSION, radius=RADIUS, lam=LAM)
    kernel = inputs @ inputs.T + LAM * kappa * np.eye(SEEN)
    cross = asked @ inputs.T
    told = np.einsum("an,na->a", cross, np.linalg.solve(kernel, cross.T))
    sigma = np.sqrt(np.einsum("ad,ad->a", asked, asked) - told)
    wrong = np.abs(probabilities(asked @ learned.T) - probabilities(asked @ truth.T)).sum(1) / 2
    gap = step_gap(inputs, labels, pretrained, rate=0.05)
    return _World(
        float((wrong <= width * sigma).all()),
        float(np.mean(width * sigma >= 1)),
        gap.distance / gap.bound,
    )


def _unit(rng: np.random.Generator, n: int) -> Float[Array, "n d"]:
    rows = rng.normal(size=(n, DIMENSION))
    unit: Float[Array, "n d"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _drawn(axes: Any, floors: Array, reached: Array) -> None:
    axes.scatter(floors, reached, s=14, color=style.RED, alpha=0.7, lw=0)
    top = float(max(floors.max(), reached.max())) * 1.05
    axes.plot([0, top], [0, top], color=style.MUTED, lw=0.9, ls=(0, (4, 3)))
    axes.set(
        xlabel="floor of NN-F: 1 − cos² of the nearest", ylabel=f"σ² of SIFT after {PICKS} picks",
        xlim=(0, top), ylim=(0, top),
    )  # fmt: skip
    axes.set_title("Proposition K.1, a point a prompt")
