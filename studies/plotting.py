"""The look of all figures: one color per method, readable by the color-blind, labels at the lines.

Colors: Okabe & Ito, "Color Universal Design" (2008).
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from whet.errors import require
from whet.evaluate.report.table import SHORT
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate

INK, MUTED, GRID = "#222222", "#6b6b6b", "#e4e4e4"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9",
)  # fmt: skip
COLORS = {
    "sift": RED, "nearest": INK, "nearest-repeated": MUTED, "uncertainty": BLUE, "random": SKY,
    "mmr": GREEN, "hull": PURPLE, "dynamic": ORANGE, "sift(0.1)": ORANGE, "sift(10)": "#8a2be2",
    "hull(gradient_reuse=2)": "#8c4a6e", "streaming": "#5a7d2a",
}  # fmt: skip
MAX_OPAQUE_BANDS = 3  # more overlapping bands are drawn paler, to keep them distinguishable
SERIES = (RED, BLUE, GREEN, ORANGE, PURPLE, SKY, INK, MUTED)
RC = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK,
    "figure.facecolor": "white", "lines.linewidth": 1.6, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "whet",
}  # fmt: skip


@contextmanager
def canvas(panels: int, width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes: one, or an array of `panels` in a row; sizes in inches each."""
    matplotlib = require("matplotlib", "eval")
    figures = require("matplotlib.figure", "eval")  # no backend, global state or window
    with matplotlib.rc_context(RC):
        figure = figures.Figure(figsize=(width * panels, height), layout="constrained")
        yield figure, figure.subplots(1, panels)


