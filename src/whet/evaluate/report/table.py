"""The results of a run as the paper's table: bits per byte as % of the base model's, per set.

Source: SIFT, arXiv 2410.08020, Table 1; docs/protocol.md defines both aggregates and the paired
difference.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.evaluate.results import Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate, resampled

BASELINES = ("uncertainty", "nearest", "nearest-repeated")  # of Δ
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
class Report:
    """The table of a run after a number of steps."""

    step: int
    n: int
    failed: int
    lines: tuple[Line, ...]
    meta: dict[str, Any]

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
        return cls(**record | {"lines": lines})


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
    return Report(step, len(run), len(run.errors), tuple(lines), run.meta)


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
