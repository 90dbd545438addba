"""LoRA for many slots: y + (alpha / rank) B A x beside each linear layer, A and B the row's own.

Row b of the batch computes with pair b, so many adapters are one batched product, added into the
frozen layer's output. A starts the same for every slot and prompt, B at zero. Source: LoRA,
arXiv 2106.09685.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.adapt.adaptation import LoRA
from whet.adapt.batches import Batch, Tokens
from whet.adapt.model import LanguageModel
from whet.errors import ModelError

DOWN, UP = ".lora_A", ".lora_B"


class LoRAForm:
    """What LoRA trains of a model: see `whet.adapt.slots.Form`."""

    def __init__(self, model: LanguageModel, options: LoRA) -> None:
        self._model = model
        self._scale = options.alpha / options.rank
        self._layers = linear_layers(model.network, options.targets)
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.output = model.output()
        generator = torch.Generator().manual_seed(0)
        self.start: dict[str, Tensor] = {}
        for name, module in self._layers.items():
            width_in, width_out = widths(module)
            bound = 1 / math.sqrt(width_in)
            down = torch.empty(options.rank, width_in).uniform_(-bound, bound, generator=generator)
            dtype = torch.promote_types(module.weight.dtype, torch.float32)
            self.start[name + DOWN] = down.to(module.weight.device, dtype)
            self.start[name + UP] = down.new_zeros(width_out, options.rank).to(
                module.weight.device, dtype
            )

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in self._layers.items():
                hooks.callback(module.register_forward_hook(self._beside(name)).remove)
            yield

    def use(self, theta: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with these, row by row of the batch; their rows' gradient is autograd's own."""
        self._pairs = {name: (theta[name + DOWN], theta[name + UP]) for name in self._layers}

    def states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        return self._model.states(batch.ids)

    def prepare(self, texts: Sequence[Tokens]) -> None:
        """Nothing: all that is computed depends on the steps before."""

    def _beside(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            down, up = self._pairs[name]
            given = inputs[0]
            if given.dim() != 3 or len(given) != len(down):
                raise ModelError(
                    f"layer {name} is given {tuple(given.shape)} numbers for {len(down)} prompts: "
                    "its network mixes the rows of a batch, so choose other LoRA targets"
                )
            inner = torch.bmm(given, down.mT)
            return torch.baddbmm(output, inner, up.mT, alpha=self._scale)

        return hook


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