def save(figure: Any, path: Path) -> None:
    """Save a figure without a date, so that equal figures give equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    out = io.BytesIO()
    figure.savefig(out, format=path.suffix[1:], dpi=160, metadata=metadata)
    path.write_bytes(out.getvalue())


def label(method: str) -> str:
    """Return the label of a method, such as `SIFT(0.1)` or `NN, order=reversed`."""
    name, bracket, options = method.partition("(")
    options = options.removesuffix(")")
    short = SHORT.get(name, name)
    if not bracket:
        return short
    return f"{short}, {options}" if "=" in options else f"{short}({options})"


def integer_ticks(axes: Any) -> None:
    """Place the ticks of the horizontal axis at integers."""
    ticker = require("matplotlib.ticker", "eval")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def plain_ticks(axis: Any) -> None:
    """Place the ticks of a logarithmic axis at 1, 2, 5, 10 …, in plain numbers."""
    axis.set_minor_locator(require("matplotlib.ticker", "eval").LogLocator(subs=(2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}")


def lines(
    axes: Any,
    x: Sequence[float],
    curves: dict[str, Sequence[Estimate]],
    colors: dict[str, str] | None = None,
) -> None:
    """Draw one line per name, with its interval as a band and its name at the right end."""
    labels = []
    for i, (name, curve) in enumerate(curves.items()):
        color = (colors or {}).get(name, SERIES[i % len(SERIES)])
        values = [point.value for point in curve]
        axes.plot(x, values, color=color, marker="o", ms=3, clip_on=False)
        axes.fill_between(
            x,
            [p.low for p in curve],
            [p.high for p in curve],
            color=color,
            lw=0,
            alpha=0.12 if len(curves) <= MAX_OPAQUE_BANDS else 0.04,
        )
        labels.append((values[-1], name, color))
    label_ends(axes, x[-1], labels)


def error_bars(points: Sequence[Estimate]) -> Array:
    """Return how far the intervals extend below and above the points, as `errorbar` expects."""
    extents = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    return np.maximum(extents, 0)


def label_ends(axes: Any, x: float, labels: list[tuple[float, str, str]]) -> None:
    """Write labels (height, text, color) next to `x`, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.058 * (high - low)
    heights = spread([height for height, _, _ in labels], gap)
    for height, (_, text, color) in zip(heights, labels, strict=True):
        axes.annotate(
            text, (x, height), xytext=(6, 0), textcoords="offset points", color=color,
            va="center", fontsize=8.5, annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(low, high)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights as little as possible so that neighbors are `gap` apart; keep their order.

    Overlapping heights are merged into blocks, centered at their mean.
    """
    order = np.argsort(heights, kind="stable")
    blocks: list[list[int]] = []
    for i in order.tolist():
        blocks.append([i])
        while len(blocks) > 1 and _bottom(blocks[-1], heights, gap) < (
            _bottom(blocks[-2], heights, gap) + gap * len(blocks[-2])
        ):
            last = blocks.pop()
            blocks[-1] += last
    placed = [0.0] * len(heights)
    for block in blocks:
        for position, i in enumerate(block):
            placed[i] = _bottom(block, heights, gap) + gap * position
    return placed


def _bottom(block: list[int], heights: Sequence[float], gap: float) -> float:
    center = sum(heights[i] for i in block) / len(block)
    return float(center - gap * (len(block) - 1) / 2)


def bars(
    axes: Any,
    names: Sequence[str],
    groups: dict[str, Sequence[Estimate | None]],
    colors: dict[str, str] | None = None,
    *,
    digits: int = 1,
) -> None:
    """Draw grouped horizontal bars, one color per group, with intervals and values."""
    height = 0.8 / len(groups)
    shades = {g: (colors or {}).get(g, SERIES[i % len(SERIES)]) for i, g in enumerate(groups)}
    for g, (group, values) in enumerate(groups.items()):
        for i, value in enumerate(values):
            if value is None:
                continue
            y = i + (g - (len(groups) - 1) / 2) * height
            axes.barh(y, value.value, height * 0.9, color=shades[group], alpha=0.9)
            axes.errorbar(value.value, y, xerr=error_bars([value]), color=INK, lw=0.8, capsize=2)
            left = value.value < 0
            axes.annotate(
                f"{value.value:.{digits}f}", (value.low if left else value.high, y),
                xytext=(-4 if left else 4, 0), textcoords="offset points", va="center", fontsize=8,
                ha="right" if left else "left",
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    if len(groups) > 1:
        for group, shade in shades.items():
            axes.scatter([], [], marker="s", color=shade, label=group)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, handletextpad=0.2)


def reference_line(axes: Any, at: float, name: str = "", *, horizontal: bool = True) -> None:
    """Draw a thin dashed line at the value that the numbers are compared with."""
    draw = axes.axhline if horizontal else axes.axvline
    draw(at, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    if name:
        transform = axes.get_yaxis_transform() if horizontal else axes.get_xaxis_transform()
        axes.annotate(
            name, (0.01, at) if horizontal else (at, 1), xycoords=transform, xytext=(0, 3),
            textcoords="offset points", color=MUTED, fontsize=8,
            ha="left" if horizontal else "center",
        )  # fmt: skip


def dots(
    axes: Any,
    names: Sequence[str],
    values: dict[str, Sequence[Estimate]],
    colors: dict[str, str] | None = None,
) -> None:
    """Draw one row per name with one dot and interval per group, and a legend below."""
    step = 0.66 / max(1, len(values) - 1) if len(values) > 1 else 0.0
    for g, (group, points) in enumerate(values.items()):
        color = (colors or {}).get(group, SERIES[g % len(SERIES)])
        y = np.arange(len(names)) + (g - (len(values) - 1) / 2) * step
        x = np.array([p.value for p in points])
        axes.errorbar(
            x, y, xerr=error_bars(points), fmt="o", ms=4, color=color, ecolor=color,
            elinewidth=1, alpha=0.95, label=group,
        )  # fmt: skip
    for i in range(0, len(names), 2):
        axes.axhspan(i - 0.5, i + 0.5, color=GRID, alpha=0.35, lw=0, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=5, handletextpad=0.1)
