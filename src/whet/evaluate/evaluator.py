"""One prompt by every method: select, step, score at the steps asked for, put the weights back."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import numpy as np

from whet.adapt.config import TrainingConfig
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession
from whet.adapt.slots import Slots
from whet.adapt.updates import Update, plan_updates
from whet.data.documents import Document
from whet.errors import AdaptationError, ModelError
from whet.evaluate.config import DYNAMIC, EvalConfig, Method
from whet.evaluate.contamination import find_contamination, near_duplicates
from whet.evaluate.dataset import Prompt
from whet.evaluate.incontext import InContext
from whet.evaluate.provenance import peak_mib
from whet.evaluate.tasks import ScoringTask
from whet.select.config import ResolvedSelection
from whet.select.registry import SELECTORS, selector
from whet.select.selection import Selector
from whet.select.sift import sift
from whet.space.retrieve import Retrieval, Retriever
from whet.space.space import DataSpace

SEEDED = (SELECTORS["random"],)  # selectors that take a seed


@dataclass(slots=True)
class Row:
    """What one step of one method did; docs/protocol.md tells the columns."""

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


@dataclass(frozen=True, slots=True)
class _Picks:
    """The documents that a method selects for a task, in the order of the selection."""

    documents: Sequence[Document]
    sigma: Sequence[float | None]
    """After 0, 1, … picks of the selection, whatever the order of the steps."""
    seconds: dict[str, Any]
    seed: int

    def updates(self, model: LanguageModel, switches: EvalConfig) -> list[Update]:
        """The updates of the engine; the id of an example is its document's place in the picks."""
        texts = [(str(place), document.text) for place, document in enumerate(self.documents)]
        return plan_updates(texts, model, training(switches, self.seed))


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps on the picks of a task: one row per document, in the order of training."""

    rows: list[Row]
    texts: list[str]
    updates: list[Update]
    step_of: Mapping[str, int]
    """Step of each example, by its id."""

    @classmethod
    def plan(cls, blank: Row, picks: _Picks, updates: list[Update]) -> "_Steps":
        places = list(dict.fromkeys(e.id for update in updates for e in update.examples))
        rows, texts, count = list[Row](), list[str](), Counter[str]()
        for step, place in enumerate(places, start=1):
            document = picks.documents[int(place)]
            count[document.id] += 1
            rows.append(
                replace(
                    blank,
                    step=step,
                    document=document.id,
                    sigma=picks.sigma[step],
                    multiplicity=count[document.id],
                )
            )
            texts.append(document.text)
        return cls(rows, texts, updates, {place: i for i, place in enumerate(places, start=1)})

    def reached(self, taken: int) -> int:
        """The last step that is complete after `taken` updates.

        An update of several documents is taken at the last of them.
        """
        if taken == len(self.updates):
            return len(self.rows)
        return self.step_of[self.updates[taken].examples[-1].id] - 1

    def note(self, update: Update, losses: Sequence[float]) -> None:
        """Write the losses and tokens of `update` into its rows; of chunks, their mean loss."""
        for example, loss in zip(update.examples, losses, strict=True):
            row = self.rows[self.step_of[example.id] - 1]
            before = row.tokens
            row.tokens += 0 if update.reused else len(example.tokens)
            if before and row.tokens > before:
                loss = ((row.loss or 0.0) * before + loss * (row.tokens - before)) / row.tokens
            row.loss = loss


class Evaluator:
    """Evaluates prompts under one set of switches; writes nothing."""

    def __init__(self, space: DataSpace, model: LanguageModel, switches: EvalConfig) -> None:
        self._space, self._model, self._switches = space, model, switches
        self._methods = {spelled: switches.method(spelled) for spelled in switches.methods}
        self.adaptations = {
            spelled: model.adapter_config(m.switches.mode, lr=m.switches.lr, r=m.switches.rank)
            for spelled, m in self._methods.items()
        }
        for method in (switches, *(m.switches for m in self._methods.values())):
            own = None if method.k == switches.k else method.k  # the run's may exceed the space
            space.resolve_k(own, method.filter())  # refuses it, or a filter that nothing passes
            training(method, 0)  # refuses what does not go together
        some = space.vectors(space.rows[: switches.k])
        sift(np.ones(space.dimension), some, 1)  # compiling is no prompt's cost
        self._slots: dict[object, Slots] = {}  # by what they train and how

    def record(self, prompt: Prompt) -> dict[str, Any]:
        """Every method on one prompt, as the run keeps it; where that fails, the error."""
        record: dict[str, Any] = {"prompt": prompt.document.id, "set": prompt.set}
        try:
            return record | self._measure(prompt.document)
        except (ValueError, ModelError, AdaptationError) as error:
            return record | {"error": str(error)}

    def _measure(self, document: Document) -> dict[str, Any]:
        tasks, start = ScoringTask.of(document.text, self._switches), time.perf_counter()
        bases = [self._model.score(task.text, context=task.context) for task in tasks]
        base_s, rows = time.perf_counter() - start, list[Row]()
        if not all(math.isfinite(base.bits) for base in bases):
            raise ModelError("the base model's score is not finite: load it as fp32")
        for spelled in self._methods:
            for part, (task, base) in enumerate(zip(tasks, bases, strict=True)):
                blank = Row(spelled, part, base.bytes, base.bits)
                rows += self._trial(blank, document, task)
        last, scored = tasks[-1].query, "".join(task.text for task in tasks)
        leak = find_contamination(self._space, last, scored, document.text, self._switches)
        query = self._model.score(last)
        return {
            "parts": len(tasks),
            "bytes": sum(base.bytes for base in bases),
            "base_bits": sum(base.bits for base in bases),
            "base_s": base_s,
            "query_bytes": query.bytes,
            "query_bits": query.bits,
            "exact": leak.exact,
            "near": leak.near,
            "cosine": leak.cosine,
            "overlap": leak.overlap,
            "cosines": leak.cosines.tolist(),
            "peak_mib": peak_mib(),
            "rows": {f.name: [getattr(row, f.name) for row in rows] for f in fields(Row)},
        }

    def _trial(self, blank: Row, document: Document, task: ScoringTask) -> list[Row]:
        """One method on one task, from the row of step 0 to that of step n."""
        method = self._methods[blank.method]
        rows = [replace(blank, bits=blank.base_bits)]
        if task.query:
            picks = self._picks(method, document, task)
            rows = [replace(rows[0], sigma=picks.sigma[0], **picks.seconds)]
            rows += self._use(blank, method, picks, task)
        last = rows[-1]
        for step in method.switches.steps:  # who stops early keeps what is reached
            if step > last.step:
                rows.append(replace(blank, step=step, bits=last.bits, sigma=last.sigma))
        return rows

    def _picks(self, method: Method, document: Document, task: ScoringTask) -> _Picks:
        switches = method.switches
        seed = prompt_seed(switches.seed, document.id)
        if method.name == DYNAMIC:
            documents = [Document(DYNAMIC, task.query, {})] * switches.n
            return _Picks(documents, [None] * (switches.n + 1), {}, seed)
        choose = chooser(method, seed)
        found = retriever(self._space, method, seed).select(task.query, switches.n)
        if switches.duplicates == "dropped":
            found = self._without_duplicates(found, choose, task, document.text, switches)
        if switches.alpha is not None:
            found = found.stop_at(switches.alpha)
        documents = list(found.documents)
        seconds = {f"{phase}_s": found.seconds[phase] for phase in ("embed", "search", "select")}
        return _Picks(documents, found.selection.sigma.tolist(), seconds, seed)

    def _without_duplicates(
        self,
        found: Retrieval,
        choose: Selector,
        task: ScoringTask,
        whole: str,
        switches: EvalConfig,
    ) -> Retrieval:
        """Selected again from the candidates that are no near-duplicates of the prompt."""
        near = near_duplicates(self._space, found.candidates, task.text, whole, switches)
        kept, start = np.flatnonzero(~near), time.perf_counter()
        vectors = found.candidates.vectors[kept]
        selection = choose(found.query, vectors, switches.n, lam=switches.lam)
        seconds = found.seconds | {"select": time.perf_counter() - start}
        rows = found.candidates.rows[kept][selection.indices]
        documents = tuple(self._space.documents(rows))
        return replace(found, documents=documents, rows=rows, selection=selection, seconds=seconds)

    def _use(self, blank: Row, method: Method, picks: _Picks, task: ScoringTask) -> list[Row]:
        """Train on each document, put it into the context, or both; score at the chosen steps."""
        switches, start = method.switches, time.perf_counter()
        steps = _Steps.plan(blank, picks, picks.updates(self._model, switches))
        in_context = None if switches.use == "steps" else InContext(self._model, task)
        done = 0

        def score_reached(taken: int, session: AdaptationSession | None) -> None:
            nonlocal done, start
            reached = steps.reached(taken) if session else len(steps.rows)
            for row in steps.rows[done:reached]:
                if session:
                    row.train_s = time.perf_counter() - start
                if row.step in switches.steps or row is steps.rows[-1]:
                    start = time.perf_counter()
                    row.bits = _score(self._model, session, in_context, task, steps, row).bits
                    row.score_s = time.perf_counter() - start
                start = time.perf_counter()
            done = max(done, reached)

        if switches.use == "context":
            score_reached(0, None)
            return steps.rows
        with self._session(blank.method, picks.seed) as session:

            def after_update(number: int) -> None:
                update = steps.updates[number - 1]
                taken = session.steps[-len(update.examples) :]
                steps.note(update, [step.loss for step in taken])
                score_reached(number, session)

            score_reached(0, session)
            session.train(steps.updates, after_update=after_update)
        return steps.rows

    @contextmanager
    def _session(self, spelled: str, seed: int) -> Iterator[AdaptationSession]:
        """The model at the start of a method; a persistent optimizer keeps its state."""
        switches, adaptation = self._methods[spelled].switches, self.adaptations[spelled]
        optimizer = switches.optimizer_config
        kind = spelled if switches.carry else (adaptation, optimizer)
        if kind not in self._slots:
            self._slots[kind] = Slots(self._model, adaptation, optimizer)
        slots = self._slots[kind]
        with slots.attached():
            yield AdaptationSession(slots, training=training(switches, seed))


def prompt_seed(seed: int, prompt: str) -> int:
    """The seed of one prompt: of the run's `seed` and the prompt's id."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8])


