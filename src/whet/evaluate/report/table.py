"""A run's rows as the table of the paper: bits per byte in % of the base model's, set by set.

Source: SIFT, arXiv 2410.08020, Table 1; both aggregates and the paired difference as in
    docs/protocol.md.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.evaluate.results import Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate, resampled

RIVALS = ("uncertainty", "nearest", "nearest-repeated")  # of Δ
SHORT = {"uncertainty": "US", "nearest": "NN", "nearest-repeated": "NN-F", "sift": "SIFT"}


@dataclass(frozen=True, slots=True)
class Line:
    """One set, or all of them."""

    name: str
    base: float
    """Bits per byte of the base model, byte-weighted."""
    methods: dict[str, Estimate]
    """% of base by method."""
    delta: float | None
    """SIFT minus the best baseline, points of %."""
    paired: dict[str, Estimate]
    """Each other method minus nearest, paired by prompt, points of %."""
    near: int | None = None
    """Prompts that have a near-duplicate in the data space."""


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
        """The report that `record` was made of: what `whet report --json` prints."""
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
    """The table of a run after `step` steps; after the last scored one if None.

    Under the sets come both aggregates, and where some prompts have a near-duplicate in the data
    space, those and the others by themselves.

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

    def share(method: str) -> Estimate:
        if not by_set:
            return mean_estimate(run.ratio(method, step))
        return _by_set([run.bits(method, step)], base, sizes, groups)

    def minus_nearest(method: str) -> Estimate:
        if not by_set:
            return mean_estimate(run.ratio(method, step) - run.ratio("nearest", step))
        both = [run.bits(method, step), run.bits("nearest", step)]
        return _by_set(both, base, sizes, groups)

    methods = {method: share(method) for method in run.methods}
    others = [m for m in run.methods if m != "nearest" and "nearest" in run.methods]
    rivals = [methods[m].value for m in RIVALS if m in methods]
    return Line(
        name,
        float(base.sum() / sizes.sum()),
        methods,
        methods["sift"].value - min(rivals) if "sift" in methods and rivals else None,
        {method: minus_nearest(method) for method in others},
        int(run.column("near").sum()),
    )


def _by_set(
    after: list[Float[Array, " n"]],
    base: Float[Array, " n"],
    sizes: Float[Array, " n"],
    groups: Float[Array, " n"],
) -> Estimate:
    """Ratio of bits per byte, each set's byte-weighted and all sets of equal weight.

    Of two methods, the first's less the second's.
    """

    columns = np.stack([*after, base, sizes], axis=1)

    def ratio(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        total = np.zeros((len(draws), columns.shape[1] - 1))
        for group in np.unique(groups):  # every draw's row at a place is of the same set
            own = columns[draws[:, groups[draws[0]] == group]].sum(axis=1)
            total += own[:, :-1] / own[:, -1:]
        shares = 100 * total[:, :-1] / total[:, -1:]
        difference: Float[Array, " r"] = shares[:, 0] - shares[:, 1:].sum(axis=1)
        return difference

    return resampled(len(columns), ratio, groups=groups)
