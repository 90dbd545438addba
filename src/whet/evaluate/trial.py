"""One prompt by every method: select, step, score at the steps asked for, put the weights back."""

import time
from typing import Any

from whet.adapt.model import LanguageModel
from whet.adapt.slot import adapting
from whet.errors import ModelError
from whet.evaluate.protocol import Switches, Task
from whet.select.table import selector
from whet.space.documents import Document
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

Row = dict[str, Any]


class Evaluator:
    """Evaluates prompts under one set of switches; writes nothing."""

    def __init__(self, space: DataSpace, model: LanguageModel, switches: Switches) -> None:
        self._model = model
        self._switches = switches
        self.adaptation = model.adaptation(switches.mode, lr=switches.lr, rank=switches.rank)
        methods = {spelled: switches.method(spelled) for spelled in switches.methods}
        self._retrievers = {
            spelled: Retriever(space, selector=selector(name), k=switches.k, lam=lam)
            for spelled, (name, lam) in methods.items()
        }

    def row(self, document: Document) -> Row:
        """Every method on one prompt; where that fails, the error."""
        row: Row = {"prompt": document.id, "set": str(document.meta.get("set", "all"))}
        try:
            return row | self._compare(Task.of(document.text, self._switches))
        except (ValueError, ModelError) as error:
            return row | {"error": str(error)}

    def _compare(self, task: Task) -> Row:
        start = time.perf_counter()
        base = self._model.score(task.text, context=task.context)
        seconds = time.perf_counter() - start
        return {
            "bytes": base.bytes,
            "base_bits": base.bits,
            "base_seconds": seconds,
            "steps": list(self._switches.steps),
            "methods": {
                spelled: self._try(task, retriever, base.bits)
                for spelled, retriever in self._retrievers.items()
            },
        }

    def _try(self, task: Task, retriever: Retriever, base_bits: float) -> Row:
        """Select, step, score at the steps asked for, put the weights back."""
        switches = self._switches
        retrieval = retriever.select(task.query, switches.n)
        seconds = dict(retrieval.seconds) | {"train": 0.0, "score": 0.0}
        documents = retrieval.documents
        if switches.order == "reversed":
            documents = documents[::-1]
        bits, losses = [base_bits], []
        with adapting(self._model, self.adaptation, switches.optimiser_options) as slot:
            for step, document in enumerate(documents, start=1):
                start = time.perf_counter()
                losses.append(slot.step(document.text))
                trained = time.perf_counter()
                seconds["train"] += trained - start
                if step in switches.steps:
                    bits.append(slot.score(task.text, context=task.context).bits)
                    seconds["score"] += time.perf_counter() - trained
        return {
            "bits": bits,
            "sigma": retrieval.selection.sigma.tolist(),
            "picks": [document.id for document in retrieval.documents],
            "losses": losses,
            "seconds": seconds,
        }
