"""Chunking: rules that split long texts into consecutive pieces.

The pieces cover the text without gap or overlap and do not depend on a model, so their numbers are
stable. Blank pieces are dropped.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from whet.data.formats.sections import Section

TOKEN = re.compile(r"\w{1,16}|[^\w\s]")  # a word (16 letters of a long one), or one symbol
BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")

AUTO, PASSAGES = "auto", "passages"
PASSAGE_WORDS = 300  # of a passage: some 400 tokens of a language model, so it fits small contexts
TOKENS_PER_WORD = 1.5  # of embedders' tokenizers, for prose with some symbols and rare words
WORD = re.compile(r"[A-Za-z_]{1,12}|\d{1,3}|[^\W\d_\u0e00-\u0eff\u1000-\uffff]{1,3}|[^\s]")
"""What `passages:N` counts: a word (12 letters of a long one), three digits or three letters of
another alphabet, one letter of a script such as Chinese, or one symbol. It costs a tokenizer about
1.3 tokens, in any language."""
BREAKS = (
    re.compile(r"\n[^\S\n]*\n(?:[^\S\n]*\n)*(?=[^\s)\]}])"),  # before a paragraph or definition
    re.compile(r"\n[^\S\n]*\n(?:[^\S\n]*\n)*"),  # before an indented paragraph
    re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^\W\d_a-z])|[。！？]\s*"),  # before a sentence
    re.compile(r"\n"),
    re.compile(r"\s+"),
)
"""Where `passages:N` may cut, the best places first."""

Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Chunker:
    """A function from a text to the spans of its chunks."""

    boundaries: Callable[[str, int], Iterator[int]]
    size: int
    keeps_short_texts: bool
    """Whether a text that need not be cut remains the document that it is, with its own id."""

    def __call__(self, text: str) -> Spans:
        """The spans of a text without sections, in order."""
        ends = [*self.boundaries(text, self.size), len(text)]
        pairs = zip([0, *ends], ends, strict=False)
        return [(start, end) for start, end in pairs if text[start:end].strip()]

    def cut(self, text: str, sections: Sequence[Section]) -> Spans:
        """The spans, in order; `passages:N` cuts at the beginnings of sections first."""
        if sections and self.keeps_short_texts:
            return cut_at_sections(text, sections, self.size)
        return self(text)


def get_chunker(rule: str) -> Chunker | None:
    """The function from a text to the spans of its chunks; None for the rule `whole`.

    >>> get_chunker("paragraph:12")("First.\\n\\nSecond.")
    [(0, 8), (8, 15)]

    Args:
        rule: `passages:N`: at most N words or symbols, cut between paragraphs, otherwise sentences,
            lines or words, without a small rest at the end. `tokens:N`: N words or symbols, about
            1.3 N tokens of a language model in English prose. `paragraph:N`: as many whole
            paragraphs as fit in N characters; a longer paragraph is cut after its last line, or
            otherwise its last word, that ends within N.

    Raises:
        ValueError: If `rule` is something else.
    """
    if rule == "whole":
        return None
    kind, _, size = rule.partition(":")
    if kind not in _BOUNDARIES or not size.isdecimal() or int(size) < 1:
        raise ValueError(
            f"chunks is {rule!r}: expected whole, passages:N, tokens:N or paragraph:N, with N of 1 "
            "or more"
        )
    return Chunker(_BOUNDARIES[kind], int(size), kind == PASSAGES)


def cut_at_sections(text: str, sections: Sequence[Section], size: int) -> Spans:
    """Spans of passages of at most `size` words that begin where sections begin, if they can.

    A text that is too long is cut before its sections of the lowest level, a section that is too
    long before those in it, and one without any as by `passages:N`. A passage of less than half of
    `size` words is put together with a neighbor if both fit.
    """
    words = [match.end() for match in WORD.finditer(text)]
    starts = sorted({s.start: s for s in reversed(sections)}.values(), key=lambda s: s.start)
    spans = _cut_part(text, words, starts, 0, len(text), size)
    return [(start, stop) for start, stop in spans if text[start:stop].strip()]


def _cut_part(
    text: str, words: list[int], inner: Sequence[Section], start: int, stop: int, size: int
) -> Spans:
    def count(start: int, stop: int) -> int:
        return bisect_right(words, stop) - bisect_right(words, start)

    if count(start, stop) <= size:
        return [(start, stop)]
    inner = [section for section in inner if start < section.start < stop]
    if not inner:
        ends = [*(start + end for end in _passage_boundaries(text[start:stop], size)), stop]
        return list(pairwise([start, *ends]))
    top = min(section.level for section in inner)
    cuts = [start, *(section.start for section in inner if section.level == top), stop]
    spans: Spans = []
    for first, last in pairwise(cuts):
        for part in _cut_part(text, words, inner, first, last, size):
            fits = bool(spans) and count(spans[-1][0], part[1]) <= size
            if fits and 2 * min(count(*spans[-1]), count(*part)) < size:
                part = (spans.pop()[0], part[1])
            spans.append(part)
    return spans


def passage_rule(max_tokens: int | None) -> str:
    """The rule for passages of at most 300 words that an embedder reads entirely.

    >>> passage_rule(None), passage_rule(256)
    ('passages:300', 'passages:170')

    Args:
        max_tokens: Number of tokens of a text that the embedder reads; None if it reads all.
    """
    words = PASSAGE_WORDS if max_tokens is None else int(max_tokens / TOKENS_PER_WORD)
    return f"{PASSAGES}:{max(1, min(PASSAGE_WORDS, words))}"


def _passage_boundaries(text: str, size: int) -> Iterator[int]:
    words = [match.end() for match in WORD.finditer(text)]
    start = 0  # words before the passage
    while (rest := len(words) - start) > size:
        last = start + max(1, min(size, rest - size // 4))  # at least a quarter remains
        cut = _best_break(text, words[start + max(1, (last - start) // 2) - 1], words[last - 1])
        yield cut
        start = bisect_left(words, cut + 1)


def _best_break(text: str, first: int, last: int) -> int:
    """The last of the best places to cut between two ends of words."""
    stop = last
    while stop < len(text) and text[stop].isspace():
        stop += 1
    for pattern in BREAKS:
        ends = [match.end() for match in pattern.finditer(text, first, stop)]
        if ends:
            return ends[-1]
    return last


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


_BOUNDARIES: dict[str, Callable[[str, int], Iterator[int]]] = {
    PASSAGES: _passage_boundaries,
    "tokens": _token_boundaries,
    "paragraph": _paragraph_boundaries,
}
