"""A slot's whole state in one row of a flat bank.

Row p holds what slot p trains (`theta`), its gradient and its optimiser's state, so that to reset
is to copy a row, to clip is a row's norm, an update is one fused pass over the rows that take it,
and to export is to read a row. Layers compute with views into the rows.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from whet.adapt.config import OptimizerConfig

Slotted = Sequence[int] | Int[Tensor, " b"]  # in a tensor where they change when it is replayed
ALIGNMENT = 16  # numbers, 64 bytes: rows and views start alike, so that slots compute alike


class FlatParams:
    """`slots` copies of the tensors `start`, each with its gradient and its optimiser.

    Numbers are kept in float32 at least; `dtype` is what the network computes in.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        slots: int,
        lr: float,
        optimizer: OptimizerConfig,
        dtype: torch.dtype,
    ) -> None:
        self._start = dict(start)
        self._widths = [
            math.ceil(tensor.numel() / ALIGNMENT) * ALIGNMENT for tensor in start.values()
        ]
        n = sum(self._widths)
        device = next(iter(start.values())).device
        master = dtype if dtype.itemsize >= 4 else torch.float32
        self._dtype, self._optimizer, self.base_lr = dtype, optimizer, lr
        moments = 0 if optimizer.name == "sgd" else n
        self.values = torch.zeros(slots, n, dtype=master, device=device)
        self.grad = torch.zeros_like(self.values)
        self.m = self.values.new_zeros(slots, moments)
        self.v = self.values.new_zeros(slots, moments)
        self.t = torch.zeros(slots, device=device)
        self.lr = [lr] * slots
        for slot in range(slots):
            self.reset(slot)

    def __len__(self) -> int:
        return len(self.values)

    @torch.no_grad()
    def reset(self, slot: int, *, optimizer: bool = True) -> None:
        """Put a slot back to the start, bit for bit; its optimiser's state too, unless told not."""
        views = self.views(self.values[slot : slot + 1])
        torch._foreach_copy_([view[0] for view in views.values()], list(self._start.values()))
        self.grad[slot].zero_()
        self.lr[slot] = self.base_lr
        if optimizer:
            self.m[slot].zero_()
            self.v[slot].zero_()
            self.t[slot].zero_()

    def views(self, rows: Float[Tensor, "b n"]) -> dict[str, Tensor]:
        """The tensors that `rows` of the bank consist of, by name; each has a leading axis b."""
        pieces = torch.split(rows, self._widths, dim=1)  # its gradient is one row again
        return {
            name: piece[:, : tensor.numel()].view(len(rows), *tensor.shape)
            for (name, tensor), piece in zip(self._start.items(), pieces, strict=True)
        }

    def weights(self, slots: Slotted) -> Float[Tensor, "b n"]:
        """What `slots` train, as the network computes with it; the rows themselves if possible."""
        return self._rows(self.values, slots).to(self._dtype)

    def gradients(self, slots: Slotted) -> Float[Tensor, "b n"]:
        """Room for the gradients of `slots`, to be given to `accumulate` when it is filled."""
        if self._neighbours(slots) and self._dtype == self.grad.dtype:
            return self._rows(self.grad, slots)
        return self.grad.new_zeros(len(slots), self.grad.shape[1], dtype=self._dtype)

    def accumulate(self, slots: Slotted, rows: Float[Tensor, "b n"]) -> None:
        """Add what `gradients` lent for `slots`, now filled."""
        if self.shares(rows):
            return
        if self._neighbours(slots):
            self._rows(self.grad, slots).add_(rows)
        else:
            index = torch.as_tensor(slots, device=self.grad.device)
            self.grad.index_add_(0, index, rows.to(self.grad.dtype))

    def shares(self, rows: Tensor) -> bool:
        """Whether `rows`, lent by `gradients`, are the bank's own: filled, they are there."""
        return rows.untyped_storage().data_ptr() == self.grad.untyped_storage().data_ptr()

    @torch.no_grad()
    def update(self, slots: Sequence[int]) -> None:
        """One optimiser step of `slots`, each clipped by its own norm; no other row is touched."""
        if slots and self._optimizer.max_grad_norm:
            rows = [self.grad[slot] for slot in slots]
            norms = torch.stack(torch._foreach_norm(rows))
            shares = (self._optimizer.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(rows, shares.unbind())
        for lr in {self.lr[slot] for slot in slots}:
            self._step([slot for slot in slots if self.lr[slot] == lr], lr)

    def _step(self, slots: Sequence[int], lr: float) -> None:
        options = self._optimizer
        theta, grad, m, v, t = (
            [tensor[slot] for slot in slots]
            for tensor in (self.values, self.grad, self.m, self.v, self.t)
        )
        if options.name == "sgd":
            none: list[Tensor | None] = [None] * len(theta)
            sgd(
                theta, grad, none, fused=True, weight_decay=options.weight_decay, momentum=0.0,
                lr=lr, dampening=0.0, nesterov=False, maximize=False,
            )  # fmt: skip
            return
        rule = adamw if options.name == "adamw" else adam
        rule(
            theta, grad, m, v, [], t, fused=True, amsgrad=False, beta1=options.beta1,
            beta2=options.beta2, lr=lr, weight_decay=options.weight_decay, eps=options.eps,
            maximize=False,
        )  # fmt: skip

    def _rows(self, tensor: Tensor, slots: Slotted) -> Tensor:
        if self._neighbours(slots):
            first = 0 if isinstance(slots, Tensor) else slots[0]
            return tensor[first : first + len(slots)]
        return tensor[slots if isinstance(slots, Tensor) else list(slots)]

    def _neighbours(self, slots: Slotted) -> bool:
        """Whether these rows lie side by side, so that a view shows them; of a tensor, for sure."""
        if isinstance(slots, Tensor):
            return len(self) == 1
        return list(slots) == list(range(slots[0], slots[0] + len(slots)))
