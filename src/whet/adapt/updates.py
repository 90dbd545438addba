"""From the texts selected for a prompt to the updates on them: order, long texts, batches, reuse.

Sources: SIFT, arXiv 2410.08020, Insight 12 for the order and for batches; docs/protocol.md says
where the other options come from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whet.adapt.batches import Tokens
from whet.adapt.config import TrainingConfig
from whet.adapt.model import LanguageModel

COPY_LEARNED_RATIO = 0.03
"""Of its first loss, below which a passage of a copy is learned; 0.1 is worse: benchmarks/LOG.md."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainExample:
    """A text, or a chunk of one, that a gradient is computed on."""

    id: str
    """Id of its document."""
    sigma: float | None
    """Relative standard deviation after the document was picked; None without a selection."""
    tokens: Tokens
    is_last: bool = True
    """Whether it ends its text; the chunks before it do not."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One optimizer step, on the mean gradient of its examples."""

    examples: tuple[TrainExample, ...]
    reused: bool = False
    """Whether the gradient of the update before is used again instead of a new one."""
    learned_ratio: float = 0.0
    """It is skipped if the last loss of its texts was below this share of their first loss."""


def plan_updates(
    texts: Sequence[tuple[str, str]],
    model: LanguageModel,
    training: TrainingConfig,
    *,
    n: int | None = None,
    sigmas: Sequence[float | None] | None = None,
    learned_ratio: float | None = None,
) -> list[Update]:
    """The updates for one prompt, in order.

    `training.order` arranges the texts; the chunks of one text stay together, in reading order.
    A text longer than the model's context is cut as `training.long_texts` says.

    Args:
        texts: Pairs of an id and a text, in the order of the selection, repeats included.
        model: The model, for its tokenizer and its context.
        training: How texts become updates. `shuffled` is NumPy's `default_rng(seed).permutation`,
            and `length` counts tokens.
        n: Number of texts that are to be trained on [default: all]. Those after them take the
            place of repeats that are skipped, and stay in their order.
        sigmas: Relative standard deviation after each pick.
        learned_ratio: Replaces that of `training`.

    Returns:
        One update per `training.batch_size` examples.

    Raises:
        ValueError: If a text has no tokens.
    """
    random = np.random.default_rng(training.seed)
    ratio = training.learned_ratio if learned_ratio is None else learned_ratio
    n = len(texts) if n is None else n
    if not ratio or training.batch_size > 1:  # nothing is skipped, or only whole batches
        texts = texts[:n]
    tokens = [model.training_tokens(text) for _, text in texts]
    sigmas = [None] * len(texts) if sigmas is None else sigmas
    places = [*_order([len(t) for t in tokens[:n]], training, random), *range(n, len(texts))]
    examples = [
        TrainExample(texts[i][0], sigmas[i], chunk, chunk is chunks[-1])
        for i in places
        for chunks in [_chunks(tokens[i], model.max_length, training, random)]
        for chunk in chunks
    ]
    updates: list[Update] = []
    run = 0  # consecutive updates on one gradient
    for first in range(0, len(examples), training.batch_size):
        batch = tuple(examples[first : first + training.batch_size])
        same = bool(updates) and updates[-1].examples[0].tokens.equal(batch[0].tokens)
        run = run + 1 if same and run < training.gradient_reuse else 1
        updates.append(Update(batch, reused=run > 1, learned_ratio=ratio))
    return updates


def lr_scale(training: TrainingConfig, optimizer: str) -> float:
    """Factor of the learning rate for updates on `training.batch_size` texts."""
    return training.batch_size if optimizer == "sgd" else math.sqrt(training.batch_size)


def _order(
    lengths: Sequence[int], training: TrainingConfig, random: np.random.Generator
) -> Sequence[int]:
    positions = range(len(lengths))
    match training.order:
        case "selected":
            return positions
        case "reversed":
            return positions[::-1]
        case "shuffled":
            return [int(i) for i in random.permutation(len(lengths))]
        case "length":
            return sorted(positions, key=lengths.__getitem__)


def _chunks(
    tokens: Tokens, max_length: int, training: TrainingConfig, random: np.random.Generator
) -> list[Tokens]:
    if training.long_texts == "first" or len(tokens) <= max_length:
        return [tokens[:max_length]]
    if training.long_texts == "chunks":
        return list(torch.split(tokens, max_length))
    start = int(random.integers(len(tokens) - max_length + 1))
    return [tokens[start : start + max_length]]
