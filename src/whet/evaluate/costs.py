"""What quality costs: seconds by phase, tokens trained, peak memory, by method and step.

Source: docs/protocol.md; the plane of HullFT (arXiv 2605.30337), quality against seconds.
"""

from dataclasses import dataclass

from whet.evaluate.results import PHASES, Run
from whet.maths.statistics import Estimate, mean_estimate


@dataclass(frozen=True, slots=True)
class Cost:
    """A method after a number of steps; all numbers are means over prompts."""

    method: str
    step: int
    percent: Estimate
    """Bits per byte in % of base."""
    seconds: dict[str, float]
    """By phase, up to the step; score is what measuring cost, every scored step together."""
    total: Estimate
    """Seconds of all phases but score."""
    tokens: float
    """Trained, up to the step."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The planes of quality against seconds and tokens, and what the machine held."""

    points: tuple[Cost, ...]
    peak_mib: float
    """The most memory that a process held."""
    measuring: float
    """Seconds of scoring, in % of the seconds of all else."""

    def of(self, method: str) -> list[Cost]:
        """The points of a method, by step."""
        return [point for point in self.points if point.method == method]


def costs(run: Run) -> Costs:
    """The cost of every method of a run after every scored step."""
    points = [
        Cost(
            method,
            step,
            mean_estimate(run.ratio(method, step)),
            {p.removesuffix("_s"): float(run.seconds(method, step, [p]).mean()) for p in PHASES},
            mean_estimate(run.seconds(method, step)),
            float(run.tokens(method, step).mean()),
        )
        for method in run.methods
        for step in run.steps
    ]
    last = [point for point in points if point.step == run.steps[-1]]
    scored = sum(point.seconds["score"] for point in last)
    used = sum(point.total.value for point in last)
    peak = float(run.column("peak_mib").max())
    return Costs(tuple(points), peak, 100 * scored / used if used else 0.0)
