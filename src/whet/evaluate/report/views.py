"""Further tables of a run: how well σ predicts, when to stop, and the cost of every method."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import MARKDOWN
from rich.table import Table

from whet.errors import RunFolderError
from whet.evaluate.costs import costs
from whet.evaluate.results import Run
from whet.evaluate.uncertainty import calibration, correlations, stops
from whet.maths.statistics import Estimate


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table, and the same as JSON."""

    title: str
    record: Any
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> Table:
        """The first column to the left, numbers to the right."""
        out = Table(title=self.title, box=MARKDOWN, title_justify="left")
        for i, heading in enumerate(self.headings):
            out.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            out.add_row(*row)
        return out


def uncertainty(run: Run, step: int | None = None) -> Iterator[ReportTable]:
    """Correlations, reliability and stopping, for every method that selects.

    Raises:
        RunFolderError: If no method of the run selects, or `step` was not scored.
    """
    methods = [m for m in run.methods if np.isfinite(run.sigma(m, step)).all()]
    if not methods:
        raise RunFolderError(f"{run.folder} has no method that selects: σ is not known")
    for method in methods:
        found = correlations(run, method, step)
        rows = [[c.predictor, c.target, c.kind, _interval(c.estimate, 2)] for c in found]
        headings = ["predictor", "with", "coefficient", "value [90 %]"]
        yield ReportTable(f"{method}: correlations", [asdict(c) for c in found], headings, rows)
        line = calibration(run, method, step)
        rows = [[f"{b.predicted:.3f}", f"{b.bits_per_byte:.3f}", str(b.n)] for b in line.bins]
        title = (
            f"{method}: reliability of σ̂, bits per byte = {line.slope:.2f} σ̂ + "
            f"{line.intercept:.2f} ± {line.error:.3f}"
        )
        yield ReportTable(title, asdict(line), ["σ̂ of the text", "bits per byte", "n"], rows)
        rules = stops(run, method)
        rows = [
            [s.rule, f"{s.steps:.1f}", _interval(s.percent), _interval(s.regret)] for s in rules
        ]
        headings = ["stop", "mean steps", "% of base", "regret, points of %"]
        yield ReportTable(f"{method}: when to stop", [asdict(s) for s in rules], headings, rows)


def cost(run: Run, step: int | None = None) -> Iterator[ReportTable]:
    """Quality, seconds and tokens of every method, after `step` steps or after each scored one."""
    run.bits(run.methods[0], step)  # refuses a step that was not scored
    made = costs(run)
    points = [point for point in made.points if step in (None, point.step)]
    phases = list(points[0].seconds) if points else []
    rows = [
        [p.method, str(p.step), _interval(p.percent), _interval(p.total, 3),
         *(f"{p.seconds[phase]:.3f}" for phase in phases), f"{p.tokens:,.0f}"]
        for p in points
    ]  # fmt: skip
    title = (
        f"Seconds a prompt; peak memory {made.peak_mib:,.0f} MiB; scoring takes "
        f"{made.measuring:.0f} % of the other seconds"
    )
    headings = ["method", "step", "% of base", "seconds", *phases, "tokens"]
    record = asdict(made) | {"points": [asdict(p) for p in points]}
    yield ReportTable(title, record, headings, rows)


VIEWS: dict[str, Callable[[Run, int | None], Iterator[ReportTable]]] = {
    "uncertainty": uncertainty,
    "cost": cost,
}


def _interval(estimate: Estimate, digits: int = 1) -> str:
    if not estimate.has_interval:
        return f"{estimate.value:.{digits}f}"
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{low}, {high}]"
