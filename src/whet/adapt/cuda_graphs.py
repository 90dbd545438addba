"""Small training passes as CUDA graphs, which replace a thousand kernel launches by one.

A small pass takes longer to launch than to compute. It is captured when its shape occurs the second
time, and replayed from then on; the slots and texts are inputs of the graph. Source: PyTorch's
documentation of CUDA graphs.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.adapt.batches import Batch, Tokens, TrainText
from whet.adapt.model import LanguageModel

log = logging.getLogger("whet")

MAX_GRAPHS = 64  # the least recently replayed one is dropped
MAX_WORK = 2**37  # tokens of a pass × weights per layer; beyond, launching is not the bottleneck
MAX_TOKENS = 2**15  # of a captured pass, because a graph keeps the memory of its pass
Compute = Callable[[Int[Tensor, " b"], Batch], Float[Tensor, " b"]]


@dataclass(frozen=True, slots=True, eq=False)
class CapturedGraph:
    """A CUDA graph with its inputs and outputs."""

    graph: torch.cuda.CUDAGraph
    slots: Int[Tensor, " b"]
    batch: Batch
    losses: Float[Tensor, " b"]

    def replay(self, slots: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        self.slots.copy_(slots, non_blocking=True)
        for buffer, tensor in zip(self.batch.tensors, batch.tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.losses


class CUDAGraphRunner:
    """Runs `compute`, from the second time that a shape occurs as a CUDA graph.

    Batches are padded up with empty rows of the last slot, which add nothing, to a power of two or
    to `max_rows`. On a CPU nothing is captured.
    """

    def __init__(self, compute: Compute, model: LanguageModel, max_rows: int) -> None:
        self._compute, self._device, self._max_rows = compute, model.device, max_rows
        layers: int = model.hf_model.config.num_hidden_layers
        self._tokens = min(
            MAX_TOKENS, MAX_WORK * layers // model.hf_model.base_model.num_parameters()
        )
        self._pool: Any = None  # memory that all graphs share
        self._seen: Counter[tuple[int, int]] = Counter()
        self._captured: OrderedDict[tuple[int, int], CapturedGraph] = OrderedDict()
        self.disabled = False
        """Whether graphs are no longer used, because a capture has failed."""

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and length of each captured graph, the least recently used one first."""
        return tuple(self._captured)

    def supports(self, slots: int, length: int) -> bool:
        """Whether a pass of this size is small enough for a graph."""
        return self._rows(slots) * length <= self._tokens and not self.disabled

    def run(
        self,
        slots: Sequence[int],
        texts: Sequence[Tokens | TrainText],
        length: int,
        bos_token_id: int,
    ) -> Float[Tensor, " b"]:
        """The losses of one text per slot, padded to `length`; valid until the next call."""
        rows = self._rows(len(slots))
        key = rows, length
        padded = torch.tensor([*slots, *[slots[-1]] * (rows - len(slots))])
        batch = Batch.from_texts(texts, length, bos_token_id, rows)
        self._seen[key] += 1
        seen = self._seen[key] > 1 and self._device.type == "cuda"
        if key not in self._captured and seen:
            self._capture(key, padded, batch)
        if key in self._captured:
            self._captured.move_to_end(key)
            losses = self._captured[key].replay(padded, batch)
        else:
            losses = self._compute(padded.to(self._device), batch.to(self._device))
        return losses[: len(slots)]

    def _rows(self, slots: int) -> int:
        return min(1 << (slots - 1).bit_length(), self._max_rows)

    def clear(self) -> None:
        """Drop all graphs and their memory."""
        self._captured.clear()
        self._seen.clear()
        torch.cuda.empty_cache()

    def _capture(self, key: tuple[int, int], slots: Tensor, batch: Batch) -> None:
        """Capture a pass; a network for which that fails runs without graphs."""
        inputs, graph = (slots.to(self._device), batch.to(self._device)), torch.cuda.CUDAGraph()
        try:
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                losses = self._compute(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.disabled = True
            reason = " ".join(str(error).split())[:160]
            log.warning("training runs without CUDA graphs, which is slower: %s", reason)
            return
        self._captured[key], self._pool = CapturedGraph(graph, *inputs, losses), graph.pool()
        if len(self._captured) > MAX_GRAPHS:
            self._captured.popitem(last=False)
