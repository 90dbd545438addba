"""Every weight, for one prompt: the network's parameters become views into its row for a while."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens
from whet.adapt.model import LanguageModel


class FullTuner:
    """What full training trains of a model, of one slot: see `whet.adapt.slots.Tuner`.

    The network's own tensors are set aside and never written, so they come back bit for bit.
    """

    def __init__(self, model: LanguageModel, compiled: bool) -> None:
        self._model, self._trunk = model, model.compiled() if compiled else None
        self._parameters: dict[str, nn.Parameter] = dict(model.hf_model.named_parameters())
        self.initial = {name: p.detach() for name, p in self._parameters.items()}
        self.lm_head = model.lm_head()

    @contextmanager
    def attached(self) -> Iterator[None]:
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        embedding = self._model.hf_model.get_input_embeddings()
        dense = embedding.sparse
        embedding.sparse = embedding.weight.is_cpu  # its gradient: rows of the text's tokens
        try:
            yield
        finally:
            embedding.sparse = dense
            for name, parameter in self._parameters.items():
                parameter.data = self.initial[name]

    def bind(self, theta: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with these, of one row; fill `grad` when one goes backward."""
        for name, parameter in self._parameters.items():
            parameter.data = theta[name][0].detach()
            parameter.grad = None if grad is None else grad[name][0]
        self.lm_head = self._model.lm_head(trained=grad is not None)

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        return self._model.hidden_states(batch.ids, self._trunk)

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Nothing: all that is computed depends on the steps before."""
