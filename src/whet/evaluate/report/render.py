"""A report for the eye: Markdown tables by rich, curves by matplotlib."""

from io import StringIO
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from whet.errors import require
from whet.evaluate.report.table import SHORT, Report
from whet.evaluate.results import Run
from whet.maths.statistics import Estimate, mean_estimate

WIDE = 10_000  # columns: a table is as wide as it is, and never cut


def table(report: Report) -> Table:
    """Per set: n, those with a near-duplicate, base, % of base (best in bold), Δ, SIFT − NN."""
    names = list(report.lines[0].methods)
    sifts = [m for m in report.lines[0].paired if m.startswith("sift")]
    near = any(line.near for line in report.lines)
    minus = [f"{short(m)} − NN" for m in sifts]
    out = Table(box=MARKDOWN)
    out.add_column("set", no_wrap=True)
    for heading in (
        "n",
        *(["near"] if near else []),
        "base",
        *(short(m) for m in names),
        "Δ",
        *minus,
    ):
        out.add_column(heading, justify="right", no_wrap=True)
    for line in report.lines:
        n = max(e.n for e in line.methods.values())
        best = min(e.value for e in line.methods.values())
        cells = [_cell(line.methods[m], best) for m in names]
        delta = "" if line.delta is None else f"{line.delta:+.1f}"
        paired = [_paired(line.paired.get(m)) for m in sifts]
        counts = [str(n), str(line.near)] if near else [str(n)]
        name = " ".join(line.name.split()).replace("|", "\\|")
        out.add_row(name, *counts, f"{line.base:.3f}", *cells, delta, *paired)
    return out


def markdown(report: Report) -> str:
    """The table as Markdown, one line a row."""
    console = Console(width=WIDE, file=StringIO(), markup=False)
    console.print(table(report))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.strip() for line in lines if line.strip())


def caption(report: Report) -> str:
    """What the table's numbers are."""
    near = ""
    if any(line.near for line in report.lines):
        near = " near: prompts that have a near-duplicate in the data space."
    failed = f" {report.failed} prompts failed and are left out." if report.failed else ""
    return (
        f"Bits per byte in % of the base model after {report.step} steps (± half of the 90 % "
        "bootstrap interval over documents); base: bits per byte before. Δ: SIFT minus the best "
        f"baseline; − NN: minus NN, paired by document, points of %.{near}{failed}"
    )


def curves(run: Run, path: Path) -> None:
    """% of base against steps, a line a method with its 90 % interval; PNG or SVG by suffix."""
    plt = require("matplotlib.pyplot", "eval")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method in run.methods:
        means = [mean_estimate(run.ratio(method, step)) for step in run.steps]
        values = [m.value for m in means]
        (line,) = axes.plot(run.steps, values, marker="o", ms=3, label=short(method))
        low, high = [m.low for m in means], [m.high for m in means]
        axes.fill_between(run.steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(100, color="grey", lw=0.8)
    axes.set(xlabel="gradient steps", ylabel="bits per byte, % of base")
    axes.set_title(f"{len(run)} prompts, 90 % intervals", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def short(method: str) -> str:
    name, parenthesis, lam = method.partition("(")
    return SHORT.get(name, name) + parenthesis + lam


def _cell(estimate: Estimate, best: float) -> str:
    number = f"{estimate.value:.1f}"
    if estimate.value == best:
        number = f"**{number}**"
    return f"{number} ± {estimate.half:.1f}" if estimate.has_interval else number


def _paired(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if not estimate.has_interval:
        return f"{estimate.value:+.1f}"
    return f"{estimate.value:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"
