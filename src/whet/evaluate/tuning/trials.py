"""Trials: one setting of the adaptation on one held-out passage, and the journal that stores them.

A passage is held out by a filter that also excludes every other passage of its document. Its first
half is the query, its second half is scored, as with the protocol `held-out`.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whet.adapt.config import AdapterName, TrainingConfig
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession
from whet.adapt.slots import Slots
from whet.adapt.updates import Update
from whet.data.documents import Document
from whet.data.filters import LONGEST, And, Compare, Filter, Not, as_filter
from whet.embed.embedder import encode_queries
from whet.engine.planning import plan_retrieval
from whet.errors import AdaptationError, NoMatchError
from whet.evaluate.config import EvalConfig
from whet.evaluate.tasks import ScoringTask
from whet.evaluate.tuning.config import STEPS
from whet.io import as_json
from whet.select.config import SelectionConfig
from whet.space.passages import parent
from whet.space.retrieve import Retrieval, Retriever
from whet.space.space import DataSpace

MIN_CHARS, MAX_CHARS = 40, 4000  # of a held-out passage; the rest of a longer one is cut off
BATCH = 64  # documents read at a time
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is adapted, without the number of steps."""

    adapter: AdapterName
    lr: float
    layers: str | None = None
    """`last:N`; None for all layers."""
    lam: float | None = None
    """λ'; None for the data space's own."""

    @property
    def key(self) -> str:
        """Identifies the setting in a journal."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out passage."""

    id: str
    task: ScoringTask
    where: Filter
    """What its candidates must pass."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one setting on one passage."""

    base_bits: float
    num_bytes: int
    bits: dict[int, float]
    """After the scored numbers of steps; infinite if the training diverged."""
    seconds: dict[int, float]
    """For selecting and training up to each of them, without the scores."""

    def to_record(self) -> dict[str, Any]:
        """The trial as JSON values."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Trial":
        """The trial in a line of a journal. Raises KeyError or TypeError if it is damaged."""
        bits, seconds = (
            {int(n): math.inf if value is None else float(value) for n, value in part.items()}
            for part in (record["bits"], record["seconds"])
        )
        return cls(float(record["base_bits"]), int(record["num_bytes"]), bits, seconds)


def hold_out(
    space: DataSpace, count: int, *, seed: int = 0, where: Filter | str | None = None
) -> list[HeldOut]:
    """At most `count` passages of different documents, in a random order.

    Texts of fewer than 40 characters, and those whose first half has nothing in common with the
    data space, are left out.
    """
    condition = as_filter(where)
    rows = np.random.default_rng(seed).permutation(space.store.ids(condition))
    chosen: list[HeldOut] = []
    parents = set[object]()
    for start in range(0, len(rows), BATCH):
        for document in space.documents(rows[start : start + BATCH]):
            own = parent(document)
            if own in parents or not _is_usable(document, own):
                continue
            [task] = ScoringTask.of(document.text[:MAX_CHARS], EvalConfig())
            if not task.query.strip() or not encode_queries(space.embedder, [task.query]).any():
                continue
            parents.add(own)
            chosen.append(HeldOut(document.id, task, _without(document, own, condition)))
            if len(chosen) == count:
                return chosen
    return chosen


def _is_usable(document: Document, own: object) -> bool:
    return len(document.text.strip()) >= MIN_CHARS and len(str(own)) <= LONGEST


def _without(document: Document, own: Any, condition: Filter | None) -> Filter:
    """Excludes a document and everything else that was cut from the same one."""
    same = Compare("id" if own == document.id else "parent", "==", own)
    return Not(same) if condition is None else And((condition, Not(same)))


class Journal:
    """The finished trials in a file, from which an interrupted `tune` goes on.

    A trial is one line, which is on the disk before the next trial begins. Lines that are damaged
    are skipped, and a journal of another plan is replaced.
    """

    def __init__(self, path: Path | None, plan: dict[str, Any]) -> None:
        """Read the journal at `path`, if that is not None and exists."""
        self.path, self._plan = path, plan
        self.trials: dict[tuple[str, str], Trial] = {}
        self.steps: int | None = None
        """Steps of the longest trials; None for a new journal."""
        self.error = ""
        """Why the trials are not stored; empty if they are."""
        try:
            exists = path is not None and path.exists()
            lines = path.read_text("utf-8", "replace").splitlines() if path and exists else []
        except OSError as error:
            lines, self.error = [], error.strerror or str(error)
        records = [record for line in lines if (record := _parsed(line)) is not None]
        header = records[0] if records else {}
        if header.get("plan") == json.loads(as_json(plan)) and header.get("steps") in STEPS:
            self.steps = header["steps"]
            for record in records[1:]:
                try:
                    trial = Trial.of_record(record)
                    self.trials[record["setting"], record["passage"]] = trial
                except (AttributeError, KeyError, TypeError, ValueError):
                    continue
        self.resumed = len(self.trials)

    def begin(self, steps: int) -> None:
        """Start a new file, unless this one goes on."""
        if self.steps is None:
            self.steps = steps
            self._write({"format": FORMAT, "plan": self._plan, "steps": steps}, "w")
        else:
            self._write(None, "a")  # ends a line that was cut off

    def add(self, setting: Setting, passage: str, trial: Trial) -> None:
        """Store a finished trial."""
        self.trials[setting.key, passage] = trial
        self._write({"setting": setting.key, "passage": passage, **trial.to_record()}, "a")

    def remove(self) -> None:
        """Delete the file: nothing is left to do."""
        if self.path is not None and not self.error:
            self.path.unlink(missing_ok=True)

    def _write(self, record: dict[str, Any] | None, mode: str) -> None:
        if self.path is None or self.error:
            return
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(("" if record is None else as_json(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.error = error.strerror or str(error)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class Bench:
    """Runs trials of a model on a data space, unless the journal contains them."""

    def __init__(
        self, space: DataSpace, model: LanguageModel, journal: Journal, *, seed: int = 0
    ) -> None:
        self._space, self._model, self._journal = space, model, journal
        self._training = TrainingConfig(seed=seed)
        self._retrievals: dict[tuple[str, float | None, int], Retrieval | None] = {}
        self._bases: dict[str, Score] = {}
        self.used: set[tuple[str, str]] = set()
        """Setting and passage of every trial that was used, those in the journal included."""
        self.spent: list[float] = []
        """Seconds of each trial that was run here."""

    @property
    def embed_s(self) -> float:
        """Mean seconds in which a text was embedded."""
        found = [r.seconds["embed"] for r in self._retrievals.values() if r is not None]
        return float(np.mean(found)) if found else 0.0

    def run(
        self,
        setting: Setting,
        passages: Sequence[HeldOut],
        steps: Sequence[int],
        may_use: Callable[[bool], bool],
    ) -> list[Trial] | None:
        """The trials of a setting, or None if the budget does not suffice for all of them.

        Args:
            setting: How to adapt.
            passages: One trial is for one of them.
            steps: Numbers of steps after which to score, ascending.
            may_use: Whether the budget allows another trial; its argument says whether that is in
                the journal already.
        """
        trials, slots = [], None
        for passage in passages:
            key = setting.key, passage.id
            found = self._journal.trials.get(key)
            if found is not None and not set(steps) <= found.bits.keys():
                found = None
            if key not in self.used and not may_use(found is not None):
                return None
            if found is None:
                slots = slots or self.make_slots(setting)
                start = time.perf_counter()
                found = self.measure(slots, setting, passage, steps)
                self.spent.append(time.perf_counter() - start)
                self._journal.add(setting, passage.id, found)
            self.used.add(key)
            trials.append(found)
        return trials

    def make_slots(self, setting: Setting) -> Slots:
        """What is trained with a setting."""
        options = {} if setting.layers is None else {"layers": setting.layers}
        config = self._model.adapter_config(setting.adapter, lr=setting.lr, **options)
        return Slots(self._model, config)

    def measure(
        self, slots: Slots, setting: Setting, passage: HeldOut, steps: Sequence[int]
    ) -> Trial:
        """Train on documents for a passage, and score its second half after the given steps."""
        retrieval, base = self._retrieve(passage, setting.lam, steps[-1]), self._base(passage)
        if retrieval is None:  # nothing can be selected: the base model answers
            bits = dict.fromkeys(steps, base.bits)
            return Trial(base.bits, base.num_bytes, bits, dict.fromkeys(steps, 0.0))
        selected_s = sum(retrieval.seconds.values())
        bits, seconds = dict[int, float](), dict[int, float]()
        num_texts = 0
        with slots.attached():
            session = AdaptationSession(slots, training=self._training)

            def note(step: int) -> None:
                score = session.score(passage.task.text, context=passage.task.context)
                bits[step] = score.bits
                seconds[step] = selected_s + sum(taken.seconds for taken in session.steps)

            def after_update(update: Update, number: int) -> None:
                nonlocal num_texts
                num_texts += sum(example.is_last for example in update.examples)
                if num_texts in steps and num_texts not in bits:
                    note(num_texts)

            try:
                updates = plan_retrieval(retrieval, self._model, self._training, passage.task.query)
                session.train(updates, limit=steps[-1], after_update=after_update)
                for step in steps:
                    if step not in bits:  # fewer texts were left to learn
                        note(step)
            except AdaptationError:
                for step in steps:
                    bits.setdefault(step, math.inf)
                    seconds.setdefault(step, math.inf)
        return Trial(base.bits, base.num_bytes, bits, seconds)

    def _base(self, passage: HeldOut) -> Score:
        if passage.id not in self._bases:
            task = passage.task
            self._bases[passage.id] = self._model.score(task.text, context=task.context)
        return self._bases[passage.id]

    def _retrieve(self, passage: HeldOut, lam: float | None, n: int) -> Retrieval | None:
        key = passage.id, lam, n
        if key not in self._retrievals:
            config = SelectionConfig(n=n, where=passage.where)
            config = config if lam is None else replace(config, lam=lam)
            try:
                retriever = Retriever(self._space, config)
                self._retrievals[key] = retriever.select(passage.task.query, for_training=True)
            except NoMatchError:
                self._retrievals[key] = None
        return self._retrievals[key]
