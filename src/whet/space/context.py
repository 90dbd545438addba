"""In-context use of selected texts, without training: join those that fit an exact budget.

Models use the middle of a long context least (arXiv 2307.03172), so the most informative text comes
last, next to the question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import Array, as_count


@dataclass(frozen=True, slots=True)
class Context:
    """Texts to put before a question."""

    text: str
    """The joined texts, the most informative last; empty if none fits."""
    rows_used: tuple[int, ...]
    """Rows of the texts that were used, in the order of `text`."""
    rows_left_out: tuple[int, ...]
    """Rows of the texts that did not fit, the most informative first."""
    tokens: int
    """Length of `text` in the unit of the budget: tokens or characters."""


def context(
    texts: Sequence[str],
    rows: Sequence[int] | Int[Array, " n"],
    *,
    budget: int,
    gains: Sequence[float] | Float[Array, " n"] | None = None,
    count_tokens: Callable[[str], int] | None = None,
    separator: str = "\n\n",
) -> Context:
    """Join the distinct texts that fit the budget; no text is truncated.

    Texts are considered by the total gain of their picks, largest first (without gains, in the
    order picked), and used if the joined text still fits. So a short text may be used although a
    longer, more informative one did not fit. Counts the joined text once per distinct text.

    >>> context(["a long text", "short"], [0, 1], budget=6).text
    'short'

    Args:
        texts: The text of each pick, in order, with repeats.
        rows: The row of each pick, such as `selection.indices`.
        budget: Largest length of the joined text: characters, or tokens with `count_tokens`.
        gains: The gain of each pick, such as `selection.gains`.
        count_tokens: Counts the tokens of a text; by default characters are counted.
        separator: Separates two texts; it is counted too.

    Raises:
        ValueError: If `budget` < 1, the sequences differ in length, or `count_tokens` does not
            return an integer.
    """
    as_count(budget, "budget")
    picked = [int(row) for row in rows]
    gain_of_pick = [0.0] * len(texts) if gains is None else [float(gain) for gain in gains]
    if not len(texts) == len(picked) == len(gain_of_pick):
        raise ValueError(
            f"there are {len(texts)} texts, {len(picked)} rows and {len(gain_of_pick)} gains: "
            "expected one of each per pick"
        )
    measure = len if count_tokens is None else count_tokens
    total_gain: dict[str, float] = {}  # in the order first picked, which breaks ties
    members: dict[str, dict[int, None]] = {}
    for text, row, gain in zip(texts, picked, gain_of_pick, strict=True):
        total_gain[text] = total_gain.get(text, 0.0) + gain
        members.setdefault(text, {})[row] = None
    used: list[str] = []
    left_out: list[str] = []
    joined, tokens = "", 0
    for text in sorted(total_gain, key=total_gain.__getitem__, reverse=True):
        longer = separator.join([text, *used])
        count = measure(longer)
        if not isinstance(count, int | np.integer):
            raise ValueError(
                f"count_tokens returned a {type(count).__name__}: expected an integer, as "
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
