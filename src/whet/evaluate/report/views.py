"""Further tables of a run: how well σ predicts, when to stop, and the cost of every method."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from whet.errors import RunFolderError
from whet.evaluate.report.costs import costs
from whet.evaluate.report.render import format_estimate, text_table
from whet.evaluate.report.uncertainty import calibration, correlations, stops
from whet.evaluate.results import Run


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table, as text and as JSON."""

    title: str
    record: Any
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> Table:
        """The table for the terminal, without the title, which it would break into lines."""
        return text_table(self.headings, self.rows)


def uncertainty(run: Run, step: int | None = None) -> Iterator[ReportTable]:
    """Correlations, reliability and stopping rules for every method that selects documents.

    Raises:
        RunFolderError: If no method of the run selects documents, or `step` was not scored.
    """
    methods = [m for m in run.methods if np.isfinite(run.sigma(m, step)).all()]
    if not methods:
        raise RunFolderError(f"{run.folder} has no method that selects documents, so no σ")
    for method in methods:
        results = correlations(run, method, step)
        rows = [[c.predictor, c.target, c.kind, format_estimate(c.estimate, 2)] for c in results]
        headings = ["predictor", "target", "coefficient", "value [90 %]"]
        yield ReportTable(f"{method}: correlations", [asdict(c) for c in results], headings, rows)
        line = calibration(run, method, step)
        rows = [[f"{b.predicted:.3f}", f"{b.bits_per_byte:.3f}", str(b.n)] for b in line.bins]
        title = (
            f"{method}: reliability of σ̂, bits per byte = {line.slope:.2f} σ̂ + "
            f"{line.intercept:.2f} ± {line.error:.3f}"
        )
        yield ReportTable(title, asdict(line), ["σ̂ of the text", "bits per byte", "n"], rows)
        rules = stops(run, method)
        rows = [
            [s.rule, f"{s.steps:.1f}", format_estimate(s.percent), format_estimate(s.regret)]
            for s in rules
        ]
        headings = ["stop", "mean steps", "% of base", "regret, percentage points"]
        yield ReportTable(f"{method}: when to stop", [asdict(s) for s in rules], headings, rows)


def cost(run: Run, step: int | None = None) -> Iterator[ReportTable]:
    """Quality, seconds and tokens of every method, after `step` steps or after each scored step.

    Raises:
        RunFolderError: If `step` was not scored.
    """
    run.bits(run.methods[0], step)  # raises if the step was not scored
    results = costs(run)
    points = [point for point in results.points if step in (None, point.step)]
    phases = list(points[0].seconds) if points else []
    rows = [
        [p.method, str(p.step), format_estimate(p.percent), format_estimate(p.total, 3),
         *(f"{p.seconds[phase]:.3f}" for phase in phases), f"{p.tokens:,.0f}"]
        for p in points
    ]  # fmt: skip
    title = (
        f"Seconds per prompt; peak memory {results.peak_mib:,.0f} MiB; scoring adds "
        f"{results.measuring:.0f} % to the other seconds"
    )
    headings = ["method", "step", "% of base", "seconds", *phases, "tokens"]
    record = asdict(results) | {"points": [asdict(p) for p in points]}
    yield ReportTable(title, record, headings, rows)


VIEWS: dict[str, Callable[[Run, int | None], Iterator[ReportTable]]] = {
    "uncertainty": uncertainty,
    "cost": cost,
}
