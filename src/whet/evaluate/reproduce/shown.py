"""What an artefact shows: a table, a picture of it, and the few numbers that its claims rest on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.table import Table

from whet.evaluate.reproduce import style
from whet.maths.statistics import Estimate

Cell = str | int | float | Estimate | None
Rows = list[tuple[Cell, ...]]
Draw = Callable[[Any], None]
"""Draws on the axes that `style.canvas` makes: one, or an array of `panels`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A view's outcome."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n: int
    """Prompts, or whatever the intervals are over."""
    draw: Draw
    panels: int = 1
    width: float = 5.6
    """Of a panel, inches."""
    height: float = 3.6
    numbers: Mapping[str, Estimate] = field(default_factory=dict)
    """What the insights quote, by name."""
    note: str = ""
    """What the caption adds for these data."""

    def record(self) -> dict[str, Any]:
        """As JSON, but for the picture."""
        return {
            "n": self.n,
            "columns": list(self.columns),
            "rows": [[_plain(cell) for cell in row] for row in self.rows],
            "numbers": {name: asdict(number) for name, number in self.numbers.items()},
            "note": self.note,
        }

    def table(self, title: str) -> Table:
        """For the terminal."""
        out = Table(box=MARKDOWN, title=title, title_justify="left", title_style="bold")
        for i, heading in enumerate(self.columns):
            out.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            out.add_row(*map(spelled, row))
        return out

    def write(self, folder: Path, name: str, about: dict[str, Any]) -> list[Path]:
        """`name`.json, .png and .svg in `folder`; `about` goes into the JSON too."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}{suffix}" for suffix in (".json", ".png", ".svg")]
        paths[0].write_text(json.dumps(about | self.record(), indent=1, ensure_ascii=False) + "\n")
        with style.canvas(self.panels, self.width, self.height) as (figure, axes):
            self.draw(axes)
            for path in paths[1:]:
                style.save(figure, path)
        return paths


def spelled(cell: Cell) -> str:
    """A cell as text: an estimate with its interval, a float with the digits it needs."""
    match cell:
        case None:
            return "–"
        case Estimate() if not cell.has_interval:
            return number(cell.value)
        case Estimate():
            return f"{number(cell.value)} [{number(cell.low)}, {number(cell.high)}]"
        case float():
            return number(cell)
        case _:
            return str(cell)


def number(value: float) -> str:
    """With as many digits as are of use: 73.5, 0.862, 0.0123, 1.2e-05."""
    size = abs(value)
    if size >= 10_000:
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.{digits}f}"


def _plain(cell: Cell) -> Any:
    return asdict(cell) if isinstance(cell, Estimate) else cell
