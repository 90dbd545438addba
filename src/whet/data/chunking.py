"""Long texts in pieces: rules that say where one ends and the next begins.

A rule's pieces follow each other without gap or overlap, whatever the model, so that their numbers
are stable. Blank pieces are left out.
"""

import re
from collections.abc import Callable, Iterator

TOKEN = re.compile(r"\w{1,16}|[^\w\s]")  # a word, of a long one 16 letters; or a single sign
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")

Spans = list[tuple[int, int]]


def chunker(rule: str) -> Callable[[str], Spans] | None:
    """Text to the spans of its pieces; None for `whole`.

    `tokens:N`: N words or single signs, about 1.3 N tokens of a language model in English prose.
    `paragraph:N`: as many whole paragraphs as N characters hold; one that is longer is cut behind
    its last line, else its last word, that ends within N.

    Raises:
        ValueError: If `rule` is none of these.
    """
    if rule == "whole":
        return None
    kind, _, size = rule.partition(":")
    if kind not in ("tokens", "paragraph") or not size.isdecimal() or int(size) < 1:
        raise ValueError(
            f"chunks is {rule!r}: expected whole, tokens:N or paragraph:N, with N of 1 or more"
        )
    ends = _token_ends if kind == "tokens" else _paragraph_ends

    def spans(text: str) -> Spans:
        stops = [*ends(text, int(size)), len(text)]
        pairs = zip([0, *stops], stops, strict=False)
        return [(start, stop) for start, stop in pairs if text[start:stop].strip()]

    return spans


def _token_ends(text: str, size: int) -> Iterator[int]:
    for number, token in enumerate(TOKEN.finditer(text)):
        if number and number % size == 0:
            yield token.start()


def _paragraph_ends(text: str, size: int) -> Iterator[int]:
    start = end = 0
    for stop in [*(match.end() for match in BLANK_LINE.finditer(text)), len(text)]:
        if stop - start > size and end > start:
            yield end
            start = end
        while stop - start > size:
            start = _cut(text, start, start + size)
            yield start
        end = stop


def _cut(text: str, start: int, stop: int) -> int:
    """The last place up to `stop` behind a line, else behind a white space, else `stop`."""
    line = text.rfind("\n", start, stop) + 1
    if line > start:
        return line
    return next((i for i in range(stop, start, -1) if text[i - 1].isspace()), stop)
