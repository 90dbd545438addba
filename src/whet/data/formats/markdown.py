"""Markdown: its text as it is, with a section for each heading (CommonMark, by markdown-it)."""

import itertools
import re

from whet.data.formats.sections import Converted, heading_paths

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.*?\n(?:---|\.\.\.)[ \t]*\r?\n", re.DOTALL)
LINE_END = re.compile(r"\r\n|\n|\r")
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]|\s#+$|\s*\{#[^}]*\}$|\s*¶$")
LONGEST_HEADING = 120  # characters


def convert(text: str) -> Converted:
    """The text with a section for each heading; headings inside code blocks are not any."""
    return Converted(text, heading_paths(headings(text)))


def headings(text: str) -> list[tuple[int, int, str]]:
    """Position, level and text of the headings of a text in Markdown."""
    from markdown_it import MarkdownIt

    front = FRONT_MATTER.match(text)
    offset = front.end() if front else 0
    starts = [offset, *(m.end() for m in LINE_END.finditer(text, offset))]
    tokens = MarkdownIt("commonmark").disable("inline").parse(text[offset:])
    return [
        (starts[token.map[0]], int(token.tag[1]), plain_heading(inline.content))
        for token, inline in itertools.pairwise(tokens)
        if token.type == "heading_open" and token.map and token.level == 0
    ]


def plain_heading(title: str) -> str:
    """A heading without its markup, on one line."""
    return " ".join(MARKUP.sub(r"\1", title).split())[:LONGEST_HEADING]
