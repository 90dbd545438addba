"""LoRA for many slots: y + (alpha / rank) B A x beside each linear layer, A and B the row's own.

Row b of the batch computes with pair b, so many adapters are one batched product, added into the
frozen layer's output; their gradients go straight into the bank, past autograd.
A starts the same for every slot and prompt, B at zero. Source: LoRA, arXiv 2106.09685.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens
from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.errors import ModelError

DOWN, UP = ".lora_A", ".lora_B"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A and B of the rows of a batch, and where their gradients are added."""

    down: Float[Tensor, "b r i"]
    up: Float[Tensor, "b o r"]
    down_grad: Float[Tensor, "b r i"] | None = None
    up_grad: Float[Tensor, "b o r"] | None = None

    def expanded(self, rows: int) -> "Pair":
        """The pair of one row for so many, to compute with only."""
        return Pair(self.down.expand(rows, -1, -1), self.up.expand(rows, -1, -1))


class LoRATuner:
    """What LoRA trains of a model: see `whet.adapt.slots.Tuner`."""

    def __init__(self, model: LanguageModel, options: LoRA) -> None:
        self._model = model
        self._scale = options.lora_alpha / options.r
        self._layers = linear_layers(model.hf_model, options.target_modules)
        self._pairs: dict[str, Pair] = {}
        self.lm_head = model.lm_head()
        generator = torch.Generator().manual_seed(0)
        self.initial: dict[str, Tensor] = {}
        for name, module in self._layers.items():
            width_in, width_out = widths(module)
            bound = 1 / math.sqrt(width_in)
            down = torch.empty(options.r, width_in).uniform_(-bound, bound, generator=generator)
            dtype = torch.promote_types(module.weight.dtype, torch.float32)
            self.initial[name + DOWN] = down.to(module.weight.device, dtype)
            self.initial[name + UP] = down.new_zeros(width_out, options.r).to(
                module.weight.device, dtype
            )

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._layers.items():
                stack.callback(_restore_forward, module, vars(module).get("forward"))
                module.forward = self._beside(name, module)
            yield

    def bind(self, theta: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with these, row by row of the batch; add to `grad` when one goes backward."""
        self._pairs = {}
        for name in self._layers:
            down, up = theta[name + DOWN], theta[name + UP]
            if grad is None:
                self._pairs[name] = Pair(down, up)
            else:
                trained = down.detach().requires_grad_()  # so that autograd goes back to the first
                self._pairs[name] = Pair(trained, up, grad[name + DOWN], grad[name + UP])

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        return self._model.hidden_states(batch.ids)

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Nothing: all that is computed depends on the steps before."""

    def _beside(self, name: str, module: Any) -> Callable[[Tensor], Tensor]:
        base = module.forward
        matrix = module.weight.detach() if is_conv1d(module) else module.weight.detach().mT

        def forward(given: Tensor) -> Tensor:
            pair = self._pairs[name]
            if pair.down_grad is None and len(pair.down) == 1:  # one slot reads several windows
                pair = pair.expanded(len(given))
            if given.dim() != 3 or len(given) != len(pair.down):
                raise ModelError(
                    f"layer {name} is given {tuple(given.shape)} numbers for {len(pair.down)} "
                    "prompts: its network mixes the rows of a batch, so choose other LoRA targets"
                )
            beside: Any = _Beside.apply  # untyped in torch
            output: Tensor = beside(given, pair.down, pair, self._scale, base, matrix)
            return output

        return forward


class _Beside(torch.autograd.Function):
    """A frozen linear layer with the rows' pairs beside it, and all their gradients."""

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, down: Tensor, pair: Pair, scale: float, base: Any, matrix: Tensor
    ) -> Tensor:
        inner = torch.bmm(given, down.mT)
        ctx.save_for_backward(given, inner)
        ctx.pair, ctx.scale, ctx.matrix = pair, scale, matrix
        output: Tensor = base(given)
        return output.baddbmm_(inner, pair.up.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        [slope], [given, inner], pair = slopes, ctx.saved_tensors, ctx.pair
        pair.up_grad.baddbmm_(slope.mT, inner, alpha=ctx.scale)
        inner_slope = torch.bmm(slope, pair.up).mul_(ctx.scale)
        pair.down_grad.baddbmm_(inner_slope.mT, given)
        before = None
        if ctx.needs_input_grad[0]:
            before = (slope @ ctx.matrix.mT).baddbmm_(inner_slope, pair.down)
        return before, None, None, None, None, None


def _restore_forward(module: Any, own: Any) -> None:
    if own is None:
        del module.forward  # its class's is seen again
    else:
        module.forward = own


def linear_layers(network: Any, targets: tuple[str, ...] = ()) -> dict[str, Any]:
    """The linear layers of the trunk by name: those whose last name part is in `targets`, or all.

    Raises:
        ValueError: If a target names none; the message lists the names that exist.
    """
    head = network.get_output_embeddings()
    layers = {
        name: module
        for name, module in network.named_modules()
        if module is not head and (isinstance(module, nn.Linear) or is_conv1d(module))
    }
    known = sorted({name.rpartition(".")[2] for name in layers})
    if missing := [target for target in targets if target not in known]:
        raise ValueError(f"target {missing[0]!r} is no linear layer: expected {', '.join(known)}")
    if not targets:
        return layers
    return {name: m for name, m in layers.items() if name.rpartition(".")[2] in targets}


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is GPT-2's linear layer, whose weight is transposed."""
    return type(module).__name__ == "Conv1D"


def widths(module: Any) -> tuple[int, int]:
    """Numbers in and out of a linear layer."""
    shape = tuple(module.weight.shape)
    return shape if is_conv1d(module) else shape[::-1]
