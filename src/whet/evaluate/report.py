"""A run's rows as the table of the paper: bits per byte in % of the base model's, set by set.

Source: SIFT, arXiv 2410.08020, Table 1; both aggregates and the paired difference as in
    docs/protocol.md.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.errors import RunError
from whet.evaluate.run import finished, read_meta, read_rows
from whet.evaluate.trial import Row
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, bootstrap, mean_estimate

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
    """Each SIFT minus nearest, paired by prompt, points of %."""


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


def report(folder: Path, step: int | None = None) -> Report:
    """The table of the run in `folder` after `step` steps; after the last scored one if None.

    Raises:
        RunError: If there is no run, no finished prompt, or `step` was not scored.
    """
    meta, done = read_meta(folder), finished(folder)
    failed = len(read_rows(folder)) - len(done)
    scored = done[0]["steps"]
    step = scored[-1] if step is None else step
    if step not in scored:
        raise RunError(f"step {step} of {folder} was not scored: expected one of {scored}")
    sets = sorted({row["set"] for row in done})
    lines = [_line(name, [r for r in done if r["set"] == name], step) for name in sets]
    if len(sets) > 1:
        lines.append(_line("all, by prompt", done, step))
        lines.append(_line("all, by set", done, step, by_set=True))
    return Report(step, len(done), failed, tuple(lines), meta)


def bits(rows: list[Row], method: str, step: int) -> Float[Array, " n"]:
    """Bits of every prompt's text after `step` steps of `method`."""
    return np.array([r["methods"][method]["bits"][r["steps"].index(step)] for r in rows])


def _line(name: str, rows: list[Row], step: int, *, by_set: bool = False) -> Line:
    names = list(rows[0]["methods"])
    sizes = np.array([r["bytes"] for r in rows], dtype=np.float64)
    base = np.array([r["base_bits"] for r in rows])
    ratios = {m: 100 * bits(rows, m, step) / base for m in names}
    if by_set:
        groups = np.unique([r["set"] for r in rows], return_inverse=True)[1]
        methods = {m: _by_set(bits(rows, m, step), base, sizes, groups) for m in names}
    else:
        methods = {m: mean_estimate(ratios[m]) for m in names}
    sifts = [m for m in names if m.startswith("sift")]
    rivals = [methods[m].value for m in names if m not in sifts]
    delta = methods["sift"].value - min(rivals) if "sift" in names and rivals else None
    compared = "nearest" in names and not by_set
    paired = {m: mean_estimate(ratios[m] - ratios["nearest"]) for m in sifts if compared}
    return Line(name, float(base.sum() / sizes.sum()), methods, delta, paired)


def _by_set(
    after: Float[Array, " n"], base: Float[Array, " n"], sizes: Float[Array, " n"], groups: Array
) -> Estimate:
    """Ratio of bits per byte, each set's byte-weighted and all sets of equal weight."""

    def ratio(rows: Float[Array, "n 4"]) -> float:
        total = np.zeros((2, int(groups.max()) + 1))
        for group in range(total.shape[1]):
            own = rows[rows[:, 3] == group]
            total[:, group] = own[:, :2].sum(0) / own[:, 2].sum()
        return float(100 * total[0].sum() / total[1].sum())

    table = np.stack([after, base, sizes, groups.astype(np.float64)], axis=1)
    return bootstrap(table, ratio, groups=groups)
