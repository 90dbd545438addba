"""Flat parameters: the trained tensors, gradients and optimizer state of all slots.

Row p of each tensor belongs to slot p. So a reset copies a row, clipping takes the norm of a row, an
update is one fused pass over some rows, and an export reads a row. Layers compute with views into
the rows.
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

SlotIndex = Sequence[int] | Int[Tensor, " b"]  # a tensor where a CUDA graph is replayed
ALIGNMENT = 16  # numbers (64 bytes): equal alignment, so that all slots compute the same bits


class FlatParams:
    """`slots` copies of the tensors `initial`, each with its gradient and optimizer state.

    They are stored as float32 or wider; the network computes in `dtype`.
    """

    def __init__(
        self,
        initial: Mapping[str, Tensor],
        slots: int,
        lr: float,
        optimizer: OptimizerConfig,
        dtype: torch.dtype,
    ) -> None:
        self._initial = dict(initial)
        self._widths = [
            math.ceil(tensor.numel() / ALIGNMENT) * ALIGNMENT for tensor in initial.values()
        ]
        n = sum(self._widths)
        device = next(iter(initial.values())).device
        master = dtype if dtype.itemsize >= 4 else torch.float32
        self._dtype, self._optimizer, self.base_lr = dtype, optimizer, lr
        moments = 0 if optimizer.name == "sgd" else n
        self.values = torch.zeros(slots, n, dtype=master, device=device)
        self.grad = torch.zeros_like(self.values)
        self.m = self.values.new_zeros(slots, moments)
        self.v = self.values.new_zeros(slots, moments)
        self.t = torch.zeros(slots, device=device)
        self.lr = [lr] * slots
        for slot in range(slots):  # the zeros stay unwritten, so they take no memory until used
            self._reset_values(slot)

    def __len__(self) -> int:
        return len(self.values)

    @torch.no_grad()
    def reset(self, slot: int, *, optimizer: bool = True) -> None:
        """Restore the initial tensors of a slot exactly, and by default its optimizer state."""
        self._reset_values(slot)
        self.grad[slot].zero_()
        self.lr[slot] = self.base_lr
        if optimizer:
            self.m[slot].zero_()
            self.v[slot].zero_()
            self.t[slot].zero_()

    @torch.no_grad()
    def _reset_values(self, slot: int) -> None:
        views = self.views(self.values[slot : slot + 1])
        torch._foreach_copy_([view[0] for view in views.values()], list(self._initial.values()))

    def views(self, rows: Float[Tensor, "b n"]) -> dict[str, Tensor]:
        """The tensors in `rows`, by name, each with a leading axis b."""
        pieces = torch.split(rows, self._widths, dim=1)  # the gradient of a split is one row
        return {
            name: piece[:, : tensor.numel()].view(len(rows), *tensor.shape)
            for (name, tensor), piece in zip(self._initial.items(), pieces, strict=True)
        }

    def weights(self, slots: SlotIndex) -> Float[Tensor, "b n"]:
        """The values of `slots` in the dtype of the network; a view if possible."""
        return self._rows(self.values, slots).to(self._dtype)

    def gradients(self, slots: SlotIndex) -> Float[Tensor, "b n"]:
        """A tensor for the gradients of `slots`, to be passed to `accumulate`; a view if possible."""
        if self._contiguous(slots) and self._dtype == self.grad.dtype:
            return self._rows(self.grad, slots)
        return self.grad.new_zeros(len(slots), self.grad.shape[1], dtype=self._dtype)

    def accumulate(self, slots: SlotIndex, rows: Float[Tensor, "b n"]) -> None:
        """Add the filled tensor of `gradients` to the gradients of `slots`."""
        if self.is_view(rows):
            return
        if self._contiguous(slots):
            self._rows(self.grad, slots).add_(rows)
        else:
            index = torch.as_tensor(slots, device=self.grad.device)
            self.grad.index_add_(0, index, rows.to(self.grad.dtype))

    def is_view(self, rows: Tensor) -> bool:
        """Whether `rows`, from `gradients`, is a view, so that nothing has to be added."""
        return rows.untyped_storage().data_ptr() == self.grad.untyped_storage().data_ptr()

    @torch.no_grad()
    def update(self, slots: Sequence[int]) -> None:
        """One optimizer step of `slots`, each clipped by its own norm; other rows stay untouched."""
        if slots and self._optimizer.max_grad_norm:
            rows = [self.grad[slot] for slot in slots]
            norms = torch.stack(torch._foreach_norm(rows))
            factors = (self._optimizer.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(rows, factors.unbind())
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

    def _rows(self, tensor: Tensor, slots: SlotIndex) -> Tensor:
        if self._contiguous(slots):
            first = 0 if isinstance(slots, Tensor) else slots[0]
            return tensor[first : first + len(slots)]
        return tensor[slots if isinstance(slots, Tensor) else list(slots)]

    def _contiguous(self, slots: SlotIndex) -> bool:
        """Whether the rows of `slots` are known to be adjacent, so that a view can show them."""
        if isinstance(slots, Tensor):
            return len(self) == 1
        return list(slots) == list(range(slots[0], slots[0] + len(slots)))
