"""How well σ predicts bits per byte and gain: correlations, calibration, and when to stop.

Source: SIFT, arXiv 2410.08020, Section 6, Figure 8 and Table 12. σ̂ is σ times the base model's
bits per byte, either on the scored text (as in the paper; an oracle) or on the prompt (known before
any step). The base model's bits per byte alone show what σ adds to them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from whet.evaluate.results import Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate, resampled

KINDS = ("Pearson", "Spearman", "Kendall")
BASE_ALONE = "base bits per byte"
PREDICTORS = ("σ", "σ̂ of the text", "σ̂ of the prompt", BASE_ALONE)
ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
BINS = 10


@dataclass(frozen=True, slots=True)
class Correlation:
    """Correlation of a predictor with a target over prompts, after the same number of steps."""

    predictor: str
    target: str
    """`bits per byte` after the steps, or `gain`: bits per byte before them ÷ after."""
    kind: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Bin:
    """Prompts with similar σ̂ in the reliability diagram."""

    n: int
    predicted: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """σ̂ of the text against bits per byte: bins of equal size, and the regression line."""

    bins: tuple[Bin, ...]
    slope: float
    intercept: float
    error: float
    """Mean distance of the bins from the line in bits per byte, weighted by their size."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A stopping rule and its results."""

    rule: str
    steps: float
    """Mean number of steps."""
    percent: Estimate
    """Bits per byte as % of the base model's."""
    regret: Estimate
    """Percentage points above the oracle, which stops each prompt at its best scored step."""


def correlations(run: Run, method: str, step: int | None = None) -> list[Correlation]:
    """All correlations of predictors with targets after `step` steps of `method`.

    Raises:
        RunFolderError: If the method or the step is not in the run.
    """
    after = run.bits(method, step) / run.column("bytes")
    targets = {"bits per byte": after, "gain": _base(run) / after}
    return [
        Correlation(predictor, target, kind, correlation(values, goal, kind))
        for predictor, values in predictors(run, method, step).items()
        for target, goal in targets.items()
        for kind in KINDS
    ]


def predictors(run: Run, method: str, step: int | None = None) -> dict[str, Float[Array, " n"]]:
    """σ and both σ̂ of every prompt after `step` picks, and the base bits per byte of its text."""
    sigma = run.sigma(method, step)
    prompt, base = run.column("query_bits") / run.column("query_bytes"), _base(run)
    return dict(zip(PREDICTORS, (sigma, sigma * base, sigma * prompt, base), strict=True))


def correlation(x: Float[Array, " n"], y: Float[Array, " n"], kind: str) -> Estimate:
    """A coefficient of `KINDS` with its 90 % interval over prompts; 0 if either side is constant."""
    if not (np.ptp(x) and np.ptp(y)):
        return resampled(len(x), lambda draws: np.zeros(len(draws)))
    if kind == "Kendall":
        return resampled(len(x), partial(_kendall, x, y))
    ranked = kind == "Spearman"
    return resampled(len(x), partial(_pearson, x, y, ranked=ranked))


