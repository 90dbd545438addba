"""Sections of a document: where its headings, pages, cells, definitions or messages begin."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HEADING_SEPARATOR = " > "


class FormatError(ValueError):
    """Why a file has no text, and what to do."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a text, which ends where the next one begins."""

    start: int
    """Position of its first character."""
    level: int
    """Its depth: a text is cut before sections of low levels first."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Metadata of the passages in it, such as `heading`, `page`, `cell` or `symbol`."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A file as text."""

    text: str
    sections: tuple[Section, ...] = ()
    """By position."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Metadata of the document as a whole."""


def heading_paths(headings: Sequence[tuple[int, int, str]]) -> tuple[Section, ...]:
    """Sections that begin at headings, each with the path of headings that leads to it.

    >>> [s.meta["heading"] for s in heading_paths([(0, 1, "Bees"), (9, 2, "Dance"), (20, 1, "Ants")])]
    ['Bees', 'Bees > Dance', 'Ants']

    Args:
        headings: Position, level and text of each heading, by position.
    """
    path: list[tuple[int, str]] = []
    sections = []
    for start, level, title in headings:
        path = [*((above, text) for above, text in path if above < level), (level, title)]
        heading = HEADING_SEPARATOR.join(text for _, text in path if text)
        sections.append(Section(start, level, {"heading": heading} if heading else {}))
    return tuple(sections)


def passage_meta(sections: Sequence[Section], start: int, stop: int) -> dict[str, Any]:
    """Metadata of the passage from `start` to `stop`: of each field, the first value in it.

    >>> sections = (Section(0, 1), Section(9, 1, {"symbol": "dance"}))
    >>> passage_meta(sections, 0, 30), passage_meta(sections, 12, 30)
    ({'symbol': 'dance'}, {'symbol': 'dance'})
    """
    first = max(0, bisect_right(sections, start, key=lambda section: section.start) - 1)
    meta: dict[str, Any] = {}
    for section in sections[first:]:
        if section.start >= stop:
            break
        meta = section.meta | meta
    return meta
