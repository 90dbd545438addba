"""Evaluates every method on one prompt: select, train, score after some steps, restore the model.

Definitions: docs/protocol.md.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from whet.adapt.config import TrainingConfig
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession
from whet.adapt.slots import Slots
from whet.adapt.updates import Update, plan_updates
from whet.data.documents import Document
from whet.errors import AdaptationError, ModelError
from whet.evaluate.config import DYNAMIC, EvalConfig, MethodConfig
from whet.evaluate.contamination import find_contamination, near_duplicates
from whet.evaluate.dataset import Prompt
from whet.evaluate.provenance import peak_mib
from whet.evaluate.tasks import InContext, ScoringTask
from whet.select.config import ResolvedSelection
from whet.select.sift import sift
from whet.space.retrieve import Retrieval, Retriever
from whet.space.space import DataSpace


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


@dataclass(frozen=True, slots=True)
class _Picks:
    """The documents that a method selects for a task, in the order of the selection."""

    documents: Sequence[Document]
    sigma: Sequence[float | None]
    """σ after 0, 1, … picks of the selection, whatever the order of the steps."""
    seconds: dict[str, Any]
    """Seconds of embedding, searching and selecting, by the names of the columns."""
    training: TrainingConfig

    def updates(self, model: LanguageModel) -> list[Update]:
        """The updates of the engine; the id of an example is its document's place in the picks."""
        texts = [(str(place), document.text) for place, document in enumerate(self.documents)]
        return plan_updates(texts, model, self.training)


class _Steps:
    """The steps on the picks of a task: one row per text, in the order of training."""

    def __init__(self, blank: Row, picks: _Picks) -> None:
        self.rows: list[Row] = []
        self.texts: list[str] = []
        self.completed = 0
        """Number of rows of which every chunk was trained on."""
        self._blank, self._picks = blank, picks
        self._row_of: dict[str, Row] = {}

    def add(self, place: str) -> Row:
        """The row of the pick at `place`, which is new if it was not trained on before."""
        if place not in self._row_of:
            document = self._picks.documents[int(place)]
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
            row = self.add(example.id)
            before = row.tokens
            row.tokens += 0 if update.reused else len(example.tokens)
            if before and row.tokens > before:
                loss = ((row.loss or 0.0) * before + loss * (row.tokens - before)) / row.tokens
            row.loss = loss


