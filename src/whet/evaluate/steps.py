"""The steps of one method on one task: a row for each, with its losses, seconds and scores."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from whet.adapt.model import Score
from whet.adapt.session import AdaptationSession
from whet.adapt.updates import Update
from whet.evaluate.answers.kinds import METRICS
from whet.evaluate.picks import Picks


@dataclass(slots=True)
class Row:
    """One step of one method on one part of a prompt; docs/protocol.md describes the columns."""

    method: str
    part: int
    bytes: int
    base_bits: float
    step: int = 0
    bits: float | None = None
    sigma: float | None = None
    loss: float | None = None
    document: str | None = None
    multiplicity: int | None = None
    tokens: int = 0
    embed_s: float = 0.0
    search_s: float = 0.0
    select_s: float = 0.0
    train_s: float = 0.0
    score_s: float = 0.0
    answer: str | None = None
    exact_match: float | None = None
    edit_similarity: float | None = None
    f1: float | None = None
    generate_s: float = 0.0


class Steps:
    """The steps on the picks of a task: one row per text, in the order of training."""

    def __init__(self, blank: Row, picks: Picks) -> None:
        self.rows: list[Row] = []
        self.texts: list[str] = []
        self.completed = 0
        """Number of rows of which every chunk was trained on."""
        self._blank, self._picks = blank, picks
        self._row_of: dict[int, Row] = {}

    def add(self, place: int) -> Row:
        """The row of the pick at `place`, which is new if it was not trained on before."""
        if place not in self._row_of:
            document = self._picks.documents[place]
            step = len(self.rows) + 1
            row = replace(
                self._blank,
                step=step,
                document=document.id,
                sigma=self._picks.sigma[step],
                multiplicity=1 + sum(row.document == document.id for row in self.rows),
            )
            self._row_of[place] = row
            self.rows.append(row)
            self.texts.append(document.text)
        return self._row_of[place]

    def note(self, update: Update, losses: Sequence[float]) -> None:
        """Write the losses and tokens of `update` into its rows; of chunks, their mean loss."""
        for example, loss in zip(update.examples, losses, strict=True):
            row = self.add(example.place)
            before = row.tokens
            row.tokens += 0 if update.reused else example.text.num_loss_tokens
            if before and row.tokens > before:
                loss = ((row.loss or 0.0) * before + loss * (row.tokens - before)) / row.tokens
            row.loss = loss


class ScoredSteps:
    """Scores the task of a session after the chosen steps, while the session trains.

    `before_update` and `after_update` are those of `AdaptationSession.run`; call `finish` after it.
    """

    def __init__(
        self,
        steps: Steps,
        chosen: Collection[int],
        score: Callable[[Row], Score],
        session: AdaptationSession | None = None,
    ) -> None:
        self._steps, self._chosen, self._score, self._session = steps, chosen, score, session
        self._scored = 0
        self._start = time.perf_counter()

    def before_update(self, update: Update) -> None:
        """An update on several texts is taken at the last of them."""
        for example in update.examples[:-1]:
            self._steps.add(example.place)
            self._steps.completed += example.is_last
        self.score()

    def after_update(self, update: Update, number: int) -> None:
        """Write the losses of the update, and score the step that it completes."""
        assert self._session is not None
        taken = self._session.steps[-len(update.examples) :]
        self._steps.note(update, [step.loss for step in taken])
        self._steps.completed += update.examples[-1].is_last
        self.score()

    def finish(self) -> None:
        """Score the last step, if the training ended before its own."""
        rows = self._steps.rows
        if rows and rows[-1].bits is None:
            self._scored = len(rows) - 1
            self.score(is_end=True)

    def score(self, *, is_end: bool = False) -> None:
        """Score the completed steps that have not been scored; with `is_end`, also the last one."""
        rows = self._steps.rows
        for row in rows[self._scored : self._steps.completed]:
            if self._session:
                row.train_s = time.perf_counter() - self._start
            if row.step in self._chosen or (is_end and row is rows[-1]):
                self._start = time.perf_counter()
                row.bits = self._score(row).bits
                row.score_s = time.perf_counter() - self._start
            self._start = time.perf_counter()
        self._scored = max(self._scored, self._steps.completed)


def remaining_rows(blank: Row, last: Row, steps: Collection[int]) -> list[Row]:
    """Rows of the chosen steps after the last one that was taken, where the score stays the same."""
    later = (step for step in steps if step > last.step)
    same = {name: getattr(last, name) for name in ("bits", "sigma", "answer", *METRICS)}
    return [replace(blank, step=step, **same) for step in later]
