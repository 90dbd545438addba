"""Evaluates every method on one prompt: select, train, score after some steps, restore the model.

Definitions: docs/protocol.md.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from whet.adapt.batches import TrainText
from whet.adapt.config import TrainingConfig
from whet.adapt.evidence import EvidenceCheck
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession
from whet.adapt.slots import Slots
from whet.adapt.updates import TrainExample, Update
from whet.data.documents import Document
from whet.engine.in_context import InContext, lr_factor
from whet.errors import AdaptationError, ModelError
from whet.evaluate.answers.generation import PromptTokens, answer, plain_prompt
from whet.evaluate.answers.kinds import KINDS
from whet.evaluate.config import STREAMING, EvalConfig, MethodConfig
from whet.evaluate.contamination import find_contamination
from whet.evaluate.dataset import Prompt
from whet.evaluate.picks import Picker, Picks, prompt_seed
from whet.evaluate.provenance import peak_mib
from whet.evaluate.steps import Row, ScoredSteps, Steps, remaining_rows
from whet.evaluate.tasks import ScoringTask, Stream, Tokens
from whet.select.sift import sift
from whet.space.space import DataSpace


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
        self._kind = KINDS.get(config.task)
        if self._kind and config.max_answer_tokens > model.max_length // 2:
            raise ValueError(
                f"max_answer_tokens is {config.max_answer_tokens}: expected at most "
                f"{model.max_length // 2}, half of what {model.name} reads"
            )
        self.adapters = {
            name: model.adapter_config(method.adapter.name, **method.adapter.options)
            for name, method in self._methods.items()
        }
        self._picker = Picker(space, config)
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
        tasks, start = self._tasks(document), time.perf_counter()
        bases = [self._model.score(task.text, context=task.context) for task in tasks]
        base_s, rows = time.perf_counter() - start, list[Row]()
        if not all(math.isfinite(base.bits) for base in bases):
            raise ModelError("the base model's score is not finite: load it as fp32")
        for name, method in self._methods.items():
            for part, (task, base) in enumerate(zip(tasks, bases, strict=True)):
                blank = Row(name, part, base.num_bytes, base.bits)
                rows += self._run_method(blank, method, document, task)
        query, text = tasks[-1].query, "".join(task.text for task in tasks)
        if self._kind:  # an answer occurs elsewhere; what must not is the whole prompt
            text = document.text
        contamination = find_contamination(self._space, query, text, document.text, self._config)
        is_scored = query == tasks[-1].text and not tasks[-1].context
        query_score = bases[-1] if is_scored else self._model.score(query)
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
        if method.train_on == "nothing":
            self._answer(rows[0], method, document, task, plain_prompt(self._model, task))
        elif method.train_on == "scored":
            rows += self._stream(blank, method, document, task)
        elif task.query:
            picks = self._picker.pick(method, document, task)
            rows = [replace(rows[0], sigma=picks.sigma[0], **picks.seconds)]
            rows += self._use(rows[0], method, picks, document, task)
        return rows + remaining_rows(blank, rows[-1], self._config.steps)

    def _use(
        self, first: Row, method: MethodConfig, picks: Picks, document: Document, task: ScoringTask
    ) -> list[Row]:
        """Train on each document, put it into the context, or both; score at the chosen steps.

        The rows of the steps; the last one, or `first` without steps, gets the answer.
        """
        blank = Row(first.method, first.part, first.bytes, first.base_bits)
        updates, steps = picks.updates(self._model, task.query), Steps(blank, picks)
        in_context, prompt = None, plain_prompt(self._model, task)
        if method.use != "steps":
            tokens = self._config.max_answer_tokens if self._kind else 0
            in_context = InContext(
                self._model,
                task.text,
                left=task.context,
                order=method.context_order,
                answer_tokens=tokens,
            )
            prompt = partial(_prompt, in_context, steps)
        scored = partial(_score, in_context, task, steps)
        if method.use == "context":
            for example in (example for update in updates for example in update.examples):
                if example.place < picks.n:
                    steps.add(example.place)
            steps.completed = len(steps.rows)
            ScoredSteps(steps, self._config.steps, partial(scored, None)).score(is_end=True)
            self._answer([first, *steps.rows][-1], method, document, task, prompt)
            return steps.rows
        with self._session(method, picks.training) as session:
            scores = ScoredSteps(steps, self._config.steps, partial(scored, session), session)
            evidence, taken = EvidenceCheck(session, task.query, is_copy=picks.is_copy), 0
            evidence.before_first()

            def after_update(update: Update, number: int) -> None:
                nonlocal taken
                scores.after_update(update, number)
                evidence.after_update(taken := number)

            session.train(
                updates,
                limit=picks.n,
                before_update=scores.before_update,
                after_update=after_update,
            )
            scores.finish()
            if evidence.finish(taken) < taken:  # the last row is what the engine answers with
                steps.rows[-1].bits = scored(session, steps.rows[-1]).bits
            _ = session.model  # computes with the session's weights
            self._answer([first, *steps.rows][-1], method, document, task, prompt)
        return steps.rows

    def _tasks(self, document: Document) -> tuple[ScoringTask, ...]:
        """What is scored and expected for a prompt.

        Raises:
            ValueError: If it is too short, or an answer is longer than can be generated.
        """
        if not self._kind:
            return ScoringTask.of(document.text, self._config)
        task, longest = self._kind.task(document, self._config), self._config.max_answer_tokens
        shortest = min(len(self._model.encode(each)) for each in task.answers)
        if shortest > longest:
            raise ValueError(
                f"answer of {document.id!r} has {shortest} tokens: expected at most "
                f"max_answer_tokens, which is {longest}"
            )
        return (task,)

    def _answer(
        self,
        row: Row,
        method: MethodConfig,
        document: Document,
        task: ScoringTask,
        prompt: PromptTokens,
    ) -> None:
        """Generate an answer with the model as it is, and write it and its metrics into `row`."""
        if not self._kind:
            return
        made = answer(
            self._model,
            prompt,
            max_tokens=self._config.max_answer_tokens,
            samples=method.samples,
            seed=prompt_seed(method.training.seed, document.id),
        )
        row.answer, row.generate_s = made.text, made.seconds
        for name, metric in self._kind.metrics.items():
            setattr(row, name, max(metric(made.text, each) for each in task.answers))

    def _stream(
        self, blank: Row, method: MethodConfig, document: Document, task: ScoringTask
    ) -> list[Row]:
        """Train on each chunk of the scored text after its score.

        The bits at a step are those of the chunks so far, each before its own step, and those of
        the rest by the model as it is then.
        """
        stream = Stream(self._model, task, method.stream_tokens)
        chunks = stream.chunks[:-1][: method.selection.n]  # nothing follows the last one
        seed = prompt_seed(method.training.seed, document.id)
        training = replace(method.training, seed=seed)
        texts = [TrainText(chunk) for chunk in chunks]
        examples = [TrainExample(STREAMING, None, t, place=i) for i, t in enumerate(texts)]
        names = [Document(STREAMING, "", {})] * len(chunks)
        steps = Steps(blank, Picks(names, [None] * (len(chunks) + 1), {}, training, len(chunks)))
        start = time.perf_counter()
        with self._session(method, training) as session:
            seen = stream.bits(0, 1)

            def after_update(update: Update, number: int) -> None:
                nonlocal seen, start
                steps.note(update, [session.steps[-1].loss])
                row = steps.rows[-1]
                row.train_s = time.perf_counter() - start
                start = time.perf_counter()
                _ = session.model  # computes with the session's weights
                if number in self._config.steps or number == len(chunks):
                    bits = seen + stream.bits(number)
                    score = Score(bits, blank.bytes, stream.starts[-1], is_greedy=False)
                    row.bits = session.check(score).bits
                seen += stream.bits(number, number + 1)
                row.score_s = time.perf_counter() - start
                start = time.perf_counter()

            session.train([Update((each,)) for each in examples], after_update=after_update)
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
            yield AdaptationSession(slots, training=training, lr_factor=lr_factor(method.use))


def _score(
    in_context: InContext | None,
    task: ScoringTask,
    steps: Steps,
    session: AdaptationSession | None,
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


def _prompt(in_context: InContext, steps: Steps, max_tokens: int) -> Tokens:
    """What stands before an answer: the texts of the steps, and the context."""
    return in_context.prompt(steps.texts, max_tokens)
