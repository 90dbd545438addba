"""Chosen texts as context for a question, within an exact budget.

For use without any training: the texts that a selection chose go in front of the question. What
stands in the middle of a long context is used least (arXiv 2307.03172), so the most telling text
comes last, nearest the question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array, as_count


@dataclass(frozen=True, slots=True)
class Context:
    """Texts to put in front of a question."""

    text: str
    """Whole texts, the most telling last; empty if none fits."""
    rows_used: tuple[int, ...]
    """The rows whose text is in `text`, in its order."""
    rows_left_out: tuple[int, ...]
    """The rows whose text did not fit, the most telling first."""
    tokens: int
    """What `text` counts, in tokens or characters, as the budget does."""


def context(
    texts: Sequence[str],
    rows: Sequence[int] | Int[Array, " n"],
    *,
    budget: int,
    gains: Sequence[float] | Float[Array, " n"] | None = None,
    count_tokens: Callable[[str], int] | None = None,
    separator: str = "\n\n",
) -> Context:
    """Join the distinct texts of the picks that fit the budget, none of them cut.

    A text tells as much as its picks gained together; without gains, the sooner it was chosen the
    more. From the most telling on, each is taken if the joined text still fits with it, so a short
    one may be used where a longer, more telling one was left out. Rows of equal text share it.
    Counts the joined text once a distinct text.

    Args:
        texts: The text of each pick, in the order chosen, repeats included.
        rows: The row of each pick, such as `selection.indices`.
        budget: The most that the joined text may count: characters, or tokens with `count_tokens`.
        gains: The gain of each pick, such as `selection.gains`.
        count_tokens: Counts a text's tokens; characters are counted unless given.
        separator: What stands between two texts; it is counted too.

    Raises:
        ValueError: If `budget` < 1, the sequences differ in length, or `count_tokens` gives no
            whole number.
    """
    as_count(budget, "budget")
    picked = [int(row) for row in rows]
    worth = [0.0] * len(texts) if gains is None else [float(gain) for gain in gains]
    if not len(texts) == len(picked) == len(worth):
        raise ValueError(
            f"there are {len(texts)} texts, {len(picked)} rows and {len(worth)} gains: "
            "expected one of each a pick"
        )
    measure = len if count_tokens is None else count_tokens
    told: dict[str, float] = {}  # in the order of first choice, which decides among equals
    members: dict[str, dict[int, None]] = {}
    for text, row, gain in zip(texts, picked, worth, strict=True):
        told[text] = told.get(text, 0.0) + gain
        members.setdefault(text, {})[row] = None
    used: list[str] = []
    left_out: list[str] = []
    joined, tokens = "", 0
    for text in sorted(told, key=told.__getitem__, reverse=True):
        longer = separator.join([text, *used])
        count = measure(longer)
        if not isinstance(count, int | np.integer):
            raise ValueError(
                f"count_tokens gave a {type(count).__name__}: expected a number of tokens, as "
                "lambda text: len(tokenizer(text).input_ids)"
            )
        if count > budget:
            left_out.append(text)
        else:
            used.insert(0, text)
            joined, tokens = longer, count
    return Context(
        joined,
        tuple(row for text in used for row in members[text]),
        tuple(row for text in left_out for row in members[text]),
        tokens,
    )