class Evaluator:
    """Evaluates prompts under one configuration; writes nothing to disk."""

    def __init__(self, space: DataSpace, model: LanguageModel, config: EvalConfig) -> None:
        """Checks the configuration against the data space and the model.

        Raises:
            ValueError: If `lam` or `stop_alpha` of a method is `auto`, fewer than `k` documents
                pass its filter, or an adapter has no such option.
        """
        self._space, self._model, self._config = space, model, config
        self._methods = {method.name: method for method in config.method_configs}
        self.adapters = {
            name: model.adapter_config(method.adapter.name, **method.adapter.options)
            for name, method in self._methods.items()
        }
        self._retrievers = {
            name: Retriever(space, ResolvedSelection.of(method.selection))
            for name, method in self._methods.items()
            if method.train_on == "documents"
        }
        space.resolve_k(config.selection.k)
        sample = space.vectors(space.rows[:200])
        sift(np.ones(space.dimension), sample, 1)  # compiled before any prompt is timed
        self._slots: dict[object, Slots] = {}

    def record(self, prompt: Prompt) -> dict[str, Any]:
        """The results of every method on one prompt as JSON values; if that fails, the error."""
        record: dict[str, Any] = {"prompt": prompt.document.id, "set": prompt.set}
        try:
            return record | self._measure(prompt.document)
        except (ValueError, ModelError, AdaptationError) as error:
            return record | {"error": str(error)}

    def _measure(self, document: Document) -> dict[str, Any]:
        tasks, start = ScoringTask.of(document.text, self._config), time.perf_counter()
        bases = [self._model.score(task.text, context=task.context) for task in tasks]
        base_s, rows = time.perf_counter() - start, list[Row]()
        if not all(math.isfinite(base.bits) for base in bases):
            raise ModelError("the base model's score is not finite: load it as fp32")
        for name, method in self._methods.items():
            for part, (task, base) in enumerate(zip(tasks, bases, strict=True)):
                blank = Row(name, part, base.num_bytes, base.bits)
                rows += self._run_method(blank, method, document, task)
        query, text = tasks[-1].query, "".join(task.text for task in tasks)
        contamination = find_contamination(self._space, query, text, document.text, self._config)
        query_score = self._model.score(query)
        return {
            "parts": len(tasks),
            "bytes": sum(base.num_bytes for base in bases),
            "base_bits": sum(base.bits for base in bases),
            "base_s": base_s,
            "query_bytes": query_score.num_bytes,
            "query_bits": query_score.bits,
            "exact": contamination.exact,
            "near": contamination.near,
            "cosine": contamination.cosine,
            "overlap": contamination.overlap,
            "cosines": contamination.cosines.tolist(),
            "peak_mib": peak_mib(),
            "rows": {f.name: [getattr(row, f.name) for row in rows] for f in fields(Row)},
        }

    def _run_method(
        self, blank: Row, method: MethodConfig, document: Document, task: ScoringTask
    ) -> list[Row]:
        """One method on one task, from the row of step 0 to that of step n."""
        rows = [replace(blank, bits=blank.base_bits)]
        if task.query:
            picks = self._pick(method, document, task)
            rows = [replace(rows[0], sigma=picks.sigma[0], **picks.seconds)]
            rows += self._use(blank, method, picks, task)
        last = rows[-1]
        for step in self._config.steps:  # after an early stop the score stays the same
            if step > last.step:
                rows.append(replace(blank, step=step, bits=last.bits, sigma=last.sigma))
        return rows

    def _pick(self, method: MethodConfig, document: Document, task: ScoringTask) -> _Picks:
        seed = prompt_seed(method.training.seed, document.id)
        training = replace(method.training, seed=seed)
        if method.train_on == "query":
            n = method.selection.n
            return _Picks([Document(DYNAMIC, task.query, {})] * n, [None] * (n + 1), {}, training)
        retriever = self._retrievers[method.name]
        if "seed" in signature(retriever.selector).parameters:
            seeded: Any = retriever.selector
            retriever = Retriever(
                self._space, retriever.config, selector=partial(seeded, seed=seed)
            )
        retrieval = retriever.select(task.query)
        if method.duplicates == "drop":
            retrieval = self._drop_duplicates(retrieval, retriever, task, document.text)
        seconds = {f"{name}_s": retrieval.seconds[name] for name in ("embed", "search", "select")}
        documents = retrieval.training_documents(method.selection.n)
        sigma: list[float | None] = list(retrieval.selection.sigma.tolist())
        if retrieval.copy:
            sigma = [sigma[0], *[None] * len(documents)]
        return _Picks(documents, sigma, seconds, training)

    def _drop_duplicates(
        self, retrieval: Retrieval, retriever: Retriever, task: ScoringTask, whole: str
    ) -> Retrieval:
        """Selects again, among the candidates that are not near-duplicates of the prompt."""
        candidates, config = retrieval.candidates, retriever.config
        near = near_duplicates(self._space, candidates, task.text, whole, self._config)
        remaining, start = np.flatnonzero(~near), time.perf_counter()
        vectors = candidates.vectors[remaining]
        selection = retriever.selector(retrieval.query, vectors, config.n, lam=config.lam)
        seconds = retrieval.seconds | {"select": time.perf_counter() - start}
        rows = candidates.rows[remaining][selection.indices]
        documents = tuple(self._space.documents(rows))
        again = replace(
            retrieval, documents=documents, rows=rows, selection=selection, seconds=seconds
        )
        return again if config.stop_alpha is None else again.stop_at(config.stop_alpha)

    def _use(self, blank: Row, method: MethodConfig, picks: _Picks, task: ScoringTask) -> list[Row]:
        """Train on each document, put it into the context, or both; score at the chosen steps."""
        start = time.perf_counter()
        updates, steps = picks.updates(self._model), _Steps(blank, picks)
        in_context = None if method.use == "steps" else InContext(self._model, task)
        scored = 0

        def score(session: AdaptationSession | None, *, is_end: bool = False) -> None:
            nonlocal scored, start
            for row in steps.rows[scored : steps.completed]:
                if session:
                    row.train_s = time.perf_counter() - start
                if row.step in self._config.steps or (is_end and row is steps.rows[-1]):
                    start = time.perf_counter()
                    row.bits = _score(session, in_context, task, steps, row).bits
                    row.score_s = time.perf_counter() - start
                start = time.perf_counter()
            scored = max(scored, steps.completed)

        if method.use == "context":
            for example in (example for update in updates for example in update.examples):
                steps.add(example.id)
            steps.completed = len(steps.rows)
            score(None, is_end=True)
            return steps.rows
        with self._session(method, picks.training) as session:

            def before_update(update: Update) -> None:
                """An update on several texts is taken at the last of them."""
                for example in update.examples[:-1]:
                    steps.add(example.id)
                    steps.completed += example.is_last
                score(session)

            def after_update(update: Update, number: int) -> None:
                taken = session.steps[-len(update.examples) :]
                steps.note(update, [step.loss for step in taken])
                steps.completed += update.examples[-1].is_last
                score(session)

            session.train(updates, before_update=before_update, after_update=after_update)
            if steps.rows and steps.rows[-1].bits is None:  # ended early
                scored = len(steps.rows) - 1
                score(session, is_end=True)
        return steps.rows

    @contextmanager
    def _session(
        self, method: MethodConfig, training: TrainingConfig
    ) -> Iterator[AdaptationSession]:
        """The model at the start of a method; a persistent optimizer keeps its state."""
        adapter, optimizer = self.adapters[method.name], method.optimizer
        kind = method.name if training.persist_optimizer else (adapter, optimizer)
        if kind not in self._slots:
            self._slots[kind] = Slots(self._model, adapter, optimizer)
        slots = self._slots[kind]
        with slots.attached():
            yield AdaptationSession(slots, training=training)


def prompt_seed(seed: int, prompt: str) -> int:
    """The seed of one prompt: of the run's `seed` and the prompt's id."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8])


def _score(
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
