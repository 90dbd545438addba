"""KV caches: empty, per sequence, and batched with left padding.

The rows of a batch are aligned at their ends, so that the next token of each is in the same column
and one pass adds one token to all of them.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
MIN_FREE = 64  # tokens that a new buffer has room for, or a quarter of its length if that is more


def no_cache(config: Any) -> Any:
    """A cache that stays empty, for one pass over whole texts; None if not all layers attend.

    Without any cache, transformers checks in every pass whether a row contains several texts, which
    waits for the GPU and cannot be captured in a CUDA graph. With one, it does not.
    """
    return _cache(_classes()[0]) if _attends(config) else None


def new_cache(hf_model: Any) -> Any:
    """An empty cache for `concat`; None if the network cannot read rows of different lengths.

    That requires attention in all layers, explicit positions and mask, and position embeddings of a
    row that do not depend on the longest row of the batch.
    """
    parameters = inspect.signature(hf_model.base_model.forward).parameters
    explicit = {"position_ids", "attention_mask"} <= parameters.keys()
    config = hf_model.config
    joins = explicit and _attends(config) and longrope_switch(config) is None
    return _cache(_classes()[1]) if joins else None


def longrope_switch(config: Any) -> int | None:
    """The length beyond which LongRoPE rotates all positions differently, if the network has it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    lengths = [
        k.get("original_max_position_embeddings") for k in kinds if k.get("rope_type") == "longrope"
    ]
    return min(filter(None, lengths), default=None)


def concat(caches: Sequence[Any], order: Sequence[int], length: int) -> Any:
    """All rows of `caches` in one cache, in `order`, each padded at the left to `length` tokens."""

    def join(parts: Sequence[Tensor]) -> Tensor:
        padded = [functional.pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts]
        return torch.cat(padded)[list(order)]

    joined = _cache(_classes()[1])
    for i, layers in enumerate(zip(*(each.layers for each in caches), strict=True)):
        if layers[0].is_initialized:  # otherwise the layer uses another layer's cache
            keys = join([layer.keys for layer in layers])
            joined.update(keys, join([layer.values for layer in layers]), i)
    return joined


def select_rows(source: Any, rows: Sequence[int], length: int) -> Any:
    """A cache with some rows of `source`, each with its last `length` tokens."""
    selected = _cache(_classes()[1])
    for i, layer in enumerate(source.layers):
        if layer.is_initialized:
            keys, values = (t[list(rows), :, -length:] for t in (layer.keys, layer.values))
            selected.update(keys, values, i)
    return selected


def _attends(config: Any) -> bool:
    return set(getattr(config, "layer_types", None) or ()) <= ATTENTION


def _cache(layer: Any) -> Any:
    from transformers import Cache

    return Cache(layer_class_to_replicate=layer)


@cache
def _classes() -> tuple[Any, Any]:
    """A cache layer that stores nothing, and one that grows in place."""
    from transformers.cache_utils import DynamicLayer

    class NullLayer(DynamicLayer):  # type: ignore[no-untyped-call]
        """Passes keys and values through."""

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            return key_states, value_states

    class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
        """Has free space for more tokens; transformers' own layer is copied for each token."""

        buffers: tuple[Tensor, Tensor]

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            start = self.get_seq_length()
            length = start + key_states.shape[-2]
            if not start or length > self.buffers[0].shape[-2]:
                size = length + max(MIN_FREE, length // 4)
                stored = self.keys, self.values
                self.buffers = _buffer(key_states, size), _buffer(value_states, size)
                for buffer, old in zip(self.buffers, stored, strict=True):
                    if old is not None:
                        buffer[..., :start, :] = old
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[..., start:length, :] = new
            keys, values = (buffer[..., :length, :] for buffer in self.buffers)
            self.keys, self.values, self.is_initialized = keys, values, True
            return keys, values

    return NullLayer, PreallocatedLayer


def _buffer(like: Tensor, tokens: int) -> Tensor:
    return like.new_empty(*like.shape[:-2], tokens, like.shape[-1])
