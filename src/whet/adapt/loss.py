"""Cross-entropy of many texts whose logits are never held at once.

A chunk of predictions at a time: logits, loss, and at once the gradients that follow from them, so
the memory is one chunk's whatever the number of texts, their length and the vocabulary. It is
lent by whoever computes step after step, as fresh memory of that size costs more than a softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from whet.adapt.batches import Batch

CHUNK, GPU_CHUNK = 2**22, 2**26  # logits at a time: 16 MiB stay in a cache; a GPU wants more


@dataclass(frozen=True, slots=True, eq=False)
class OutputProjection:
    """The last layer, hidden states to logits: one for all rows of a batch, or one for each."""

    weight: Float[Tensor, "*b v d"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    """Logits are multiplied by this, as in Granite and Cohere; then"""
    cap: float | None = None
    """they are cap · tanh(logits / cap), as in Gemma 2."""
    weight_grad: Float[Tensor, "*b v d"] | None = None
    """Where the gradient of `weight` is added, if it is trained; likewise `bias_grad`."""
    bias_grad: Float[Tensor, " v"] | None = None

    def row(self, row: int) -> "OutputProjection":
        """The layer of one row of a batch."""
        grad = None if self.weight_grad is None else self.weight_grad[row]
        return replace(self, weight=self.weight[row], weight_grad=grad)

    def room(self) -> Float[Tensor, " c"]:
        """Memory for the logits of a chunk."""
        chunk = CHUNK if self.weight.is_cpu else GPU_CHUNK
        return self.weight.new_empty(max(chunk, self.weight.shape[-2]))

    def logits(
        self, states: Float[Tensor, "t d"], room: Float[Tensor, " c"] | None = None
    ) -> Float[Tensor, "t v"]:
        """The logits of `states`; in `room`, if that is given and wide enough a type for them."""
        t, v = len(states), len(self.weight)
        out = None if room is None else room[: t * v].view(t, v)
        if self.bias is None:
            logits = torch.mm(states, self.weight.mT, out=out)
        else:
            logits = torch.addmm(self.bias, states, self.weight.mT, out=out)
        if self.scale != 1:
            logits *= self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def of_rows(self, states: Float[Tensor, "b d"]) -> Float[Tensor, "b v"]:
        """The logits of one state of every row."""
        if self.weight.dim() == 2:
            return self.logits(states)
        return torch.cat([self.row(i).logits(states[i : i + 1]) for i in range(len(states))])


def chunked_cross_entropy(
    states: Float[Tensor, "b t d"],
    output: OutputProjection,
    batch: Batch,
    room: Float[Tensor, " c"],
) -> Float[Tensor, " b"]:
    """The mean loss of every text, nats per token; its gradients are added to what is trained.

    All of it is the gradient of the sum of the means, so no text's depends on another's. Works in
    `room`, that of `output`.
    """
    hidden = states.detach()
    share = batch.share(torch.promote_types(hidden.dtype, torch.float32))
    nats = torch.zeros_like(share)
    gradient = torch.zeros_like(hidden) if states.requires_grad else None
    for rows, times in _pieces(hidden, output, len(room)):
        own = output if output.weight.dim() == 2 else output.row(rows.start)
        part = share[rows, times].flatten()[:, None]
        some = hidden[rows, times].flatten(0, 1)
        logits = own.logits(some, room)
        goal = batch.targets[rows, times].flatten()[:, None]
        bend = 1 - (logits / own.cap) ** 2 if own.cap else None
        largest, asked = logits.amax(1, keepdim=True), logits.gather(1, goal)
        slope = logits.sub_(largest).exp_()  # `total` times the probabilities
        total = slope.sum(1, keepdim=True)
        nats[rows, times] = (total.log() + largest - asked).view_as(nats[rows, times])
        slope.scatter_add_(1, goal, -total)
        if bend is not None:
            slope *= bend
        slope, part = slope.to(hidden.dtype), (part * own.scale / total).to(hidden.dtype)
        if gradient is not None:
            gradient[rows, times] = (slope @ own.weight * part).view_as(gradient[rows, times])
        if own.weight_grad is not None:
            own.weight_grad.addmm_(slope.T, some * part)
        if own.bias_grad is not None:
            own.bias_grad.addmv_(slope.T, part[:, 0])
    if gradient is not None:
        states.backward(gradient)  # type: ignore[no-untyped-call]
    return (nats * share).sum(1)


def _pieces(
    states: Float[Tensor, "b t d"], output: OutputProjection, room: int
) -> Iterator[tuple[slice, slice]]:
    """Rows and times of one chunk after another: whole rows where several fit."""
    b, t, _ = states.shape
    fits = room // output.weight.shape[-2]
    together = max(1, fits // t) if output.weight.dim() == 2 else 1
    within = t if t <= fits else max(1, fits)
    for row in range(0, b, together):
        for time in range(0, t, within):
            yield slice(row, row + together), slice(time, time + within)