def retriever(space: DataSpace, method: Method, seed: int = 0) -> Retriever:
    """What selects for a method that is no `dynamic`; `seed` is a prompt's, for who draws.

    Raises:
        ValueError: If no document passes the method's filter.
    """
    switches, where = method.switches, method.switches.filter()
    k = min(switches.k, len(space) if where is None else max(1, space.store.count(where)))
    metrics: Any = {"own": "auto", "both": "abs_cosine", "positive": "cosine"}
    config = ResolvedSelection(
        selector=method.name,
        n=switches.n,
        k=k,
        lam=switches.lam,
        stop_alpha=None,
        retriever=cast(Any, switches.candidates),
        metric=metrics[switches.sign],
        where=where,
    )
    return Retriever(space, config, selector=chooser(method, seed))


def chooser(method: Method, seed: int) -> Selector:
    choose: Any = selector(method.name)
    return partial(choose, seed=seed) if choose in SEEDED else choose


def training(switches: EvalConfig, seed: int) -> TrainingConfig:
    """How the texts of a prompt become updates; `seed` is the prompt's.

    Raises:
        ValueError: If the switches do not go together.
    """
    return TrainingConfig(
        order=cast(Any, switches.order),
        batch_size=switches.texts_per_update,
        gradient_reuse=switches.reuse,
        persist_optimizer=switches.carry,
        long_texts=cast(Any, switches.long_texts),
        seed=seed,
    )


def _score(
    model: LanguageModel,
    session: AdaptationSession | None,
    in_context: InContext | None,
    task: ScoringTask,
    steps: _Steps,
    row: Row,
) -> Score:
    """The score of the task at the step of `row`.

    Raises:
        AdaptationError: If the adapted model's score is not finite.
        ModelError: If the model's score is not finite with the texts as context.
    """
    if in_context is None:
        assert session is not None
        return session.score(task.text, context=task.context)
    if session is not None:
        _ = session.model  # computes with the session's weights
    score = in_context.score(steps.texts[: row.step])
    if session is not None:
        return session.check(score)
    if not math.isfinite(score.bits):
        raise ModelError(f"score is {score.bits} bits with context: load the model as fp32")
    return score
