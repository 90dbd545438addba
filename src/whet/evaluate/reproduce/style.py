"""How every figure looks: one colour a method, told apart by the colour-blind too, labels at lines.

Colours: Okabe & Ito, "Color Universal Design" (2008).
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
COLOURS = {
    "sift": RED, "nearest": INK, "nearest-repeated": MUTED, "uncertainty": BLUE, "random": SKY,
    "mmr": GREEN, "hull": PURPLE, "dynamic": ORANGE, "sift(0.1)": ORANGE, "sift(10)": "#8a2be2",
    "hull(reuse=2)": "#8c4a6e",
}  # fmt: skip
CLEAR = 3  # bands that can lie over each other and still be told apart
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
    """A figure and its axes, in a row, of that size in inches each: one, or an array."""
    matplotlib = require("matplotlib", "eval")
    figures = require("matplotlib.figure", "eval")  # no backend: nothing global, no window
    with matplotlib.rc_context(RC):
        figure = figures.Figure(figsize=(width * panels, height), layout="constrained")
        yield figure, figure.subplots(1, panels)


def save(figure: Any, path: Path) -> None:
    """The same figure is the same file: no dates in it."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    out = io.BytesIO()
    figure.savefig(out, format=path.suffix[1:], dpi=160, metadata=metadata)
    path.write_bytes(out.getvalue())


def label(method: str) -> str:
    """A method as a reader calls it: `SIFT(0.1)`, `NN, order=reversed`."""
    name, bracket, own = method.partition("(")
    own = own.removesuffix(")")
    short = SHORT.get(name, name)
    if not bracket:
        return short
    return f"{short}, {own}" if "=" in own else f"{short}({own})"


def whole(axes: Any) -> None:
    """Mark the horizontal axis at whole numbers."""
    ticker = require("matplotlib.ticker", "eval")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def plain_ticks(axis: Any) -> None:
    """Mark a logarithmic axis at 1, 2, 5, 10 …, in plain numbers."""
    axis.set_minor_locator(require("matplotlib.ticker", "eval").LogLocator(subs=(2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}")


def lines(
    axes: Any,
    x: Sequence[float],
    curves: dict[str, Sequence[Estimate]],
    colours: dict[str, str] | None = None,
) -> None:
    """A line a name with its interval as a band, named at its right end; no two names overlap."""
    named = []
    for i, (name, curve) in enumerate(curves.items()):
        shade = (colours or {}).get(name, SERIES[i % len(SERIES)])
        values = [point.value for point in curve]
        axes.plot(x, values, color=shade, marker="o", ms=3, clip_on=False)
        axes.fill_between(
            x,
            [p.low for p in curve],
            [p.high for p in curve],
            color=shade,
            lw=0,
            alpha=0.12 if len(curves) <= CLEAR else 0.04,
        )
        named.append((values[-1], name, shade))
    name_ends(axes, x[-1], named)


def ends(points: Sequence[Estimate]) -> Array:
    """How far the intervals reach below and above the points, as error bars take it."""
    reach = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    return np.maximum(reach, 0)


def name_ends(axes: Any, x: float, named: list[tuple[float, str, str]]) -> None:
    """Write each name beside its height at `x`, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.058 * (high - low)
    heights = spread([height for height, _, _ in named], gap)
    for height, (_, name, shade) in zip(heights, named, strict=True):
        axes.annotate(
            name, (x, height), xytext=(6, 0), textcoords="offset points", color=shade,
            va="center", fontsize=8.5, annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(low, high)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved as little as may be, in their order, so that neighbours are `gap` apart.

    Overlapping ones are merged into blocks about their mean.
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
        for place, i in enumerate(block):
            placed[i] = _bottom(block, heights, gap) + gap * place
    return placed


def _bottom(block: list[int], heights: Sequence[float], gap: float) -> float:
    centre = sum(heights[i] for i in block) / len(block)
    return float(centre - gap * (len(block) - 1) / 2)


def bars(
    axes: Any,
    names: Sequence[str],
    groups: dict[str, Sequence[Estimate | None]],
    colours: dict[str, str] | None = None,
    *,
    digits: int = 1,
) -> None:
    """Grouped horizontal bars with intervals and values at their ends; a group a colour."""
    height = 0.8 / len(groups)
    shades = {g: (colours or {}).get(g, SERIES[i % len(SERIES)]) for i, g in enumerate(groups)}
    for g, (group, values) in enumerate(groups.items()):
        for i, value in enumerate(values):
            if value is None:
                continue
            y = i + (g - (len(groups) - 1) / 2) * height
            axes.barh(y, value.value, height * 0.9, color=shades[group], alpha=0.9)
            axes.errorbar(value.value, y, xerr=ends([value]), color=INK, lw=0.8, capsize=2)
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


def reference(axes: Any, at: float, name: str = "", *, across: bool = True) -> None:
    """A thin line of what the numbers are compared with, across the axes or down."""
    draw = axes.axhline if across else axes.axvline
    draw(at, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    if name:
        blend = axes.get_yaxis_transform() if across else axes.get_xaxis_transform()
        axes.annotate(
            name, (0.01, at) if across else (at, 1), xycoords=blend, xytext=(0, 3),
            textcoords="offset points", color=MUTED, fontsize=8, ha="left" if across else "center",
        )  # fmt: skip


def dots(
    axes: Any,
    names: Sequence[str],
    values: dict[str, Sequence[Estimate]],
    colours: dict[str, str] | None = None,
) -> None:
    """A row a name, in it a dot a group with its interval; the legend stands below."""
    step = 0.66 / max(1, len(values) - 1) if len(values) > 1 else 0.0
    for g, (group, points) in enumerate(values.items()):
        shade = (colours or {}).get(group, SERIES[g % len(SERIES)])
        y = np.arange(len(names)) + (g - (len(values) - 1) / 2) * step
        x = np.array([p.value for p in points])
        axes.errorbar(
            x, y, xerr=ends(points), fmt="o", ms=4, color=shade, ecolor=shade,
            elinewidth=1, alpha=0.95, label=group,
        )  # fmt: skip
    for i in range(0, len(names), 2):
        axes.axhspan(i - 0.5, i + 0.5, color=GRID, alpha=0.35, lw=0, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=5, handletextpad=0.1)
