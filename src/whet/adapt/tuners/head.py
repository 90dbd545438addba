"""Training of the output matrix alone: the trunk runs once per text, then a step is one product.

Nothing below the head changes, so the hidden states of a text are cached for all prompts. A head
that is tied to the input embeddings is untied while it is trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.state_cache import CacheLimits, StateCache


class HeadTuner:
    """Trains the output matrix: see `whet.adapt.tuners.tuner.Tuner`."""

    def __init__(self, model: LanguageModel, limits: CacheLimits, torch_compile: bool) -> None:
        self._model = model
        self._layer = model.hf_model.get_output_embeddings()
        self.initial = {"weight": self._layer.weight.detach()}
        self.lm_head = model.lm_head()
        trunk = model.compiled_trunk() if torch_compile else None
        self.cache = StateCache(model, lambda ids: model.hidden_states(ids, trunk), limits, "head")

    @contextmanager
    def attached(self) -> Iterator[None]:
        tied = self._layer.weight
        self.cache.refresh()
        self._layer.weight = nn.Parameter(tied.detach(), requires_grad=False)
        try:
            yield
        finally:
            self._layer.weight = tied

    def bind(self, params: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with `params`, row by row of the batch; the network itself with the first row."""
        weight, rows = params["weight"].detach(), slice(None, self._model.vocab_size)
        self._layer.weight.data = weight[0]
        self.lm_head = replace(
            self._model.lm_head(),
            weight=weight[:, rows],
            weight_grad=None if grad is None else grad["weight"][:, rows],
        )

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        return self.cache.states(texts, batch.ids.shape[1])

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Compute the hidden states of `texts` that are not cached."""
        self.cache.precompute(texts)
