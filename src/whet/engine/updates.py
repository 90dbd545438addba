"""From the texts chosen for a prompt to the updates taken on them: order, chunks, reuse.

Sources: SIFT, arXiv 2410.08020, Insight 12 for order and batches; the others are switches of work
that whet is compared with, see docs/protocol.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whet.adapt.batches import Tokens
from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.engine.types import TrainingConfig


@dataclass(frozen=True, slots=True, eq=False)
class TrainExample:
    """What is learned from one document at a time."""

    id: str
    sigma: float | None
    tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One update: the parts whose gradients it takes, or takes again."""

    parts: tuple[TrainExample, ...]
    reused: bool = False


def plan_updates(
    documents: Sequence[Document],
    sigmas: Sequence[float | None],
    model: LanguageModel,
    training: TrainingConfig,
) -> list[Update]:
    """The updates of one prompt, in order.

    Raises:
        ValueError: If a document has no tokens.
    """
    random = np.random.default_rng(training.seed)
    parts = [
        TrainExample(document.id, sigma, chunk)
        for document, sigma in zip(documents, sigmas, strict=True)
        for chunk in _chunks(model.lesson(document.text), model.context, training, random)
    ]
    if training.order == "reversed":
        parts.reverse()
    elif training.order == "shuffled":
        parts = [parts[i] for i in random.permutation(len(parts))]
    elif training.order == "length":
        parts.sort(key=lambda part: len(part.tokens))
    updates: list[Update] = []
    run = 0
    size = training.batch_size
    for first in range(0, len(parts), size):
        group = tuple(parts[first : first + size])
        same = bool(updates) and updates[-1].parts[0].tokens.equal(group[0].tokens)
        run = run + 1 if same and run < training.gradient_reuse else 1
        updates.append(Update(group, reused=run > 1))
    return updates


def rate(training: TrainingConfig, kind: str) -> float:
    """How many times the learning rate an update takes, by the texts in it."""
    several = training.batch_size
    return several if kind == "sgd" else math.sqrt(several)


def _chunks(
    tokens: Tokens, context: int, training: TrainingConfig, random: np.random.Generator
) -> list[Tokens]:
    if training.long_texts == "first" or len(tokens) <= context:
        return [tokens[:context]]
    if training.long_texts == "chunks":
        return list(torch.split(tokens, context))
    start = int(random.integers(len(tokens) - context + 1))
    return [tokens[start : start + context]]