def pearson_difference(
    x: Float[Array, " n"], other: Float[Array, " n"], y: Float[Array, " n"]
) -> Estimate:
    """Pearson coefficient of `x` with `y` minus that of `other` with `y`, over the same prompts."""

    def difference(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        ours, theirs = (_pearson(side, y, draws, ranked=False) for side in (x, other))
        result: Float[Array, " r"] = ours - theirs
        return result

    return resampled(len(x), difference)


def pooled_pearson(x: Float[Array, "n s"], y: Float[Array, "n s"]) -> Estimate:
    """Pearson coefficient over all steps of all prompts; its interval resamples prompts."""

    def pooled(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        rows = np.arange(x.size).reshape(x.shape)[draws].reshape(len(draws), -1)
        return _pearson(x.ravel(), y.ravel(), rows, ranked=False)

    return resampled(len(x), pooled)


def _pearson(
    x: Float[Array, " n"], y: Float[Array, " n"], draws: Int[Array, "r n"], *, ranked: bool
) -> Float[Array, " r"]:
    """Pearson coefficient of every resample, of the values or of their ranks in it."""
    sides = x[draws], y[draws]
    if ranked:
        sides = tuple(stats.rankdata(side, axis=1) for side in sides)
    left, right = (side - side.mean(axis=1, keepdims=True) for side in sides)
    return _quotient((left * right).sum(axis=1), (left**2).sum(axis=1), (right**2).sum(axis=1))


def _kendall(
    x: Float[Array, " n"], y: Float[Array, " n"], draws: Int[Array, "r n"]
) -> Float[Array, " r"]:
    """τ_b of every resample. O(r n²): three quadratic forms in the number of times a row is drawn."""
    counts = np.stack([np.bincount(draw, minlength=len(x)) for draw in draws]).astype(np.float64)
    left, right = (np.sign(side[:, None] - side) for side in (x, y))
    agreed, untied_x, untied_y = (
        np.einsum("rn,rn->r", counts @ pairs, counts)
        for pairs in (left * right, np.abs(left), np.abs(right))
    )
    return _quotient(agreed, untied_x, untied_y)


def _quotient(
    top: Float[Array, " r"], left: Float[Array, " r"], right: Float[Array, " r"]
) -> Float[Array, " r"]:
    """top / √(left · right), and 0 for resamples in which one side is constant."""
    denominator, quotient = np.sqrt(left * right), np.zeros(len(top))
    np.divide(top, denominator, out=quotient, where=denominator > 0)
    return quotient


def calibration(run: Run, method: str, step: int | None = None) -> Calibration:
    """The reliability of σ̂ of the text after `step` steps of `method`.

    Raises:
        RunFolderError: If the method or the step is not in the run.
    """
    predicted = run.sigma(method, step) * _base(run)
    after = run.bits(method, step) / run.column("bytes")
    slope, intercept = 0.0, float(after.mean())
    if np.ptp(predicted):
        slope, intercept = map(float, np.polyfit(predicted, after, 1))
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted)))
    bins = tuple(Bin(len(g), float(predicted[g].mean()), float(after[g].mean())) for g in groups)
    distances = [b.n * abs(slope * b.predicted + intercept - b.bits_per_byte) for b in bins]
    return Calibration(bins, slope, intercept, sum(distances) / len(predicted))


def stops(run: Run, method: str, alphas: Iterable[float] = ALPHAS) -> list[Stop]:
    """Results of the oracle, of every scored number of steps, and of adaptive stopping by each α.

    Adaptive stopping is evaluated at the last scored step before its own: score many steps for
    accuracy, or evaluate the method `sift(stop_alpha=…)` for exact results.
    """
    steps = np.array(run.steps)
    percent = np.stack([run.ratio(method, step) for step in run.steps], axis=1)
    best = percent.argmin(axis=1)
    chosen = {"oracle": best}
    chosen |= {f"{step} steps": np.full(len(run), i) for i, step in enumerate(run.steps)}
    chosen |= {f"α={alpha:g}": stopped_at(run, method, alpha) for alpha in alphas}
    oracle, rows = percent.min(axis=1), np.arange(len(run))
    return [
        Stop(
            rule,
            float(steps[at].mean()),
            mean_estimate(percent[rows, at]),
            mean_estimate(percent[rows, at] - oracle),
        )
        for rule, at in chosen.items()
    ]


def stopped_at(run: Run, method: str, alpha: float) -> Int[Array, " n"]:
    """For every prompt the index in `run.steps` of the last scored step before it stops."""
    taken = adaptive_steps(run.trajectories(method), alpha)
    indices: Int[Array, " n"] = np.searchsorted(run.steps, taken, side="right") - 1
    return indices


def adaptive_steps(sigma: Float[Array, "n steps"], alpha: float) -> Array:
    """Steps that ADAPTIVE SIFT(α) takes for each trajectory σ_0 … σ_n; see `Selection.stop_at`."""
    over = sigma[:, 1:] > 1 / (alpha * np.arange(1, sigma.shape[1]))
    return np.asarray(np.where(over.any(axis=1), over.argmax(axis=1), over.shape[1]))


def _base(run: Run) -> Float[Array, " n"]:
    base: Float[Array, " n"] = run.column("base_bits") / run.column("bytes")
    return base
