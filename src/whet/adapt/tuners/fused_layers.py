"""Decoder layers of Llama's kind as one function each, with its gradients, for training on a CPU.

Autograd makes some sixty passes over the states of a layer, and stores what each needs. Written by
hand they are half as many, most of them in place, and what can be computed again from other stored
tensors is not stored. The forward pass has the bits of the plain one. Only layers whose classes are
known exactly are replaced, and only while they are trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from whet.adapt.tuners.lora_products import LoRAWeights, Product, Products

KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Modules of transformers, and beginnings of the names of their classes."""
INPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
USUAL = {"position_embeddings", "position_ids", "past_key_values", "use_cache"}
"""Arguments of a layer in a pass over whole texts; with any other, such as a mask, it is plain."""
OUTPUT, GATES, DOWN = "self_attn.o_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"


def fused_forward(
    name: str, layer: Any, weights: Callable[[str], LoRAWeights | None], scale: float
) -> Callable[..., Tensor] | None:
    """A forward function for a decoder layer, or None if its kind is unknown.

    Args:
        name: The layer's name in the network.
        layer: The layer.
        weights: The LoRA weights of a linear layer by its name; None for one that is not adapted.
        scale: Factor of the LoRA weights' product.
    """
    if not _is_known(layer):
        return None
    plain = layer.forward
    modules = {part: layer.get_submodule(part) for part in (*INPUTS, OUTPUT, *GATES, DOWN)}

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        lora = {part: weights(f"{name}.{part}") for part in modules}
        adapted = [each for each in lora.values() if each is not None]
        is_trained = torch.is_grad_enabled() and all(each.grad_A is not None for each in adapted)
        needs_gradient = bool(adapted) or hidden_states.requires_grad
        if args or not (is_trained and needs_gradient and _is_simple(kwargs)):
            return plain(hidden_states, *args, **kwargs)
        products = {
            part: Product(module.weight.detach(), _detached(module.bias), lora[part])
            for part, module in modules.items()
        }
        anchor = adapted[0].lora_A if adapted else None  # so that autograd reaches the first layer
        apply: Any = _FusedLayer.apply  # untyped in torch
        cos, sin = kwargs["position_embeddings"]
        return apply(hidden_states, anchor, _Pass(layer, products, scale, cos, sin))

    return forward


def _is_simple(arguments: Mapping[str, Any]) -> bool:
    """Whether a layer computes plain causal attention over whole texts."""
    cache = arguments.get("past_key_values")
    others = {name for name, value in arguments.items() if value is not None} - USUAL
    is_cached = arguments.get("use_cache") or (cache is not None and cache.get_seq_length())
    return "position_embeddings" in arguments and not is_cached and not others


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _is_known(layer: Any) -> bool:
    """Whether `layer` and its parts have exactly the known classes, and neither hooks nor changes."""
    prefix, _, kind = type(layer).__module__.rpartition(".modeling_")
    name = KINDS.get(kind)
    if name is None or prefix != f"transformers.models.{kind}":
        return False
    classes = {"": "DecoderLayer", "self_attn": "Attention", "mlp": "MLP"}
    classes |= {"input_layernorm": "RMSNorm", "post_attention_layernorm": "RMSNorm"}
    if kind == "qwen3":
        classes |= {"self_attn.q_norm": "RMSNorm", "self_attn.k_norm": "RMSNorm"}
    expected = {part: f"{type(layer).__module__}.{name}{end}" for part, end in classes.items()}
    expected |= {part: "torch.nn.modules.linear.Linear" for part in (*INPUTS, OUTPUT, *GATES, DOWN)}
    expected["mlp.act_fn"] = "transformers.activations.SiLUActivation"
    found = {
        part: f"{type(module).__module__}.{type(module).__qualname__}"
        for part, module in layer.named_modules()
    }
    is_changed = "forward" in vars(layer) or any(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        for part, module in layer.named_modules()
        if part
    )
    is_sdpa = layer.self_attn.config._attn_implementation == "sdpa"
    return found == expected and not is_changed and is_sdpa and not layer.training


class _FusedLayer(torch.autograd.Function):
    """A decoder layer whose gradients are computed by a `_Pass`."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, anchor: Tensor | None, run: "_Pass") -> Tensor:
        ctx.run = run
        return run.forward(states.detach())

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.run.backward(slopes[0], before=ctx.needs_input_grad[0]), None, None


@dataclass(slots=True, eq=False)
class _Norm:
    """RMS normalization with a frozen weight."""

    weight: Float[Tensor, " d"]
    eps: float
    inverse: Any = None
    """One over the root mean square of each row."""

    @classmethod
    def of(cls, module: Any) -> "_Norm":
        return cls(module.weight.detach(), module.variance_epsilon)

    def forward(self, states: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = states.float()
        self.inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(self.eps))
        return self.again(states)

    def again(self, states: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What `forward` returned."""
        normed: Tensor = (states.float() * self.inverse).to(states.dtype)
        return normed.mul_(self.weight)

    def backward(
        self, slope: Float[Tensor, "*b d"], states: Float[Tensor, "*b d"]
    ) -> Float[Tensor, "*b d"]:
        """The gradient of `states`; `slope` is overwritten."""
        wide = states.float()
        gradient = slope.mul_(self.weight).float()
        along = (gradient * wide).mean(-1, keepdim=True).mul_(self.inverse**3)
        gradient = gradient.mul_(self.inverse).addcmul_(wide, along, value=-1)
        return gradient.to(states.dtype)


