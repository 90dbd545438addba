"""LoRA for many slots: each linear layer becomes y + (lora_alpha / r) B A x.

Row b of the batch has its own A and B, so many adapters are one batched product, added to the
output of the frozen layer. Their gradients are added to the flat parameters directly, outside
autograd. A starts the same for every slot and prompt, and B at zero. Source: LoRA, arXiv 2106.09685.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens
from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.fused_layers import fused_forward
from whet.adapt.tuners.lora_products import LoRAWeights
from whet.adapt.tuners.state_cache import CacheLimits, last_layers, layer_list, restore_forward
from whet.errors import ModelError

LORA_A, LORA_B = ".lora_A", ".lora_B"


class LoRATuner:
    """Trains A and B of each linear layer: see `whet.adapt.tuners.tuner.Tuner`."""

    def __init__(self, model: LanguageModel, config: LoRA, limits: CacheLimits) -> None:
        self._model = model
        self._scale = config.lora_alpha / config.r
        self._layers = linear_layers(model.hf_model, config.target_modules)
        self._last = last_layers(model, config.layers, limits)
        if self._last is not None:
            self._layers = {
                name: module
                for name, module in self._layers.items()
                if name.startswith(self._last.prefixes)
            }
        self._weights: dict[str, LoRAWeights] = {}
        self._thread = threading.local()
        self._fused: dict[Any, Any] = {}
        self.lm_head = model.lm_head()
        generator = torch.Generator().manual_seed(0)
        self.initial: dict[str, Tensor] = {}
        for name, module in self._layers.items():
            in_features, out_features = in_out_features(module)
            bound = 1 / math.sqrt(in_features)
            lora_A = torch.empty(config.r, in_features).uniform_(-bound, bound, generator=generator)
            dtype = torch.promote_types(module.weight.dtype, torch.float32)
            self.initial[name + LORA_A] = lora_A.to(module.weight.device, dtype)
            self.initial[name + LORA_B] = lora_A.new_zeros(out_features, config.r).to(
                module.weight.device, dtype
            )

    @contextmanager
    def attached(self) -> Iterator[None]:
        if self._last is not None:
            self._last.cache.refresh()
        self._fused = self._fused_forwards()
        with ExitStack() as stack:
            for name, module in self._layers.items():
                stack.callback(restore_forward, module, vars(module).get("forward"))
                module.forward = self._forward(name, module)
            for layer, forward in self._fused.items():
                stack.callback(restore_forward, layer, vars(layer).get("forward"))
                layer.forward = forward
            yield

    def bind(
        self,
        params: Mapping[str, Tensor],
        grad: Mapping[str, Tensor] | None,
        *,
        this_thread: bool = False,
    ) -> None:
        """Compute with `params`, row by row of the batch; the backward pass adds to `grad`.

        With `this_thread`, this is for the calling thread alone, until it ends.
        """
        bound: dict[str, LoRAWeights] = {}
        for name in self._layers:
            lora_A, lora_B = params[name + LORA_A], params[name + LORA_B]
            if grad is None:
                bound[name] = LoRAWeights(lora_A, lora_B)
            else:
                trained = lora_A.detach().requires_grad_()  # so that autograd reaches the layer
                gradients = grad[name + LORA_A], grad[name + LORA_B]
                bound[name] = LoRAWeights(trained, lora_B, *gradients)
        if this_thread:
            self._thread.weights = bound
        else:
            self._weights = bound

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        if self._last is None:
            return self._model.hidden_states(batch.ids)
        return self._last.hidden_states(texts, batch.ids.shape[1])

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Does nothing: a step computes what it needs, and caches it."""

    @property
    def is_parallel(self) -> bool:
        """Whether several threads may compute at once: then nothing depends on what was computed.

        That is so for layers of a known kind, if all are trained: the last ones use a cache, and
        some rotary embeddings depend on the longest text before.
        """
        if self._last is not None or not self._fused:
            return False
        parameters = getattr(self._model.hf_model.config, "rope_parameters", None) or {}
        _, layers = layer_list(self._model.hf_model)
        fixed = parameters.get("rope_type") in ("default", "linear", "llama3", "yarn")
        return fixed and len(self._fused) == len(layers)

    def _fused_forwards(self) -> dict[Any, Any]:
        """Faster forward functions of the layers, where their kind is known."""
        network = self._model.hf_model
        if network.device.type != "cpu" or network.dtype == torch.float64:
            return {}
        try:
            name, layers = layer_list(network)
        except ModelError:
            return {}
        forwards = {
            layer: fused_forward(f"{name}.{i}", layer, self._weights_of, self._scale)
            for i, layer in enumerate(layers)
        }
        return {layer: forward for layer, forward in forwards.items() if forward is not None}

    def _weights_of(self, name: str) -> LoRAWeights | None:
        weights: dict[str, LoRAWeights] = getattr(self._thread, "weights", self._weights)
        return weights.get(name)

    def _forward(self, name: str, module: Any) -> Callable[[Tensor], Tensor]:
        base = module.forward
        matrix = module.weight.detach() if is_conv1d(module) else module.weight.detach().mT

        def forward(inputs: Tensor) -> Tensor:
            weights = self._weights_of(name)
            assert weights is not None
            if (
                weights.grad_A is None and len(weights.lora_A) == 1
            ):  # one slot scores several windows
                weights = weights.expand(len(inputs))
            if inputs.dim() != 3 or len(inputs) != len(weights.lora_A):
                raise ModelError(
                    f"layer {name} has an input of shape {tuple(inputs.shape)} for "
                    f"{len(weights.lora_A)} prompts: the network mixes the rows of a batch there, so "
                    "choose other target_modules"
                )
            apply: Any = LoRALinear.apply  # untyped in torch
            output: Tensor = apply(inputs, weights.lora_A, weights, self._scale, base, matrix)
            return output

        return forward


