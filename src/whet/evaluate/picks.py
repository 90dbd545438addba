"""Which documents every method trains on: the first half of an evaluation, without a model."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from whet.adapt.config import TrainingConfig
from whet.adapt.model import LanguageModel
from whet.adapt.updates import Update, plan_updates
from whet.data.documents import Document
from whet.engine.planning import learned_ratio, training_sigmas
from whet.evaluate.config import DYNAMIC, EvalConfig, MethodConfig
from whet.evaluate.contamination import near_duplicates
from whet.evaluate.tasks import ScoringTask
from whet.space.retrieve import Retrieval, Retriever
from whet.space.space import DataSpace


@dataclass(frozen=True, slots=True)
class Picks:
    """The documents that a method selects for a task, in the order of the selection."""

    documents: Sequence[Document]
    sigma: Sequence[float | None]
    """σ after 0, 1, … picks of the selection, whatever the order of the steps."""
    seconds: dict[str, Any]
    """Seconds of embedding, searching and selecting, by the names of the columns."""
    training: TrainingConfig
    n: int
    """How many of the documents are to be trained on; the others are a reserve."""
    learned_ratio: float = 0.0
    """See `TrainingConfig.learned_ratio`."""
    is_copy: bool = False
    """Whether the documents are the passages of a copy of the prompt."""

    def updates(self, model: LanguageModel, prompt: str) -> list[Update]:
        """The updates of the engine for `prompt`."""
        return plan_updates(
            self.documents,
            model,
            self.training,
            n=self.n,
            learned_ratio=self.learned_ratio,
            prompt=prompt,
        )


class Picker:
    """Selects the documents of every method of a run."""

    def __init__(self, space: DataSpace, config: EvalConfig) -> None:
        """Check the methods against the data space.

        Raises:
            ValueError: If `lam` or `stop_alpha` of a method is `auto`, or fewer than `k` documents
                pass its filter.
        """
        self._space, self._config = space, config
        self._retrievers = {
            method.name: Retriever(space, method.selection)
            for method in config.method_configs
            if method.train_on == "documents"
        }
        space.resolve_k(config.selection.k)

    def pick(self, method: MethodConfig, document: Document, task: ScoringTask) -> Picks:
        """The documents that a method selects for a task.

        Raises:
            ValueError: If the query has nothing in common with the data space.
        """
        seed = prompt_seed(method.training.seed, document.id)
        training = replace(method.training, seed=seed)
        if method.train_on == "query":
            n = method.selection.n
            documents = [Document(DYNAMIC, task.query, {})] * n
            return Picks(documents, [None] * (n + 1), {}, training, n)
        retriever = self._retrievers[method.name]
        if "seed" in signature(retriever.selector).parameters:
            seeded: Any = retriever.selector
            retriever = Retriever(
                self._space, retriever.config, selector=partial(seeded, seed=seed)
            )
        gated = bool(training.learned_ratio or method.selection.copy_overlap)
        retrieval = retriever.select(task.query, for_training=gated)
        if method.duplicates == "drop":
            retrieval = self._drop_duplicates(retrieval, retriever, task, document.text)
        seconds = {f"{name}_s": retrieval.seconds[name] for name in ("embed", "search", "select")}
        return Picks(
            retrieval.training_documents(),
            [float(retrieval.selection.sigma[0]), *training_sigmas(retrieval)],
            seconds,
            training,
            len(retrieval),
            learned_ratio(retrieval, training),
            bool(retrieval.copy),
        )

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


def prompt_seed(seed: int, prompt: str) -> int:
    """The seed of one prompt: of the run's `seed` and the prompt's id."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8])
