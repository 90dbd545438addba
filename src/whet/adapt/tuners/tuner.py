"""What is trained of a model, as slots see it, and the tuner of each kind of adapter."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from whet.adapt.batches import Batch, Tokens
from whet.adapt.config import AdapterConfig, FullFineTuning, LMHead, LoRA
from whet.adapt.loss import OutputProjection
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.full import FullTuner
from whet.adapt.tuners.head import HeadTuner
from whet.adapt.tuners.lora import LoRATuner
from whet.adapt.tuners.state_cache import CacheLimits


@runtime_checkable
class Tuner(Protocol):
    """What is trained of a model, and how the network computes with it."""

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The tensors that every slot starts from."""

    @property
    def lm_head(self) -> OutputProjection:
        """The output layer as it is now."""

    def attached(self) -> AbstractContextManager[None]: ...

    def bind(self, params: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with `params`, row by row of the batch, and add their gradients to `grad`."""

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        """The inputs of `lm_head`."""

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Compute what does not depend on the steps, for all `texts` at once."""


def make_tuner(
    model: LanguageModel, adapter: AdapterConfig, limits: CacheLimits, torch_compile: bool
) -> Tuner:
    """The tuner of one kind of adapter on `model`."""
    match adapter:
        case FullFineTuning():
            return FullTuner(model, adapter, limits, torch_compile)
        case LoRA():
            return LoRATuner(model, adapter, limits)
        case LMHead():
            return HeadTuner(model, limits, torch_compile)


def check_compile(adapter: AdapterConfig, torch_compile: bool) -> None:
    """Raises ValueError if `torch_compile` is combined with an adapter that it does not support."""
    if torch_compile and isinstance(adapter, LoRA):
        raise ValueError("torch_compile does not support LoRA: use it with full or head only")
