"""Make part of a network trainable for a while, and put everything back: full, LoRA, head.

Each form is a context manager that yields the parameters to train. On leaving, even by an error,
weights, buffers, ties and `requires_grad` are as they were, bit for bit.
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whet.adapt.config import AdapterConfig, FullFineTuning, LMHead, LoRA
from whet.adapt.tuners.lora import in_out_features, linear_layers

Parameters = list[nn.Parameter]


@contextmanager
def trainable(network: nn.Module, adaptation: AdapterConfig) -> Iterator[Parameters]:
    """The parameters that `adaptation` trains, ready for an optimizer."""
    with ExitStack() as stack:
        stack.enter_context(_frozen(network))
        match adaptation:
            case FullFineTuning():
                yield stack.enter_context(_full(network, adaptation))
            case LoRA():
                yield stack.enter_context(_lora(network, adaptation))
            case LMHead():
                yield stack.enter_context(_head(network))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    before = [(p, p.requires_grad, p.grad) for p in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required, grad in before:
            parameter.requires_grad_(required)
            parameter.grad = grad


@contextmanager
def _full(network: nn.Module, options: FullFineTuning) -> Iterator[Parameters]:
    state: list[Tensor] = [*network.parameters(), *network.buffers()]
    saved = [tensor.detach().clone() for tensor in state]
    try:
        trained = [p for n, p in network.named_parameters() if _is_trained(network, n, options)]
        for parameter in trained:
            parameter.requires_grad_()
        yield trained
    finally:
        with torch.no_grad():
            for tensor, old in zip(state, saved, strict=True):
                tensor.copy_(old)


@contextmanager
def _head(network: Any) -> Iterator[Parameters]:
    """A tied head gets a matrix of its own: the input embedding must not move with it."""
    head = network.get_output_embeddings()
    tied = head.weight
    try:
        head.weight = nn.Parameter(tied.detach().clone())
        yield [head.weight]
    finally:
        head.weight = tied


@contextmanager
def _lora(network: nn.Module, options: LoRA) -> Iterator[Parameters]:
    """y + (alpha / rank) B A x at each target layer; B = 0, the same random A for every prompt."""
    generator = torch.Generator().manual_seed(0)
    parameters: Parameters = []
    with ExitStack() as hooks:
        layers = linear_layers(network, options.target_modules).items()
        for module in [m for n, m in layers if _is_trained(network, n + ".", options)]:
            width_in, width_out = in_out_features(module)
            bound = 1 / math.sqrt(width_in)
            start = torch.empty(options.r, width_in).uniform_(-bound, bound, generator=generator)
            dtype = torch.promote_types(start.dtype, module.weight.dtype)
            down = nn.Parameter(start.to(module.weight.device, dtype))
            up = nn.Parameter(down.new_zeros(width_out, options.r))
            parameters += [down, up]
            hook = _beside(down, up, options.lora_alpha / options.r)
            hooks.callback(module.register_forward_hook(hook).remove)
        yield parameters


def _is_trained(network: Any, name: str, options: LoRA | FullFineTuning) -> bool:
    if options.layers == "all":
        return True
    number = re.search(r"\.(\d+)\.", name)
    first = network.config.num_hidden_layers - int(options.layers.removeprefix("last:"))
    return number is not None and int(number[1]) >= first


def _beside(down: Tensor, up: Tensor, scale: float) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inner = functional.linear(inputs[0].to(down.dtype), down)
        return output + (functional.linear(inner, up) * scale).to(output.dtype)

    return hook
