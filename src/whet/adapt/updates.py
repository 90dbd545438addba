"""From the texts selected for a prompt to the updates on them: order, long texts, batches, reuse.

Sources: SIFT, arXiv 2410.08020, Insight 12 for the order and for batches; docs/protocol.md says
where the other options come from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.adapt.batches import TrainText
from whet.adapt.config import TrainingConfig
from whet.adapt.examples import train_texts
from whet.adapt.model import LanguageModel
from whet.data.documents import Document

COPY_LEARNED_RATIO = 0.03
"""Of its first loss, below which a passage of a copy is learned; 0.1 is worse: benchmarks/LOG.md."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainExample:
    """A text, or a chunk of one, that a gradient is computed on."""

    id: str
    """Id of its document."""
    sigma: float | None
    """Relative standard deviation after the document was picked; None without a selection."""
    text: TrainText
    is_last: bool = True
    """Whether it ends its text; the chunks before it do not."""
    place: int = 0
    """Index of its document among those that the updates were planned for."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One optimizer step, on the mean gradient of its examples."""

    examples: tuple[TrainExample, ...]
    reused: bool = False
    """Whether the gradient of the update before is used again instead of a new one."""
    learned_ratio: float = 0.0
    """It is skipped if the last loss of its texts was below this share of their first loss."""


def plan_updates(
    documents: Sequence[Document],
    model: LanguageModel,
    training: TrainingConfig,
    *,
    n: int | None = None,
    sigmas: Sequence[float | None] | None = None,
    learned_ratio: float | None = None,
    prompt: str = "",
) -> list[Update]:
    """The updates for one prompt, in order.

    `training.loss` says which tokens of a text count. `training.order` arranges the texts; the
    chunks of one text stay together, in reading order. A text longer than the model's context is
    cut as `training.long_texts` says: where only a part of its tokens counts, tokens before the
    first of these are left out, except half of the context, and chunks without any are, too.

    Args:
        documents: The documents, in the order of the selection, repeats included.
        model: The model, for its tokenizer and its context.
        training: How texts become updates. `shuffled` is NumPy's `default_rng(seed).permutation`,
            and `length` counts tokens.
        n: Number of texts that are to be trained on [default: all]. Those after them take the
            place of repeats that are skipped, and stay in their order.
        sigmas: Relative standard deviation after each pick.
        learned_ratio: Replaces that of `training`.
        prompt: What the model is adapted to, for a `conditional` loss.

    Returns:
        One update per `training.batch_size` examples.

    Raises:
        ValueError: If a text has no tokens, or none that counts.
    """
    random = np.random.default_rng(training.seed)
    ratio = training.learned_ratio if learned_ratio is None else learned_ratio
    n = len(documents) if n is None else n
    if not ratio or training.batch_size > 1:  # nothing is skipped, or only whole batches
        documents = documents[:n]
    texts = train_texts(documents, model, training.loss, prompt)
    sigmas = [None] * len(texts) if sigmas is None else sigmas
    lengths = [len(text.tokens) for text in texts[:n]]
    examples = [
        TrainExample(documents[i].id, sigmas[i], chunk, chunk is chunks[-1], i)
        for i in [*_order(lengths, training, random), *range(n, len(texts))]
        for chunks in [_chunks(texts[i], model.max_length, training, random)]
        for chunk in chunks
    ]
    updates: list[Update] = []
    run = 0  # consecutive updates on one gradient
    for first in range(0, len(examples), training.batch_size):
        batch = tuple(examples[first : first + training.batch_size])
        same = bool(updates) and updates[-1].examples[0].text.key() == batch[0].text.key()
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
    text: TrainText, max_length: int, training: TrainingConfig, random: np.random.Generator
) -> list[TrainText]:
    text = _without_far_context(text, max_length)
    length = len(text.tokens)
    if length <= max_length:
        return [text]
    if training.long_texts == "random":
        start = _random_start(text, max_length, random)
        return [text.part(start, start + max_length)]
    parts = [
        text.part(start, start + max_length)
        for start in range(0, length, max_length)
        if _counts(text, start, max_length)
    ]
    return parts[:1] if training.long_texts == "first" else parts


def _without_far_context(text: TrainText, max_length: int) -> TrainText:
    """A text that is too long without the tokens that are farthest before those that count."""
    too_many = len(text.tokens) - max_length
    if text.loss_mask is None or too_many <= 0:
        return text
    first = int(text.loss_mask.nonzero()[0])
    start = max(0, min(too_many, first - max_length // 2))
    return text.part(start, len(text.tokens))


def _random_start(text: TrainText, length: int, random: np.random.Generator) -> int:
    """Where a random window of `length` tokens begins, in which a token counts."""
    count = len(text.tokens) - length + 1
    if text.loss_mask is None:
        return int(random.integers(count))
    before = np.concatenate([[0], text.loss_mask.numpy().cumsum()])
    starts = np.flatnonzero(before[length:] > before[:count])
    return int(starts[int(random.integers(len(starts)))])


def _counts(text: TrainText, start: int, length: int) -> bool:
    """Whether a token counts among the `length` from `start` on."""
    mask = text.loss_mask
    return mask is None or bool(mask[start : start + length].any())
