"""Keys and values of a pass over whole texts, which nobody keeps.

Given no cache, transformers looks in every pass whether a row holds several texts, which on a GPU
means to wait for it, and cannot be recorded. Given one, it does not; this one stays empty.
"""

from functools import cache
from typing import Any

from torch import Tensor

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def unkept(config: Any) -> Any:
    """An empty cache for one pass; none for a network whose layers are not all attention."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= ATTENTION:
        return None
    from transformers import Cache

    return Cache(layer_class_to_replicate=_passing())


@cache
def _passing() -> Any:
    from transformers.cache_utils import DynamicLayer

    class Passing(DynamicLayer):  # type: ignore[no-untyped-call]
        """A layer's share: hands keys and values through."""

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            return key_states, value_states

    return Passing
