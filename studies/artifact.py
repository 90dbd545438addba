"""An artifact: a table, its figure, and the few numbers that the claims quote."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.table import Table

from studies import plotting
from whet.maths.statistics import Estimate

Cell = str | int | float | Estimate | None
Rows = list[tuple[Cell, ...]]
Draw = Callable[[Any], None]
"""Draws on the axes of `plotting.canvas`: on one, or on an array of `panels`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A table or figure of the paper, computed on our data."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n: int
    """Number of prompts, or of whatever the intervals are computed over."""
    draw: Draw
    panels: int = 1
    width: float = 5.6
    """Width of a panel in inches."""
    height: float = 3.6
    numbers: Mapping[str, Estimate] = field(default_factory=dict)
    """Numbers that the claims quote, by name."""
    note: str = ""
    """Sentence that the caption adds about these data."""

    def record(self) -> dict[str, Any]:
        """Return everything except the figure as JSON values."""
        return {
            "n": self.n,
            "columns": list(self.columns),
            "rows": [[_json_value(cell) for cell in row] for row in self.rows],
            "numbers": {name: asdict(number) for name, number in self.numbers.items()},
            "note": self.note,
        }

    def table(self, title: str) -> Table:
        """Return the table for the terminal."""
        table = Table(box=MARKDOWN, title=title, title_justify="left", title_style="bold")
        for i, heading in enumerate(self.columns):
            table.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(format_cell, row))
        return table

    def write(self, folder: Path, name: str, metadata: dict[str, Any]) -> list[Path]:
        """Write NAME.json, NAME.png and NAME.svg to `folder`; the JSON includes `metadata`."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}{suffix}" for suffix in (".json", ".png", ".svg")]
        record = metadata | self.record()
        paths[0].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        with plotting.canvas(self.panels, self.width, self.height) as (figure, axes):
            self.draw(axes)
            for path in paths[1:]:
                plotting.save(figure, path)
        return paths


def format_cell(cell: Cell) -> str:
    """Format a cell: an estimate with its interval, a float with as many digits as it needs."""
    match cell:
        case None:
            return "–"
        case Estimate() if not cell.has_interval:
            return format_number(cell.value)
        case Estimate():
            low, high = format_number(cell.low), format_number(cell.high)
            return f"{format_number(cell.value)} [{low}, {high}]"
        case float():
            return format_number(cell)
        case _:
            return str(cell)


def format_number(value: float) -> str:
    """Format a number to about three significant digits: 73.5, 0.862, 0.0123, 1.2e-05."""
    size = abs(value)
    if size >= 10_000:
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.{digits}f}"


def _json_value(cell: Cell) -> Any:
    return asdict(cell) if isinstance(cell, Estimate) else cell
