"""Cross-entropy of many texts whose logits are never held at once.

A chunk of predictions at a time: logits, loss, and at once the gradients that follow from them, so
the memory is one chunk's whatever the number of texts, their length and the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import Batch

CHUNK = 2**22  # logits at a time: 16 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """The last layer, hidden states to logits: one for all rows of a batch, or one for each."""

    weight: Float[Tensor, "*b v d"]
    bias: Float[Tensor, " v"] | None = None
    cap: float | None = None
    """Logits are cap · tanh(logits / cap), as in Gemma 2."""
    weight_grad: Float[Tensor, "*b v d"] | None = None
    """Where the gradient of `weight` is added, if it is trained; likewise `bias_grad`."""
    bias_grad: Float[Tensor, " v"] | None = None

    def row(self, row: int) -> "Output":
        """The layer of one row of a batch."""
        grad = self.weight_grad
        return Output(
            self.weight[row], self.bias, self.cap, None if grad is None else grad[row],
            self.bias_grad,
        )  # fmt: skip

    def logits(self, states: Float[Tensor, "t d"]) -> Float[Tensor, "t v"]:
        logits = functional.linear(states, self.weight, self.bias)
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits.float() if logits.dtype.itemsize < 4 else logits


def mean_losses(
    states: Float[Tensor, "b t d"], output: Output, batch: Batch
) -> Float[Tensor, " b"]:
    """The mean loss of every text, nats per token; its gradients are added to what is trained.

    All of it is the gradient of the sum of the means, so no text's depends on another's.
    """
    hidden = states.detach()
    share = batch.share(torch.promote_types(hidden.dtype, torch.float32))
    nats = torch.zeros_like(share)
    gradient = torch.zeros_like(hidden) if states.requires_grad else None
    for rows, times in _pieces(hidden, output):
        own = output if output.weight.dim() == 2 else output.row(rows.start)
        part = share[rows, times].flatten()[:, None].to(hidden.dtype)
        some = hidden[rows, times].flatten(0, 1)
        logits = own.logits(some)
        slope = functional.log_softmax(logits, 1)
        goal = batch.targets[rows, times].flatten()[:, None]
        nats[rows, times] = -slope.gather(1, goal).view_as(nats[rows, times])
        slope.exp_().scatter_add_(1, goal, -torch.ones_like(slope[:, :1]))
        if own.cap:
            slope *= 1 - (logits / own.cap) ** 2
        slope = slope.to(hidden.dtype)
        if gradient is not None:
            gradient[rows, times] = (slope @ own.weight * part).view_as(gradient[rows, times])
        if own.weight_grad is not None:
            own.weight_grad.addmm_(slope.T, some * part)
        if own.bias_grad is not None:
            own.bias_grad.add_((slope * part).sum(0))
    if gradient is not None:
        states.backward(gradient)  # type: ignore[no-untyped-call]
    return (nats * share).sum(1)


def _pieces(states: Float[Tensor, "b t d"], output: Output) -> Iterator[tuple[slice, slice]]:
    """Rows and times of one chunk after another: whole rows where several fit."""
    b, t, _ = states.shape
    fits = CHUNK // output.weight.shape[-2]
    together = max(1, fits // t) if output.weight.dim() == 2 else 1
    within = t if t <= fits else max(1, fits)
    for row in range(0, b, together):
        for time in range(0, t, within):
            yield slice(row, row + together), slice(time, time + within)
