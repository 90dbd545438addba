"""Jupyter notebooks: the sources of their cells, without outputs; code in fenced blocks."""

import json
from typing import Any

from whet.data.formats import markdown
from whet.data.formats.sections import Converted, FormatError, Section

CELL_LEVEL = 7  # below the six levels of headings


def convert(text: str) -> Converted:
    """The cells in order, each a section with its number, from 1, and the heading above it.

    Raises:
        FormatError: If it is not a notebook, or has no text.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not a notebook: it is not valid JSON ({error})") from error
    language = _language(notebook)
    parts: list[str] = []
    starts: list[tuple[int, int]] = []
    position = 0
    for number, (kind, source) in enumerate(_cells(notebook), start=1):
        if source.strip():
            part = f"```{language}\n{source}\n```\n\n" if kind == "code" else source + "\n\n"
            starts.append((position, number))
            parts.append(part)
            position += len(part)
    if not parts:
        raise FormatError("is a notebook without text: all of its cells are empty")
    content = "".join(parts)
    return Converted(content, _sections(content, starts), {"language": language})


def _language(notebook: Any) -> str:
    metadata = notebook.get("metadata", {}) if isinstance(notebook, dict) else {}
    for part, key in (("kernelspec", "language"), ("language_info", "name")):
        value = metadata.get(part, {}).get(key)
        if isinstance(value, str) and value:
            return value
    return "python"


def _cells(notebook: Any) -> list[tuple[str, str]]:
    """Kind and source of each cell, also of version 3 of the format."""
    sheets = notebook.get("worksheets", []) if isinstance(notebook, dict) else []
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if cells is None and sheets:
        cells = [cell for sheet in sheets for cell in sheet.get("cells", [])]
    if not isinstance(cells, list):
        raise FormatError("is not a notebook: it has no list of cells")
    found = []
    for cell in cells:
        source = cell.get("source", cell.get("input", ""))
        source = "".join(source) if isinstance(source, list) else str(source)
        found.append((str(cell.get("cell_type", "")), source.strip("\n")))
    return found


def _sections(content: str, starts: list[tuple[int, int]]) -> tuple[Section, ...]:
    """The cells and the headings in them: of a heading that begins a cell one section."""
    headings = {s.start: s for s in markdown.convert(content).sections}
    cells = dict(starts)
    sections: list[Section] = []
    meta: dict[str, Any] = {}
    for position in sorted(headings.keys() | cells.keys()):
        if position in headings:
            meta = meta | headings[position].meta
        if position in cells:
            meta = meta | {"cell": cells[position]}
        level = headings[position].level if position in headings else CELL_LEVEL
        sections.append(Section(position, level, meta))
    return tuple(sections)