class LoRALinear(torch.autograd.Function):
    """A frozen linear layer plus the LoRA weights of each row, with all their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        lora_A: Tensor,
        weights: LoRAWeights,
        scale: float,
        base: Any,
        matrix: Tensor,
    ) -> Tensor:
        inner = torch.bmm(inputs, lora_A.mT)
        ctx.save_for_backward(inputs, inner)
        ctx.weights, ctx.scale, ctx.matrix = weights, scale, matrix
        output: Tensor = base(inputs)
        return output.baddbmm_(inner, weights.lora_B.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        [slope], [inputs, inner], weights = slopes, ctx.saved_tensors, ctx.weights
        weights.grad_B.baddbmm_(slope.mT, inner, alpha=ctx.scale)
        inner_slope = torch.bmm(slope, weights.lora_B).mul_(ctx.scale)
        weights.grad_A.baddbmm_(inner_slope.mT, inputs)
        before = None
        if ctx.needs_input_grad[0]:
            before = (slope @ ctx.matrix.mT).baddbmm_(inner_slope, weights.lora_A)
        return before, None, None, None, None, None


def linear_layers(hf_model: Any, target_modules: tuple[str, ...] = ()) -> dict[str, Any]:
    """The linear layers of the trunk by name: all, or those whose name is in `target_modules`.

    As in PEFT, a name is the last part of a layer's name (`q_proj`), its last parts, or all of it
    (`model.layers.0.self_attn.q_proj`).

    Raises:
        ValueError: If one of them names no layer; the message lists the last parts that exist.
    """
    head = hf_model.get_output_embeddings()
    layers = {
        name: module
        for name, module in hf_model.named_modules()
        if module is not head and (isinstance(module, nn.Linear) or is_conv1d(module))
    }
    for target in target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(
                f"{target!r} in target_modules is not a linear layer: expected {', '.join(known)}"
            )
    ends = tuple(f".{target}" for target in target_modules)
    return {n: m for n, m in layers.items() if not ends or f".{n}".endswith(ends)}


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is GPT-2's linear layer, whose weight is transposed."""
    return type(module).__name__ == "Conv1D"


def in_out_features(module: Any) -> tuple[int, int]:
    """Input and output size of a linear layer."""
    shape = tuple(module.weight.shape)
    return shape if is_conv1d(module) else shape[::-1]
