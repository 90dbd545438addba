"""The cost of quality: seconds by phase, tokens trained, and peak memory, by method and step.

Source: docs/protocol.md; the plane of HullFT (arXiv 2605.30337), quality against seconds.
"""

from dataclasses import dataclass

from whet.evaluate.results import PHASES, Run
from whet.maths.statistics import Estimate, mean_estimate


@dataclass(frozen=True, slots=True)
class Cost:
    """A method after a number of steps; every number is a mean over prompts."""

    method: str
    step: int
    percent: Estimate
    """Bits per byte as % of the base model's."""
    seconds: dict[str, float]
    """Seconds by phase up to the step; `score` is the time of all scored steps together."""
    total: Estimate
    """Seconds of all phases except `score`."""
    tokens: float
    """Number of tokens trained on up to the step."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Quality against seconds and tokens for every method and step, and peak memory."""

    points: tuple[Cost, ...]
    peak_mib: float
    """Peak memory of a process, in MiB."""
    measuring: float
    """Seconds of scoring as % of the seconds of all other phases."""

    def of(self, method: str) -> list[Cost]:
        """The points of one method, by step."""
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
    scoring = sum(point.seconds["score"] for point in last)
    other = sum(point.total.value for point in last)
    peak = float(run.column("peak_mib").max())
    return Costs(tuple(points), peak, 100 * scoring / other if other else 0.0)
