"""Why each pick was chosen: what it told, where it points, and what had been said before it.

σ²_n falls by the gain of each pick (SIFT, arXiv 2410.08020, Section 3), so a pick's share of the
whole fall says how much of the selection is its doing. Redundancy is the plain cosine between
candidates: the kernel before any pick, which a reader can check by reading two texts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array, check_matrix, normalize_rows
from whet.select.selection import Selection, argmax_first

_HEAD = ("pick", "row", "times", "gain", "share", "cosine", "like")
_NAME_WIDTH = 60  # characters of a name that a table shows


@dataclass(frozen=True, slots=True)
class Pick:
    """One pick of a selection and what speaks for it."""

    step: int
    """Its place in the order, from 1."""
    row: int
    """The candidate chosen; in what a `Retrieval` explains, its row in the data space."""
    times: int
    """How often the whole selection chose this candidate."""
    gain: float
    """By how much the pick lowered the posterior variance."""
    share: float
    """The gain as a share of what all picks lowered together; 0 if they lowered nothing."""
    cosine: float
    """Signed cosine to the prompt; with several targets, to the most parallel of them."""
    like_step: int | None
    """The step of the earlier pick most parallel to this one, either sign; None for the first."""
    like_cosine: float | None
    """Signed cosine to that earlier pick; 1 for a repeat."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The picks of a selection, explained; prints as a table, in a notebook too."""

    picks: tuple[Pick, ...]
    sigma: float
    """Posterior standard deviation that is left, as a share of the prior's."""
    names: tuple[str, ...] | None = None
    """What to call each pick."""

    def rows(self) -> list[dict[str, Any]]:
        """A dict a pick, for JSON."""
        return [asdict(pick) for pick in self.picks]

    def __str__(self) -> str:
        table = [self._head(), *self._cells()]
        widths = [max(len(line[column]) for line in table) for column in range(len(_HEAD))]
        lines = [
            "  ".join(
                [*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), *line[7:]]
            )
            for line in table
        ]
        return "\n".join([*lines, self._foot()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self._head())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
            for line in self._cells()
        )
        return (
            f"<table><caption>{escape(self._foot())}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _head(self) -> list[str]:
        return [*_HEAD, "name"] if self.names else [*_HEAD]

    def _cells(self) -> list[list[str]]:
        cells = []
        for place, pick in enumerate(self.picks):
            like = "" if pick.like_step is None else f"{pick.like_cosine:+.3f} to {pick.like_step}"
            line = [str(pick.step), str(pick.row), str(pick.times), f"{pick.gain:.3g}"]
            line += [f"{pick.share:.1%}", f"{pick.cosine:+.3f}", like]
            cells.append([*line, _short(self.names[place])] if self.names else line)
        return cells

    def _foot(self) -> str:
        return f"σ after pick {len(self.picks)}: {self.sigma:.3f} of the prior"


def explain(
    selection: Selection, prompt: Any, candidates: Any, *, names: Sequence[str] | None = None
) -> Explanation:
    """Say for each pick what it told about the prompt and which earlier pick it is most like.

    Args:
        selection: What a selector returned for `prompt` and `candidates`; may be empty.
        prompt: The embedding that was selected for, [d]; or several, [m, d].
        candidates: The embeddings that were selected from, [k, d].
        names: What to call each candidate, k of them, such as its text.

    Cost: O(n² d) for n picks.

    Raises:
        ValueError: If the arrays are not those of the selection, as far as their shapes tell.
    """
    goals = check_matrix(prompt[None] if getattr(prompt, "ndim", 2) == 1 else prompt, "prompt")
    rows = check_matrix(candidates, "candidates")
    if goals.shape[1] != rows.shape[1]:
        raise ValueError(
            f"prompt has {goals.shape[1]} dimensions, but the candidates have {rows.shape[1]}"
        )
    order = selection.indices.tolist()
    if order and max(order) >= len(rows):
        raise ValueError(f"the selection chose row {max(order)}, but there are {len(rows)} rows")
    if names is not None and len(names) != len(rows):
        raise ValueError(f"there are {len(names)} names for {len(rows)} candidates")
    chosen = normalize_rows(rows[order])
    to_goals = chosen @ normalize_rows(goals).T
    counts, whole = selection.counts(), float(selection.gains.sum())
    picks = []
    for i, row in enumerate(order):
        gain = float(selection.gains[i])
        share = gain / whole if whole > 0 else 0.0
        cosine = _most_parallel(to_goals[i])[1]
        like, like_cosine = _most_parallel(chosen[:i] @ chosen[i]) if i else (None, None)
        like_step = None if like is None else like + 1
        picks.append(Pick(i + 1, row, counts[row], gain, share, cosine, like_step, like_cosine))
    named = None if names is None else tuple(names[row] for row in order)
    return Explanation(tuple(picks), float(selection.sigma[-1]), named)


def _most_parallel(cosines: Float[Array, " k"]) -> tuple[int, float]:
    best = argmax_first(np.abs(cosines))
    return best, float(np.clip(cosines[best], -1.0, 1.0))


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _NAME_WIDTH else line[: _NAME_WIDTH - 1] + "…"
