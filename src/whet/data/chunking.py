"""Chunking: rules that split long texts into consecutive pieces.

The pieces cover the text without gap or overlap and do not depend on a model, so their numbers are
stable. Blank pieces are dropped.
"""

import re
from collections.abc import Callable, Iterator

TOKEN = re.compile(r"\w{1,16}|[^\w\s]")  # a word (16 letters of a long one), or one symbol
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")

Spans = list[tuple[int, int]]


def get_chunker(rule: str) -> Callable[[str], Spans] | None:
    """The function from a text to the spans of its chunks; None for the rule `whole`.

    >>> get_chunker("paragraph:12")("First.\\n\\nSecond.")
    [(0, 8), (8, 15)]

    Args:
        rule: `tokens:N`: N words or symbols, about 1.3 N tokens of a language model in English
            prose. `paragraph:N`: as many whole paragraphs as fit in N characters; a longer
            paragraph is cut after its last line, or otherwise its last word, that ends within N.

    Raises:
        ValueError: If `rule` is something else.
    """
    if rule == "whole":
        return None
    kind, _, size = rule.partition(":")
    if kind not in ("tokens", "paragraph") or not size.isdecimal() or int(size) < 1:
        raise ValueError(
            f"chunks is {rule!r}: expected whole, tokens:N or paragraph:N, with N of 1 or more"
        )
    boundaries = _token_boundaries if kind == "tokens" else _paragraph_boundaries

    def spans(text: str) -> Spans:
        ends = [*boundaries(text, int(size)), len(text)]
        pairs = zip([0, *ends], ends, strict=False)
        return [(start, end) for start, end in pairs if text[start:end].strip()]

    return spans


def _token_boundaries(text: str, size: int) -> Iterator[int]:
    for number, token in enumerate(TOKEN.finditer(text)):
        if number and number % size == 0:
            yield token.start()


def _paragraph_boundaries(text: str, size: int) -> Iterator[int]:
    chunk_start = previous_end = 0
    for end in [*(match.end() for match in BLANK_LINE.finditer(text)), len(text)]:
        if end - chunk_start > size and previous_end > chunk_start:
            yield previous_end
            chunk_start = previous_end
        while end - chunk_start > size:
            chunk_start = _cut(text, chunk_start, chunk_start + size)
            yield chunk_start
        previous_end = end


def _cut(text: str, start: int, stop: int) -> int:
    """The last position up to `stop` after a line, or otherwise after whitespace, or `stop`."""
    line_end = text.rfind("\n", start, stop) + 1
    if line_end > start:
        return line_end
    return next((i for i in range(stop, start, -1) if text[i - 1].isspace()), stop)
