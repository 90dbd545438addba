"""Explanations of a selection: each pick's gain, its similarity to the query and to earlier picks.

σ²_n falls by the gain of each pick (SIFT, arXiv 2410.08020, Section 3), so a pick's share of the
total reduction measures its contribution. Redundancy is the cosine between candidates: the kernel
before any pick, which a reader can verify by reading two texts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array, ArrayLike, as_targets, check_matrix, normalize_rows
from whet.select.selection import Selection, argmax_first

_COLUMNS = ("step", "row", "count", "gain", "share", "cosine", "most similar")
_NAME_WIDTH = 60  # characters of a name that a table shows


@dataclass(frozen=True, slots=True)
class ExplainedPick:
    """One pick of a selection and the numbers that explain it."""

    step: int
    """Position in the order, from 1."""
    row: int
    """The candidate picked; in the explanation of a `Retrieval`, its row in the data space."""
    count: int
    """How often the whole selection picks this candidate."""
    gain: float
    """How much the pick lowers the posterior variance."""
    gain_share: float
    """The gain as a fraction of the total of all picks; 0 if that is 0."""
    cosine: float
    """Signed cosine to the query; with several targets, to the most parallel of them."""
    most_similar_step: int | None
    """Step of the earlier pick most parallel to this one, of either sign; None for the first."""
    most_similar_cosine: float | None
    """Signed cosine to that earlier pick; 1 for a repeat."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explained picks of a selection; prints as a table, in notebooks too."""

    picks: tuple[ExplainedPick, ...]
    sigma: float
    """Posterior standard deviation after the last pick, as a fraction of the prior's."""
    names: tuple[str, ...] | None = None
    """A name for each pick, shown in the table."""

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict per pick, for JSON."""
        return [asdict(pick) for pick in self.picks]

    def __str__(self) -> str:
        table = [self._header(), *self._cells()]
        widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
        lines = []
        for line in table:
            numbers = [cell.rjust(width) for cell, width in zip(line, widths, strict=False)]
            lines.append("  ".join([*numbers, *line[len(_COLUMNS) :]]).rstrip())
        return "\n".join([*lines, self._footer()])

    def _repr_html_(self) -> str:
        header = "".join(f"<th>{escape(cell)}</th>" for cell in self._header())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
            for line in self._cells()
        )
        return (
            f"<table><caption>{escape(self._footer())}</caption>"
            f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _header(self) -> list[str]:
        return [*_COLUMNS, "name"] if self.names else [*_COLUMNS]

    def _cells(self) -> list[list[str]]:
        lines = []
        for i, pick in enumerate(self.picks):
            similar = ""
            if pick.most_similar_step is not None:
                similar = f"{pick.most_similar_cosine:+.3f} to {pick.most_similar_step}"
            line = [str(pick.step), str(pick.row), str(pick.count), f"{pick.gain:.3g}"]
            line += [f"{pick.gain_share:.1%}", f"{pick.cosine:+.3f}", similar]
            lines.append([*line, _shorten(self.names[i])] if self.names else line)
        return lines

    def _footer(self) -> str:
        return f"σ after pick {len(self.picks)}: {self.sigma:.3f} of the prior"


def explain(
    selection: Selection,
    query: ArrayLike,
    candidates: ArrayLike,
    *,
    names: Sequence[str] | None = None,
) -> Explanation:
    """Explain each pick: its gain, and which earlier pick it is most similar to. O(n² d).

    Args:
        selection: What a selector returned for `query` and `candidates`; may be empty.
        query: The embedding that was selected for, [d]; or several, [m, d].
        candidates: The embeddings that were selected from, [k, d].
        names: A name for each of the k candidates, such as its text.

    Returns:
        The explained picks; `str` of it is a table.

    Raises:
        ValueError: If the arrays are not finite, or their shapes do not fit the selection.

    >>> from whet import sift
    >>> query, candidates = [1.0, 0.5], [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
    >>> print(explain(sift(query, candidates, n=2), query, candidates))
    step  row  count   gain  share  cosine  most similar
       1    1      1   1.09  88.0%  +0.938
       2    2      1  0.149  12.0%  +0.447   +0.110 to 1
    σ after pick 2: 0.105 of the prior
    """
    rows = check_matrix(candidates, "candidates")
    targets = as_targets(query, "query", rows.shape[1])
    order = selection.indices.tolist()
    if order and max(order) >= len(rows):
        raise ValueError(
            f"the selection contains row {max(order)}, but there are {len(rows)} candidates"
        )
    if names is not None and len(names) != len(rows):
        raise ValueError(f"there are {len(names)} names for {len(rows)} candidates")
    picked = normalize_rows(rows[order])
    target_cosines = picked @ normalize_rows(targets).T
    counts, total = selection.counts(), float(selection.gains.sum())
    picks = []
    for i, row in enumerate(order):
        gain = float(selection.gains[i])
        similar, similar_cosine = _most_parallel(picked[:i] @ picked[i]) if i else (None, None)
        picks.append(
            ExplainedPick(
                step=i + 1,
                row=row,
                count=counts[row],
                gain=gain,
                gain_share=gain / total if total > 0 else 0.0,
                cosine=_most_parallel(target_cosines[i])[1],
                most_similar_step=None if similar is None else similar + 1,
                most_similar_cosine=similar_cosine,
            )
        )
    pick_names = None if names is None else tuple(names[row] for row in order)
    return Explanation(tuple(picks), float(selection.sigma[-1]), pick_names)


def _most_parallel(cosines: Float[Array, " k"]) -> tuple[int, float]:
    best = argmax_first(np.abs(cosines))
    return best, float(np.clip(cosines[best], -1.0, 1.0))


def _shorten(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _NAME_WIDTH else line[: _NAME_WIDTH - 1] + "…"
