"""One prompt by every method: select, step, score at the steps asked for, put the weights back."""

import hashlib
import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import numpy as np

from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.data.documents import Document
from whet.engine.types import TrainingConfig
from whet.engine.updates import Update, plan_updates, rate
from whet.errors import ModelError
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
    """The texts of a method for a task, in the order of the steps."""

    documents: Sequence[Document]
    sigma: Sequence[float | None]
    """After 0, 1, … picks of the selection, whatever the order of the steps."""
    seconds: dict[str, Any]
    seed: int

    def rows(self, blank: Row) -> list[Row]:
        """A row a text, with how often it was picked so far."""
        seen, rows = Counter[str](), list[Row]()
        for step, document in enumerate(self.documents, start=1):
            seen[document.id] += 1
            picked = replace(blank, step=step, document=document.id, sigma=self.sigma[step])
            rows.append(replace(picked, multiplicity=seen[document.id]))
        return rows

    def updates(self, model: LanguageModel, switches: EvalConfig) -> list[Update]:
        """What is learned from the texts, update by update; a part's id is its text's step."""
        placed = [replace(d, id=str(i)) for i, d in enumerate(self.documents, start=1)]
        return plan_updates(placed, self.sigma[1:], model, training(switches, self.seed))


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
        except (ValueError, ModelError) as error:
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
        seed = int.from_bytes(
            hashlib.sha256(f"{switches.seed} {document.id}".encode()).digest()[:8]
        )
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
        match switches.order:
            case "reversed":
                documents.reverse()
            case "shuffled":
                random.Random(seed).shuffle(documents)
            case "length":
                documents.sort(key=lambda text: len(text.text))
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
        """A row a text: learned from, put into the context, or both; scored where asked.

        An update of several texts is taken at the last of them, before that is scored.
        """
        rows, switches = picks.rows(blank), method.switches
        texts = [document.text for document in picks.documents]
        in_context = None if switches.use == "steps" else InContext(self._model, task)
        with nullcontext() if switches.use == "context" else self._lent(blank.method) as slots:
            start, losses = time.perf_counter(), list[float]()
            updates = deque(picks.updates(self._model, switches) if slots else ())
            for row in rows:
                if slots:
                    while updates and int(updates[0].parts[-1].id) <= row.step:
                        losses = _taken(slots, updates[0]) or losses
                        _note(rows, updates.popleft(), losses)
                    row.train_s = time.perf_counter() - start
                if row.step in switches.steps or row is rows[-1]:
                    start = time.perf_counter()
                    model = slots.as_slot(0) if slots else self._model
                    row.bits = (
                        in_context.score(texts[: row.step])
                        if in_context
                        else model.score(task.text, context=task.context)
                    ).bits
                    row.score_s = time.perf_counter() - start
                    if not math.isfinite(row.bits):
                        raise ModelError(
                            f"{blank.method} scores {row.bits} bits after {row.step} steps: "
                            "lower the learning rate"
                        )
                start = time.perf_counter()
        return rows

    @contextmanager
    def _lent(self, spelled: str) -> Iterator[Slots]:
        """The model as a method begins with it; an optimiser that carries on keeps its state."""
        switches, adaptation = self._methods[spelled].switches, self.adaptations[spelled]
        optimizer = switches.optimizer_config
        kind = spelled if switches.carry else (adaptation, optimizer)
        if kind not in self._slots:
            self._slots[kind] = Slots(self._model, adaptation, optimizer)
        slots = self._slots[kind]
        with slots.attached():
            slots.reset(0, optimizer=not switches.carry)
            slots.bank.lr[0] = adaptation.lr * rate(training(switches, 0), optimizer.name)
            yield slots


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
    """How texts, in the order they are given in, become updates; `seed` is a prompt's.

    Raises:
        ValueError: If the switches do not go together.
    """
    return TrainingConfig(
        batch_size=switches.texts_per_update,
        gradient_reuse=switches.reuse,
        persist_optimizer=switches.carry,
        long_texts=cast(Any, switches.long_texts),
        seed=seed,
    )


def _taken(slots: Slots, update: Update) -> list[float]:
    """The losses before an update; none where a gradient is taken again.

    Raises:
        ModelError: If one is not finite; the weights have not moved.
    """
    if update.reused:
        slots.repeat([0])
        return []
    losses = slots.step({0: [part.tokens for part in update.parts]})[0]
    for part, loss in zip(update.parts, losses, strict=True):
        if not math.isfinite(loss):
            raise ModelError(f"loss is {loss} at step {int(part.id)}: lower the learning rate")
    return losses


def _note(rows: list[Row], update: Update, losses: list[float]) -> None:
    """Write an update's losses and tokens into the rows of its texts; of chunks, the mean loss."""
    for part, loss in zip(update.parts, losses, strict=True):
        row, new = rows[int(part.id) - 1], 0 if update.reused else len(part.tokens)
        before, row.tokens = row.tokens, row.tokens + new
        row.loss = loss if not before else ((row.loss or 0.0) * before + loss * new) / row.tokens
