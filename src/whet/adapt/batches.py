"""Texts as batches of tokens, for training, and as windows, for scoring.

Batches are padded at the right, which needs no mask under causal attention; padding has no weight
in the loss. A text is always computed at its own bucket length, so its result does not depend on
what else is in the batch.

Source of the windows: docs/protocol.md, "The metric", after the rolling windows of Hardt & Sun,
arXiv 2305.18466. Positions count the start token in front of the text, so token i of the text is
target i + 1.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Tokens = Int[Tensor, " _"]  # of one text
LossMask = Bool[Tensor, " _"]
TOKENS, CPU_TOKENS = 16_384, 2_048
"""Tokens per batch, padding included, on a GPU and on a CPU (a larger batch leaves its caches)."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainText:
    """The tokens of a text to train on, and which of them count in its loss."""

    tokens: Tokens
    loss_mask: LossMask | None = None
    """For each token, whether its prediction counts; None if all do."""

    @property
    def num_loss_tokens(self) -> int:
        """Number of tokens whose predictions count."""
        return len(self.tokens) if self.loss_mask is None else int(self.loss_mask.sum())

    def part(self, start: int, stop: int) -> "TrainText":
        """Tokens `start` to `stop`, the latter excluded."""
        mask = self.loss_mask
        return TrainText(self.tokens[start:stop], None if mask is None else mask[start:stop])

    def key(self) -> bytes:
        """Bytes that are equal if and only if the texts are."""
        mask = b"" if self.loss_mask is None else self.loss_mask.numpy().tobytes()
        return self.tokens.numpy().tobytes() + mask


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts as inputs of a network, each behind a start token, with their targets."""

    ids: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    loss_mask: Bool[Tensor, "b t"]
    """Which predictions count, and are not padding."""

    @classmethod
    def from_texts(
        cls, texts: Sequence[Tokens | TrainText], length: int, bos_token_id: int, rows: int = 0
    ) -> "Batch":
        """`texts` padded to `length`, on the CPU, with empty rows after them up to `rows`."""
        targets = torch.zeros(max(len(texts), rows), length, dtype=torch.long)
        loss_mask = torch.zeros(targets.shape, dtype=torch.bool)
        for row, text in enumerate(texts):
            text = as_train_text(text)
            targets[row, : len(text.tokens)] = text.tokens
            mask = text.loss_mask
            loss_mask[row, : len(text.tokens)] = True if mask is None else mask
        ids = functional.pad(targets[:, :-1], (1, 0), value=bos_token_id)
        return cls(ids, targets, loss_mask)

    def to(self, device: torch.device) -> "Batch":
        """A copy on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and mask."""
        return self.ids, self.targets, self.loss_mask

    def loss_weights(self, dtype: torch.dtype) -> Float[Tensor, "b t"]:
        """Weight of each prediction in the mean loss of its text."""
        mask = self.loss_mask.to(dtype)
        return mask / mask.sum(1, keepdim=True).clamp(min=1)


def as_train_text(text: Tokens | TrainText) -> TrainText:
    """`text` with all tokens in its loss, if it is not a `TrainText` already."""
    return text if isinstance(text, TrainText) else TrainText(text)


def bucket_length(tokens: int, max_length: int) -> int:
    """The length at which a text is computed: at least 16, and at most 25 % more than its own."""
    step = max(16, (1 << max(tokens - 1, 1).bit_length()) // 8)
    return min(-(-tokens // step) * step, max_length)


def group_by_length(lengths: Iterable[int]) -> dict[int, list[int]]:
    """Positions by length, shortest first."""
    groups: dict[int, list[int]] = {}
    for position, length in enumerate(lengths):
        groups.setdefault(length, []).append(position)
    return dict(sorted(groups.items()))


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs `start:stop` of a sequence, of which the last `targets` predictions count."""

    start: int
    stop: int
    targets: int


def windows(tokens: int, max_length: int, *, skip: int = 0) -> Iterator[Window]:
    """Windows that predict each of `tokens` targets once, except the first `skip` (left context).

    Full windows are disjoint, so that each of them but the first sees one token before its first
    target. The last, shorter one extends to the left as far as fits. Windows without targets are
    left out.
    """
    for first in range(0, tokens, max_length):
        last = min(first + max_length, tokens)
        if last > skip:
            yield Window(max(0, last - max_length), last, last - max(first, skip))


def batch_by_length(items: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    """Batches of at most `batch_size` consecutive windows of one length."""
    for _, group in groupby(items, lambda window: window.stop - window.start):
        batch = list(group)
        for first in range(0, len(batch), batch_size):
            yield batch[first : first + batch_size]
