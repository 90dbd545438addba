"""Which tokens a model sees when a long text is scored, and which of them it is asked for.

Source: docs/protocol.md, "The metric"; the rolling windows of Hardt & Sun, arXiv 2305.18466.
    Positions count one
start token in front of the text, so token i of the text is target i + 1.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs `start:stop` of a sequence; the last `targets` predictions of them count."""

    start: int
    stop: int
    targets: int


def windows(tokens: int, context: int, *, skip: int = 0) -> Iterator[Window]:
    """Windows that ask once for each of `tokens` targets but the first `skip`, which are context.

    Full windows are disjoint, so each but the first sees one token before its first target; the
    last, shorter one reaches back for as much left context as fits. Windows that hold no target are
    left out.
    """
    for first in range(0, tokens, context):
        last = min(first + context, tokens)
        if last > skip:
            yield Window(max(0, last - context), last, last - max(first, skip))


def alike(found: Iterable[Window], together: int) -> Iterator[list[Window]]:
    """At most `together` windows at a time, of one length and in order."""
    for _, group in groupby(found, lambda window: window.stop - window.start):
        some = list(group)
        for first in range(0, len(some), together):
            yield some[first : first + together]
