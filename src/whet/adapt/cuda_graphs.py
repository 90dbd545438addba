"""Passes of slots as CUDA graphs: a thousand launches become one.

At the sizes that prompts are sharpened with, a GPU computes faster than it is told what to compute.
A small pass is recorded when its shape comes the second time, and replayed from then on; which
slots take part, and on which texts, is data to it. Source: PyTorch's documentation of CUDA graphs.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.adapt.batches import Batch, Tokens
from whet.adapt.model import LanguageModel

log = logging.getLogger("whet")

RECORDED = 64  # graphs at most; those replayed longest ago make room
WORK = 2**37  # tokens of a pass × weights of a layer: with more, computing takes the time
TOKENS = 2**15  # of a pass that is recorded at most, as a graph keeps the memory of its pass
Compute = Callable[[Int[Tensor, " b"], Batch], Float[Tensor, " b"]]


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A graph, what it reads, and what it leaves."""

    graph: torch.cuda.CUDAGraph
    slots: Int[Tensor, " b"]
    batch: Batch
    losses: Float[Tensor, " b"]

    def replay(self, slots: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        self.slots.copy_(slots, non_blocking=True)
        for mine, given in zip(self.batch.parts, batch.parts, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.losses


class Graphs:
    """Computes as `compute` does; from the second time that a shape comes, by a graph of it.

    Rows are filled up to a power of two, or to `most`, with empty ones of the last slot, to which
    they add nothing.
    """

    def __init__(self, compute: Compute, model: LanguageModel, most: int) -> None:
        self._compute, self._device, self._most = compute, model.device, most
        layers: int = model.hf_model.config.num_hidden_layers
        self._tokens = min(TOKENS, WORK * layers // model.hf_model.base_model.num_parameters())
        self._pool: Any = None  # memory that all graphs take turns in
        self._seen: Counter[tuple[int, int]] = Counter()
        self._recorded: OrderedDict[tuple[int, int], Recorded] = OrderedDict()
        self.given_up = False
        """Whether nothing is recorded any more."""

    def takes(self, slots: int, length: int) -> bool:
        """Whether a pass of so many slots and this length is one for graphs."""
        return self._rows(slots) * length <= self._tokens and not self.given_up

    def losses(
        self, slots: Sequence[int], texts: Sequence[Tokens], length: int, start: int
    ) -> Float[Tensor, " b"]:
        """The losses of `texts`, of one in each slot, at `length`; valid until the next call."""
        rows = self._rows(len(slots))
        key = rows, length
        filled = torch.tensor([*slots, *[slots[-1]] * (rows - len(slots))])
        batch = Batch.of(texts, length, start, rows)
        self._seen[key] += 1
        if key not in self._recorded and self._seen[key] > 1:
            self._record(key, filled, batch)
        if key in self._recorded:
            self._recorded.move_to_end(key)
            losses = self._recorded[key].replay(filled, batch)
        else:
            losses = self._compute(filled.to(self._device), batch.to(self._device))
        return losses[: len(slots)]

    def _rows(self, slots: int) -> int:
        return min(1 << (slots - 1).bit_length(), self._most)

    def clear(self) -> None:
        """Forget all graphs, and the memory that they hold."""
        self._recorded.clear()
        self._seen.clear()
        torch.cuda.empty_cache()

    def _record(self, key: tuple[int, int], slots: Tensor, batch: Batch) -> None:
        """Record a pass, without computing it. A network that cannot be is left as it is."""
        given, graph = (slots.to(self._device), batch.to(self._device)), torch.cuda.CUDAGraph()
        try:
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                losses = self._compute(*given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.given_up = True
            why = " ".join(str(error).split())[:160]
            log.warning("passes cannot be recorded as CUDA graphs, so they take longer: %s", why)
            return
        self._recorded[key], self._pool = Recorded(graph, *given, losses), graph.pool()
        if len(self._recorded) > RECORDED:
            self._recorded.popitem(last=False)
