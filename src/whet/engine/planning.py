"""What a request trains on: its documents, retrieved and arranged into updates."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from whet.adapt.config import TrainingConfig
from whet.adapt.model import LanguageModel
from whet.adapt.session import StopReason
from whet.adapt.updates import COPY_LEARNED_RATIO, Update, plan_updates
from whet.data.documents import Document
from whet.engine.in_context import last_of_user
from whet.engine.types import Request
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.space.retrieve import Retrieval, retrieve
from whet.space.space import DataSpace
from whet.space.tuning import resolve


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPlan:
    """The updates for one request, before the first of them."""

    updates: Sequence[Update] = ()
    num_texts: int = 0
    """How many texts of the updates are to be trained on; the others are a reserve."""
    stop_reason: StopReason = "n"
    """Why there are no more updates."""
    retrieval: Retrieval | None = None
    seconds: float = 0.0
    """Wall time of retrieval and planning."""
    documents: Sequence[Document] = ()
    """What the updates were planned for."""

    @property
    def planned(self) -> dict[int, None]:
        """Places of the documents that are to be used, in the order of the updates."""
        places = (example.place for update in self.updates for example in update.examples)
        return dict.fromkeys(place for place in places if place < self.num_texts)


@dataclass(frozen=True, slots=True, eq=False)
class Planner:
    """Retrieves and arranges what the requests of one engine train on."""

    model: LanguageModel
    space: DataSpace | None
    selection: SelectionConfig | ResolvedSelection
    training: TrainingConfig

    def retrieve(self, request: Request) -> Retrieval:
        """The documents to train on for `request`; see `Engine.retrieve`."""
        if request.retrieval is not None:
            return request.retrieval
        space = self.space if request.space is None else request.space
        if space is None:
            raise ValueError(
                "engine has no data space to select from: give the request a `space`, a "
                "`retrieval` or `documents`"
            )
        config = request.selection or self.selection
        if isinstance(config, SelectionConfig):
            config = resolve(space, config)
        query = request.prompt if request.query is None else request.query
        return retrieve(space, query, config, for_training=True)

    def plan(self, request: Request) -> TrainingPlan:
        """Retrieve, and arrange the documents into updates."""
        start = time.perf_counter()
        config = request.selection or self.selection
        if not request.adapt or config.n == 0:
            return TrainingPlan()
        question = _question(request)
        if request.documents is not None:
            limit = None if request.selection is None else request.selection.n
            documents = request.documents[:limit]
            updates = plan_updates(
                documents, self.model, self.training, learned_ratio=0.0, prompt=question
            )
            return TrainingPlan(updates, len(documents), documents=documents)
        retrieval = self.retrieve(request)
        updates = plan_retrieval(retrieval, self.model, self.training, question)
        stopped = config.stop_alpha is not None and not retrieval.copy and len(retrieval) < config.n
        return TrainingPlan(
            updates,
            len(retrieval),
            "alpha" if stopped else "n",
            retrieval,
            time.perf_counter() - start,
            retrieval.training_documents(),
        )


def plan_retrieval(
    retrieval: Retrieval, model: LanguageModel, training: TrainingConfig, prompt: str
) -> list[Update]:
    """The updates on what was retrieved for `prompt`.

    As many of them are to be taken as documents were selected.
    """
    return plan_updates(
        retrieval.training_documents(),
        model,
        training,
        n=len(retrieval),
        sigmas=training_sigmas(retrieval),
        learned_ratio=learned_ratio(retrieval, training),
        prompt=prompt,
    )


def training_sigmas(retrieval: Retrieval) -> list[float | None]:
    """σ after each of the documents to train on; None for a copy and for the reserve."""
    count = len(retrieval.training_documents())
    sigmas = [] if retrieval.copy else retrieval.selection.sigma[1:].tolist()
    return [*sigmas, *[None] * (count - len(sigmas))]


def learned_ratio(retrieval: Retrieval, training: TrainingConfig) -> float:
    """The share of its first loss below which a text is learned."""
    return (
        COPY_LEARNED_RATIO if retrieval.copy and training.learned_ratio else training.learned_ratio
    )


def _question(request: Request) -> str:
    """What a request asks: the user's last message, or the prompt."""
    messages = request.messages or ()
    place = last_of_user(messages)
    return request.prompt if place is None else str(messages[place]["content"])
