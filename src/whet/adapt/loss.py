"""Cross-entropy without the full logits: chunk by chunk, with the gradients of each chunk.

The memory is that of one chunk, whatever the number of texts, their length and the vocabulary. The
caller allocates it once, because new memory of that size costs more than a softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from whet.adapt.batches import Batch
from whet.config import Renamed

CHUNK, GPU_CHUNK = 2**22, 2**26  # logits per chunk: 16 MiB stay in a CPU's cache
MIN_ROWS = 128  # of a chunk, however large the vocabulary: products of fewer rows are slower


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model predicts a text.

    >>> Score(bits=12.0, num_bytes=8, num_tokens=3, is_greedy=False).bits_per_byte
    1.5
    """

    bits: float
    """Information content of the text under the model."""
    num_bytes: int
    """Length of the text in UTF-8."""
    num_tokens: int
    """Number of scored tokens."""
    is_greedy: bool
    """Whether each token is the most likely one after those before it."""

    bytes = Renamed("num_bytes")
    tokens = Renamed("num_tokens")
    greedy = Renamed("is_greedy")

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text; lower is better."""
        return self.bits / self.num_bytes


@dataclass(frozen=True, slots=True, eq=False)
class OutputProjection:
    """The output layer, from hidden states to logits: one for all rows of a batch, or one each."""

    weight: Float[Tensor, "*b v d"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    """Factor of the logits, as in Granite and Cohere."""
    cap: float | None = None
    """Soft cap of the scaled logits, cap · tanh(logits / cap), as in Gemma 2."""
    weight_grad: Float[Tensor, "*b v d"] | None = None
    """Tensor that the gradient of `weight` is added to, if it is trained; likewise `bias_grad`."""
    bias_grad: Float[Tensor, " v"] | None = None

    def for_row(self, row: int) -> "OutputProjection":
        """The layer of one row of a batch."""
        grad = None if self.weight_grad is None else self.weight_grad[row]
        return replace(self, weight=self.weight[row], weight_grad=grad)

    def workspace(self) -> Float[Tensor, " c"]:
        """Memory for the logits of a chunk."""
        chunk = CHUNK if self.weight.is_cpu else GPU_CHUNK
        return self.weight.new_empty(max(chunk, MIN_ROWS * self.weight.shape[-2]))

    def logits(
        self, states: Float[Tensor, "t d"], workspace: Float[Tensor, " c"] | None = None
    ) -> Float[Tensor, "t v"]:
        """The logits of `states`, computed in `workspace` if given, as float32 or wider."""
        t, v = len(states), len(self.weight)
        out = None if workspace is None else workspace[: t * v].view(t, v)
        if self.bias is None:
            logits = torch.mm(states, self.weight.mT, out=out)
        else:
            logits = torch.addmm(self.bias, states, self.weight.mT, out=out)
        if self.scale != 1:
            logits *= self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def logits_per_row(self, states: Float[Tensor, "b d"]) -> Float[Tensor, "b v"]:
        """The logits of one hidden state per row."""
        if self.weight.dim() == 2:
            return self.logits(states)
        return torch.cat([self.for_row(i).logits(states[i : i + 1]) for i in range(len(states))])


def chunked_cross_entropy(
    states: Float[Tensor, "b t d"],
    output: OutputProjection,
    batch: Batch,
    workspace: Float[Tensor, " c"],
) -> Float[Tensor, " b"]:
    """The mean loss of each text, in nats per token; gradients are added to the trained tensors.

    The gradient is that of the sum of the means, so that no text depends on another. `workspace` is
    that of `output`.
    """
    hidden = states.detach()
    weights = batch.loss_weights(torch.promote_types(hidden.dtype, torch.float32))
    nats = torch.zeros_like(weights)
    gradient = torch.zeros_like(hidden) if states.requires_grad else None
    for rows, times in _chunks(hidden, output, len(workspace)):
        layer = output if output.weight.dim() == 2 else output.for_row(rows.start)
        weight = weights[rows, times].flatten()[:, None]
        chunk = hidden[rows, times].flatten(0, 1)
        logits = layer.logits(chunk, workspace)
        target = batch.targets[rows, times].flatten()[:, None]
        cap_slope = 1 - (logits / layer.cap) ** 2 if layer.cap else None
        largest, correct = logits.amax(1, keepdim=True), logits.gather(1, target)
        slope = logits.sub_(largest).exp_()  # `total` times the probabilities
        total = slope.sum(1, keepdim=True)
        nats[rows, times] = (total.log() + largest - correct).view_as(nats[rows, times])
        slope.scatter_add_(1, target, -total)
        if cap_slope is not None:
            slope *= cap_slope
        slope, weight = slope.to(hidden.dtype), (weight * layer.scale / total).to(hidden.dtype)
        if gradient is not None:
            gradient[rows, times] = (slope @ layer.weight * weight).view_as(gradient[rows, times])
        if layer.weight_grad is not None:
            layer.weight_grad.addmm_(slope.T, chunk * weight)
        if layer.bias_grad is not None:
            layer.bias_grad.addmv_(slope.T, weight[:, 0])
    if gradient is not None:
        states.backward(gradient)  # type: ignore[no-untyped-call]
    return (nats * weights).sum(1)


def _chunks(
    states: Float[Tensor, "b t d"], output: OutputProjection, size: int
) -> Iterator[tuple[slice, slice]]:
    """Rows and times of each chunk: whole rows where several fit."""
    b, t, _ = states.shape
    fits = size // output.weight.shape[-2]
    together = max(1, fits // t) if output.weight.dim() == 2 else 1
    within = t if t <= fits else max(1, fits)
    for row in range(0, b, together):
        for time in range(0, t, within):
            yield slice(row, row + together), slice(time, time + within)
