"""A report as Markdown tables (rich) and curves (matplotlib)."""

from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from whet.errors import require
from whet.evaluate.report.table import MIN_N, SHORT, Report
from whet.evaluate.results import Run
from whet.maths.statistics import Estimate, mean_estimate

WIDE = 10_000  # columns: tables are never cut to the width of the terminal


def table(report: Report) -> Table:
    """One row per set: number of prompts, base, % of base per method, Δ, SIFT and whet minus nearest.

    The best of several methods is bold in a row of at least `MIN_N` prompts.
    """
    names = list(report.lines[0].methods)
    ours = [name for name in report.lines[0].paired if name.startswith(("sift", "whet"))]
    near = any(line.near for line in report.lines)
    headings = ["set", "n", *(["near"] if near else []), "base", *map(short, names), "Δ"]
    headings += [f"{short(name)} − NN" for name in ours]
    rows = []
    for line in report.lines:
        n = max(estimate.n for estimate in line.methods.values())
        compared = n >= MIN_N and len(names) > 1
        best = min(e.value for e in line.methods.values()) if compared else None
        rows.append([
            " ".join(line.name.split()).replace("|", "\\|"),
            str(n),
            *([str(line.near)] if near else []),
            f"{line.base:.3f}",
            *(_percent_cell(line.methods[name], best) for name in names),
            "" if line.delta is None else f"{line.delta:+.1f}",
            *(format_estimate(line.paired[m], sign="+") if m in line.paired else "" for m in ours),
        ])  # fmt: skip
    return text_table(headings, rows)


def text_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None
) -> Table:
    """A Markdown table: the first column is aligned left, the others right."""
    result = Table(title=title, box=MARKDOWN, title_justify="left")
    for i, heading in enumerate(headings):
        result.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result


def markdown(content: Report | Table) -> str:
    """A report, or another table, as Markdown, one line per row."""
    console = Console(width=WIDE, file=StringIO(), markup=False)
    console.print(content if isinstance(content, Table) else table(content))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.strip() for line in lines if line.strip())


def caption(report: Report) -> str:
    """One paragraph that explains the numbers of the table."""
    near = ""
    if any(line.near for line in report.lines):
        near = " near: prompts that have a near-duplicate in the data space."
    notes = "".join(f" {note}" for note in report.meta.get("notes", ()))
    failed = f" {report.failed} prompts failed and are left out." if report.failed else ""
    shown = {method for line in report.lines for method in line.methods}
    names = [f" {SHORT[name]}: {name}." for name in SHORT if name in shown and name != "sift"]
    return (
        f"Bits per byte as % of the base model's after {report.step} steps, less is better (± half "
        "of the 90 % bootstrap interval over documents); base: bits per byte before any step. Δ: "
        "SIFT minus the best baseline; − NN: difference to nearest neighbors, paired by document; "
        f"both in percentage points.{''.join(names)}{near}{failed}{notes}"
    )


def curves(run: Run, path: Path) -> None:
    """Plot % of base against steps, one line per method, to PNG or SVG.

    Bars at the last step are its 90 % intervals.
    """
    plt = require("matplotlib.pyplot", "eval")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, method in enumerate(run.methods):
        values = [mean_estimate(run.ratio(method, step)).value for step in run.steps]
        style = "-" if place % 2 else "--"  # so that one line is seen below another
        (line,) = axes.plot(run.steps, values, style, marker="o", ms=3, label=short(method))
        last, color = mean_estimate(run.ratio(method, run.steps[-1])), line.get_color()
        x = run.steps[-1] * (1.02 + 0.015 * place)
        axes.plot([x, x], [last.low, last.high], color=color, lw=2, alpha=0.6)
    axes.axhline(100, color="grey", lw=0.8)
    axes.set(xlabel="gradient steps", ylabel="bits per byte, % of base")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"{len(run)} prompts; bars: 90 % intervals at the last step", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def short(method: str) -> str:
    """The name of a method in tables, with the paper's abbreviation of its selector.

    >>> short("nearest(order=reversed)")
    'NN(order=reversed)'
    """
    name, bracket, settings = method.partition("(")
    return SHORT.get(name, name) + bracket + settings


def format_estimate(
    estimate: Estimate, digits: int = 1, *, sign: str = "", unit: str = "", half: bool = False,
    interval: bool = True,
) -> str:  # fmt: skip
    """An estimate as text, with its interval if it has one: `73.5 [72.9, 74.1]`.

    Args:
        estimate: The number and its interval.
        digits: Digits after the decimal point.
        sign: `+` to write the sign of positive numbers too.
        unit: Text after the number, such as ` %`.
        half: Write half the width instead of the interval: `73.5 ± 0.6`.
        interval: False to leave the interval out.
    """
    value = f"{estimate.value:{sign}.{digits}f}{unit}"
    if not (interval and estimate.has_interval):
        return value
    if half:
        return f"{value} ± {estimate.half:.{digits}f}"
    return f"{value} [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"


def _percent_cell(estimate: Estimate, best: float | None) -> str:
    number, plus_minus, half = format_estimate(estimate, half=True).partition(" ± ")
    return (f"**{number}**" if estimate.value == best else number) + plus_minus + half