@dataclass(slots=True, eq=False)
class _Pass:
    """One pass through a layer: what the backward pass needs."""

    layer: Any
    products: Mapping[str, Product]
    scale: float
    cos: Float[Tensor, "_ t d"]
    sin: Float[Tensor, "_ t d"]
    saved: Any = None

    def forward(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        norm, inputs = _Norm.of(self.layer.input_layernorm), self._products(*INPUTS)
        heads = [
            each.view(*each.shape[:2], -1, self.layer.self_attn.head_dim)
            for each in inputs.forward(norm.forward(states))
        ]
        raw = heads[:2]
        norms = [getattr(self.layer.self_attn, f"{part}_norm", None) for part in "qk"]
        head_norms = [None if each is None else _Norm.of(each) for each in norms]
        for i, head_norm in enumerate(head_norms):
            each = heads[i] if head_norm is None else head_norm.forward(heads[i])
            heads[i] = self._rotated(each)
        leaves, attended = self._attend(*heads)
        output = self._products(OUTPUT)
        [middle] = output.forward(attended.detach().flatten(2))
        middle += states
        mlp_norm, gates = _Norm.of(self.layer.post_attention_layernorm), self._products(*GATES)
        gate, up = gates.forward(mlp_norm.forward(middle))
        down = self._products(DOWN)
        [result] = down.forward(functional.silu(gate).mul_(up))
        self.saved = (
            states, norm, inputs, raw if head_norms[0] else (), head_norms, leaves, attended,
            output, middle, mlp_norm, gates, gate, up, down,
        )  # fmt: skip
        return result.add_(middle)

    def backward(
        self, slope: Float[Tensor, "b t d"], *, before: bool
    ) -> Float[Tensor, "b t d"] | None:
        (
            states, norm, inputs, raw, head_norms, leaves, attended,
            output, middle, mlp_norm, gates, gate, up, down,
        ) = self.saved  # fmt: skip
        self.saved, slope = None, slope.contiguous()
        active = functional.silu(gate)
        hidden_slope = down.backward(active * up, [slope], before=True)
        up_slope = active.mul_(hidden_slope)
        gate_slope = torch.ops.aten.silu_backward(hidden_slope.mul_(up), gate)
        slopes = [gate_slope, up_slope]
        normed_slope = gates.backward(mlp_norm.again(middle), slopes, before=True)
        middle_slope = mlp_norm.backward(normed_slope, middle).add_(slope)
        attended_slope = output.backward(
            attended.detach().flatten(2), [middle_slope], before=True
        ).view_as(attended)
        heads = [
            each.transpose(1, 2) for each in torch.autograd.grad(attended, leaves, attended_slope)
        ]
        for i, head_norm in enumerate(head_norms):
            heads[i] = self._rotated_back(heads[i])
            if head_norm is not None:
                heads[i] = head_norm.backward(heads[i], raw[i])
        slopes = [each.flatten(2) for each in heads]
        normed_slope = inputs.backward(norm.again(states), slopes, before=before)
        return norm.backward(normed_slope, states).add_(middle_slope) if before else None

    def _products(self, *parts: str) -> Products:
        return Products([self.products[part] for part in parts], self.scale)

    def _attend(self, *heads: Float[Tensor, "b t _ d"]) -> tuple[list[Tensor], Tensor]:
        """Causal attention; returns what to differentiate by, and the result."""
        attend = _attention()
        attention = self.layer.self_attn
        with torch.enable_grad():
            leaves = [each.transpose(1, 2).detach().requires_grad_() for each in heads]
            attended, _ = attend(attention, *leaves, None, scaling=attention.scaling)
        return leaves, attended

    def _rotated(self, states: Float[Tensor, "b t h d"]) -> Float[Tensor, "b t h d"]:
        """`states` rotated by their positions."""
        cos, sin, half = self.cos[:, :, None], self.sin[:, :, None], states.shape[-1] // 2
        rotated = states * cos
        rotated[..., :half] -= states[..., half:] * sin[..., :half]  # addcmul rounds once
        rotated[..., half:] += states[..., :half] * sin[..., half:]
        return rotated

    def _rotated_back(self, slope: Float[Tensor, "b t h d"]) -> Float[Tensor, "b t h d"]:
        """The gradient of what was rotated."""
        cos, sin, half = self.cos[:, :, None], self.sin[:, :, None], slope.shape[-1] // 2
        gradient = slope * cos
        gradient[..., :half].addcmul_(slope[..., half:], sin[..., half:])
        gradient[..., half:].addcmul_(slope[..., :half], sin[..., :half], value=-1)
        return gradient


@cache
def _attention() -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward
