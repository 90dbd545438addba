"""Texts of similar length side by side.

Right padding needs no mask under causal attention; padded predictions have no share in the loss.
Texts are grouped by a length rounded up, and a text is always computed at its own rounded length,
so that nothing of its result depends on what it is computed with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Tokens = Int[Tensor, " _"]  # a text

TOKENS, CPU_TOKENS = 16_384, 2_048
"""Tokens of a batch, padding included, on a GPU and on a CPU, whose caches more would leave."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts as a network takes them, each behind a start token."""

    ids: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    inside: Bool[Tensor, "b t"]
    """Which predictions are asked for, and not padding."""

    @classmethod
    def of(cls, texts: Sequence[Tokens], length: int, start: int, rows: int = 0) -> "Batch":
        """`texts` padded to `length`, in the CPU's memory; empty rows below them up to `rows`."""
        targets = torch.zeros(max(len(texts), rows), length, dtype=torch.long)
        counts = torch.zeros(len(targets), 1, dtype=torch.long)
        for row, text in enumerate(texts):
            targets[row, : len(text)] = text
            counts[row] = len(text)
        ids = functional.pad(targets[:, :-1], (1, 0), value=start)
        return cls(ids, targets, torch.arange(length) < counts)

    def to(self, device: torch.device) -> "Batch":
        """The same there."""
        return Batch(*(part.to(device, non_blocking=True) for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that it consists of."""
        return self.ids, self.targets, self.inside

    def share(self, dtype: torch.dtype) -> Float[Tensor, "b t"]:
        """Part of a prediction in its text's mean loss."""
        inside = self.inside.to(dtype)
        return inside / inside.sum(1, keepdim=True).clamp(min=1)


def rounded(tokens: int, context: int) -> int:
    """The length at which a text is computed: up to a quarter of its octave more, at least 16.

    No longer than the context.
    """
    step = max(16, (1 << max(tokens - 1, 1).bit_length()) // 8)
    return min(-(-tokens // step) * step, context)


def grouped(lengths: Iterable[int]) -> dict[int, list[int]]:
    """Positions by length, shortest first."""
    groups: dict[int, list[int]] = {}
    for position, length in enumerate(lengths):
        groups.setdefault(length, []).append(position)
    return dict(sorted(groups.items()))
