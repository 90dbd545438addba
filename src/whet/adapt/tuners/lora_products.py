"""Products of frozen linear layers with the LoRA weights of each row of a batch, and their gradients.

Gradients of A and B are added to the flat parameters directly, outside autograd. Layers that read the
same input share the product with A, because one product of rank 96 is faster than three of rank 32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """A and B for each row of a batch, and the tensors that their gradients are added to."""

    lora_A: Float[Tensor, "b r i"]
    lora_B: Float[Tensor, "b o r"]
    grad_A: Float[Tensor, "b r i"] | None = None
    grad_B: Float[Tensor, "b o r"] | None = None

    def expand(self, rows: int) -> "LoRAWeights":
        """The weights of a single row for `rows` rows, without gradients."""
        return LoRAWeights(self.lora_A.expand(rows, -1, -1), self.lora_B.expand(rows, -1, -1))


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A frozen linear layer, x Wᵀ + b, with LoRA weights if it is adapted."""

    weight: Float[Tensor, "o i"]
    bias: Float[Tensor, " o"] | None
    lora: LoRAWeights | None


class Products:
    """Linear layers that read the same input; `backward` is called once, after `forward`."""

    def __init__(self, products: Sequence[Product], scale: float) -> None:
        self._products, self._scale = products, scale
        self._adapted = [product.lora for product in products if product.lora is not None]
        self._lora_A: Any = None
        self._inner: tuple[Tensor, ...] = ()

    def forward(self, inputs: Float[Tensor, "b t i"]) -> list[Float[Tensor, "b t _"]]:
        """The output of each layer."""
        if self._adapted:
            every = [lora.lora_A for lora in self._adapted]
            self._lora_A = every[0] if len(every) == 1 else torch.cat(every, 1)
            inner = torch.bmm(inputs, self._lora_A.mT)
            self._inner = torch.split(inner, [lora_A.shape[1] for lora_A in every], 2)
        outputs, inners = [], iter(self._inner)
        for product in self._products:
            output = torch.nn.functional.linear(inputs, product.weight, product.bias)
            if product.lora is not None:
                output.baddbmm_(next(inners), product.lora.lora_B.mT, alpha=self._scale)
            outputs.append(output)
        return outputs

    def backward(
        self,
        inputs: Float[Tensor, "b t i"],
        slopes: Sequence[Float[Tensor, "b t _"]],
        *,
        before: bool,
    ) -> Float[Tensor, "b t i"] | None:
        """Add the gradients of A and B; returns that of `inputs`, if `before` asks for it."""
        parts: list[Tensor] = []
        for product, slope in zip(self._products, slopes, strict=True):
            if (lora := product.lora) is None:
                continue
            assert lora.grad_A is not None and lora.grad_B is not None
            part = torch.bmm(slope, lora.lora_B).mul_(self._scale)
            lora.grad_B.baddbmm_(slope.mT, self._inner[len(parts)], alpha=self._scale)
            lora.grad_A.baddbmm_(part.mT, inputs)
            parts.append(part)
        if not before:
            return None
        flat = [slope.flatten(0, 1) for slope in slopes]
        gradient = flat[0] @ self._products[0].weight
        for slope, product in zip(flat[1:], self._products[1:], strict=True):
            gradient.addmm_(slope, product.weight)
        gradient = gradient.view(inputs.shape)
        if not parts:
            return gradient
        return gradient.baddbmm_(parts[0] if len(parts) == 1 else torch.cat(parts, 2), self._lora_A)
