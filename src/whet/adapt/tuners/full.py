"""Full fine-tuning, of one slot: the network's parameters become views into its row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens
from whet.adapt.config import FullFineTuning
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.state_cache import CacheLimits, last_layers


class FullTuner:
    """Trains every weight: see `whet.adapt.tuners.tuner.Tuner`.

    The network's own tensors are never written, so they are restored bit for bit.
    """

    def __init__(
        self, model: LanguageModel, config: FullFineTuning, limits: CacheLimits, torch_compile: bool
    ) -> None:
        self._model, self._trunk = model, model.compiled_trunk() if torch_compile else None
        self._last = last_layers(model, config.layers, limits)
        self._parameters: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in model.hf_model.named_parameters()
            if self._last is None or name.startswith(self._last.prefixes)
        }
        self.initial = {name: p.detach() for name, p in self._parameters.items()}
        self.lm_head = model.lm_head()

    @contextmanager
    def attached(self) -> Iterator[None]:
        if self._last is not None:
            self._last.cache.refresh()
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        embedding = self._model.hf_model.get_input_embeddings()
        dense = embedding.sparse
        # its gradient has the rows of the text's tokens only
        embedding.sparse = self._last is None and embedding.weight.is_cpu
        try:
            yield
        finally:
            embedding.sparse = dense
            for name, parameter in self._parameters.items():
                parameter.data = self.initial[name]

    def bind(self, params: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with the only row of `params`, and add its gradients to `grad`."""
        for name, parameter in self._parameters.items():
            parameter.data = params[name][0].detach()
            parameter.grad = None if grad is None else grad[name][0]
        self.lm_head = self._model.lm_head(trained=grad is not None and self._last is None)

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        if self._last is None:
            return self._model.hidden_states(batch.ids, self._trunk)
        return self._last.hidden_states(texts, batch.ids.shape[1])

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Does nothing: a step computes what it needs, and caches it."""
