"""The results of a run as the paper's table: bits per byte as % of the base model's, per set.

Source: SIFT, arXiv 2410.08020, Table 1; docs/protocol.md defines both aggregates and the paired
difference.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from whet.evaluate.results import Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate, resampled

MIN_N = 10  # the paper leaves out sets with fewer documents: their intervals are too narrow
BASELINES = ("uncertainty", "nearest", "nearest-repeated")  # of Δ
TRIMMED = 0.1  # share of the prompts that a trimmed mean leaves out at each end
SHORT = {"uncertainty": "US", "nearest": "NN", "nearest-repeated": "NN-F", "sift": "SIFT"}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: a set, or an aggregate of all sets."""

    name: str
    base: float
    """Bits per byte of the base model, byte-weighted."""
    methods: dict[str, Estimate]
    """% of base of each method."""
    delta: float | None
    """SIFT minus the best baseline, in percentage points."""
    paired: dict[str, Estimate]
    """Each other method minus nearest, paired by prompt, in percentage points."""
    near: int | None = None
    """Number of prompts that have a near-duplicate in the data space."""


@dataclass(frozen=True, slots=True)
class Center:
    """A number of every prompt by its mean, its median and its trimmed mean.

    Differences between methods have heavy tails, since few prompts have a copy in the data space.
    """

    mean: Estimate
    median: Estimate
    trimmed: Estimate

    @classmethod
    def of(cls, values: Float[Array, " n"]) -> "Center":
        """The three averages of `values`, each with its 90 % bootstrap interval."""
        return cls(
            mean_estimate(values),
            resampled(len(values), partial(_median, values)),
            resampled(len(values), partial(_trimmed, values)),
        )


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over all prompts of a run."""

    method: str
    percent: Center
    """Bits per byte as % of the base model's."""
    minus_nearest: Center | None
    """The same minus that of nearest neighbors, paired by prompt, in percentage points; None for
    nearest itself, or if the run does not have it."""
    better_sets: int | None = None
    """Number of sets of at least `MIN_N` prompts on which the interval of the difference is below
    0."""
    worse_sets: int | None = None
    """The number of those on which it is above 0."""

    @classmethod
    def of(cls, record: dict[str, Any]) -> "MethodSummary":
        """The summary with this record."""
        centers = {
            name: record[name]
            and Center(**{kind: Estimate(**value) for kind, value in record[name].items()})
            for name in ("percent", "minus_nearest")
        }
        return cls(**record | centers)


@dataclass(frozen=True, slots=True)
class Report:
    """The table of a run after a number of steps."""

    step: int
    n: int
    failed: int
    lines: tuple[Line, ...]
    meta: dict[str, Any]
    summary: tuple[MethodSummary, ...] = ()
    """Every method over all prompts; empty for a report that an earlier version wrote."""

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Report":
        """The report with this record, which `whet report --json` prints."""
        lines = tuple(
            Line(
                **line
                | {"methods": {m: Estimate(**e) for m, e in line["methods"].items()}}
                | {"paired": {m: Estimate(**e) for m, e in line["paired"].items()}}
            )
            for line in record["lines"]
        )
        methods = tuple(MethodSummary.of(each) for each in record.get("summary", ()))
        return cls(**record | {"lines": lines, "summary": methods})


def report(run: Run, step: int | None = None) -> Report:
    """The table of a run after `step` steps, by default after the last scored step.

    The rows of the sets are followed by both aggregates and, if only some prompts have a
    near-duplicate in the data space, by one row for those prompts and one for the others.

    Raises:
        RunFolderError: If `step` was not scored.
    """
    step = run.steps[-1] if step is None else step
    sets, near = run.column("set"), run.column("near").astype(bool)
    names = sorted(set(sets.tolist()))
    lines = [_line(name, run.filter(sets == name), step) for name in names]
    if len(names) > 1:
        lines.append(_line("all, by prompt", run, step))
        lines.append(_line("all, by set", run, step, by_set=True))
    if near.any() and not near.all():
        lines.append(_line("with a near-duplicate", run.filter(near), step))
        lines.append(_line("without", run.filter(~near), step))
    methods = summarize(run, step)
    return Report(step, len(run), len(run.errors), tuple(lines), run.meta, methods)


def summarize(run: Run, step: int | None = None) -> tuple[MethodSummary, ...]:
    """Every method of `run` after `step` steps, by default after the last scored step.

    Raises:
        RunFolderError: If `step` was not scored.
    """
    sets = run.column("set")
    large = [sets == name for name in np.unique(sets) if (sets == name).sum() >= MIN_N]
    result = []
    for method in run.methods:
        percent = run.ratio(method, step)
        if method == "nearest" or "nearest" not in run.methods:
            result.append(MethodSummary(method, Center.of(percent), None))
            continue
        difference = percent - run.ratio("nearest", step)
        by_set = [mean_estimate(difference[mask]) for mask in large]
        better, worse = sum(e.high < 0 for e in by_set), sum(e.low > 0 for e in by_set)
        result.append(
            MethodSummary(method, Center.of(percent), Center.of(difference), better, worse)
        )
    return tuple(result)


def _line(name: str, run: Run, step: int, *, by_set: bool = False) -> Line:
    sizes, base = run.column("bytes").astype(np.float64), run.column("base_bits")
    groups = np.unique(run.column("set"), return_inverse=True)[1].astype(np.float64)

    def percent(method: str) -> Estimate:
        if not by_set:
            return mean_estimate(run.ratio(method, step))
        return _by_set([run.bits(method, step)], base, sizes, groups)

    def minus_nearest(method: str) -> Estimate:
        if not by_set:
            return mean_estimate(run.ratio(method, step) - run.ratio("nearest", step))
        both = [run.bits(method, step), run.bits("nearest", step)]
        return _by_set(both, base, sizes, groups)

    methods = {method: percent(method) for method in run.methods}
    others = [m for m in run.methods if m != "nearest" and "nearest" in run.methods]
    baselines = [methods[m].value for m in BASELINES if m in methods]
    return Line(
        name,
        float(base.sum() / sizes.sum()),
        methods,
        methods["sift"].value - min(baselines) if "sift" in methods and baselines else None,
        {method: minus_nearest(method) for method in others},
        int(run.column("near").sum()),
    )


def _by_set(
    after: list[Float[Array, " n"]],
    base: Float[Array, " n"],
    sizes: Float[Array, " n"],
    groups: Float[Array, " n"],
) -> Estimate:
    """% of base, byte-weighted within a set, all sets with equal weight.

    With two methods in `after`, the first one's minus the second one's.
    """

    columns = np.stack([*after, base, sizes], axis=1)

    def ratio(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        total = np.zeros((len(draws), columns.shape[1] - 1))
        for group in np.unique(groups):  # in every draw, a position holds rows of the same set
            sums = columns[draws[:, groups[draws[0]] == group]].sum(axis=1)
            total += sums[:, :-1] / sums[:, -1:]
        shares = 100 * total[:, :-1] / total[:, -1:]
        difference: Float[Array, " r"] = shares[:, 0] - shares[:, 1:].sum(axis=1)
        return difference

    return resampled(len(columns), ratio, groups=groups)


def _median(values: Float[Array, " n"], draws: Int[Array, "r n"]) -> Float[Array, " r"]:
    medians: Float[Array, " r"] = np.median(values[draws], axis=1)
    return medians


def _trimmed(values: Float[Array, " n"], draws: Int[Array, "r n"]) -> Float[Array, " r"]:
    means: Float[Array, " r"] = stats.trim_mean(values[draws], TRIMMED, axis=1)
    return means
