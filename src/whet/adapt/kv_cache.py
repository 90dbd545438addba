"""Keys and values of what a network has read: of nothing, of a text, of several side by side.

Several stand with their ends aligned, the shorter ones padded at the left, so that the next token
of each is in the same column: then a pass reads one token more of all of them.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
SPARE = 64  # tokens that fit before a layer moves to more room, or a quarter of what it holds


def unkept(config: Any) -> Any:
    """An empty cache for one pass over whole texts; none if not all layers are attention.

    Given no cache, transformers looks in every pass whether a row holds several texts, which on a
    GPU means to wait for it, and cannot be recorded. Given one, it does not; this one stays empty.
    """
    return _cache(_classes()[0]) if _attends(config) else None


def kept(network: Any) -> Any:
    """An empty cache that can be `joined`; none if the network cannot read rows of other lengths.

    That takes attention in all layers, and positions and a mask that can be told and that turn a
    row alike whatever the longest one beside it.
    """
    takes = inspect.signature(network.base_model.forward).parameters
    told = {"position_ids", "attention_mask"} <= takes.keys()
    joins = told and _attends(network.config) and turn(network.config) is None
    return _cache(_classes()[1]) if joins else None


def turn(config: Any) -> int | None:
    """The tokens beyond which longrope turns all positions otherwise, if the network has it."""
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [told, *(one for one in told.values() if isinstance(one, dict))]
    turns = [
        k.get("original_max_position_embeddings") for k in kinds if k.get("rope_type") == "longrope"
    ]
    return min(filter(None, turns), default=None)


def joined(caches: Sequence[Any], order: Sequence[int], length: int) -> Any:
    """The rows of all of them in one, in `order`, each padded at the left to `length` tokens."""

    def side_by_side(parts: Sequence[Tensor]) -> Tensor:
        padded = [functional.pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts]
        return torch.cat(padded)[list(order)]

    whole = _cache(_classes()[1])
    for i, layers in enumerate(zip(*(given.layers for given in caches), strict=True)):
        if layers[0].is_initialized:  # else it uses another layer's
            keys = side_by_side([layer.keys for layer in layers])
            whole.update(keys, side_by_side([layer.values for layer in layers]), i)
    return whole


def chosen(given: Any, rows: Sequence[int], length: int) -> Any:
    """Some rows of it, with their last `length` tokens."""
    whole = _cache(_classes()[1])
    for i, layer in enumerate(given.layers):
        if layer.is_initialized:
            keys, values = (t[list(rows), :, -length:] for t in (layer.keys, layer.values))
            whole.update(keys, values, i)
    return whole


def _attends(config: Any) -> bool:
    return set(getattr(config, "layer_types", None) or ()) <= ATTENTION


def _cache(layer: Any) -> Any:
    from transformers import Cache

    return Cache(layer_class_to_replicate=layer)


@cache
def _classes() -> tuple[Any, Any]:
    """A layer's share that keeps nothing, and one that grows in place."""
    from transformers.cache_utils import DynamicLayer

    class Passing(DynamicLayer):  # type: ignore[no-untyped-call]
        """Hands keys and values through."""

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            return key_states, value_states

    class Growing(DynamicLayer):  # type: ignore[no-untyped-call]
        """Has room for more tokens than it holds: transformers' own is copied for each."""

        rooms: tuple[Tensor, Tensor]

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            held = self.get_seq_length()
            length = held + key_states.shape[-2]
            if not held or length > self.rooms[0].shape[-2]:
                room = length + max(SPARE, length // 4)
                old = self.keys, self.values
                self.rooms = _room(key_states, room), _room(value_states, room)
                for there, kept in zip(self.rooms, old, strict=True):
                    if kept is not None:
                        there[..., :held, :] = kept
            for there, new in zip(self.rooms, (key_states, value_states), strict=True):
                there[..., held:length, :] = new
            keys, values = (there[..., :length, :] for there in self.rooms)
            self.keys, self.values, self.is_initialized = keys, values, True
            return keys, values

    return Passing, Growing


def _room(like: Tensor, tokens: int) -> Tensor:
    return like.new_empty(*like.shape[:-2], tokens, like.shape[-1])
