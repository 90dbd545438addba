"""The output matrix alone: the trunk runs once on each text, then every step is one product.

Nothing below the head changes, so the hidden states of a text serve every prompt that learns from
it; those used last are kept. A tied head gets a matrix of its own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from whet.adapt.batches import CPU_TOKENS, TOKENS, Batch, Tokens, grouped
from whet.adapt.model import LanguageModel


class HeadTuner:
    """What head training trains of a model: see `whet.adapt.slots.Tuner`."""

    def __init__(self, model: LanguageModel, cache_bytes: int, compiled: bool) -> None:
        self._model, self._trunk = model, model.compiled() if compiled else None
        self._layer = model.hf_model.get_output_embeddings()
        self.initial = {"weight": self._layer.weight.detach()}
        self.lm_head = model.lm_head()
        self._cached: OrderedDict[bytes, Tensor] = OrderedDict()
        self._room = cache_bytes
        self._version = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        tied = self._layer.weight
        version = sum(p._version for p in self._model.hf_model.parameters())
        if version != self._version:  # as after `Adapter.merge`
            self._cached.clear()
            self._version = version
        self._layer.weight = nn.Parameter(tied.detach(), requires_grad=False)
        try:
            yield
        finally:
            self._layer.weight = tied

    def bind(self, theta: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with these, row by row of the batch; the network itself with the first row."""
        weight, known = theta["weight"].detach(), slice(None, self._model.vocab_size)
        self._layer.weight.data = weight[0]
        self.lm_head = replace(
            self._model.lm_head(),
            weight=weight[:, known],
            weight_grad=None if grad is None else grad["weight"][:, known],
        )

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        self.precompute(texts)
        length = batch.ids.shape[1]
        kept = [self._cached[_key(text)] for text in texts]
        return torch.stack([functional.pad(row, (0, 0, 0, length - len(row))) for row in kept])

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Run the trunk on those of `texts` whose states are not at hand, batched by length.

        The states used longest ago make room for new ones, but never those of `texts`.
        """
        wanted = {_key(text): text for text in texts}
        new = [text for key, text in wanted.items() if key not in self._cached]
        most = CPU_TOKENS if self._model.device.type == "cpu" else TOKENS
        lengths = [self._model.padded_length(len(text)) for text in new]
        for length, positions in grouped(lengths).items():
            size = max(1, most // length)
            for first in range(0, len(positions), size):
                part = [new[position] for position in positions[first : first + size]]
                batch = Batch.of(part, length, self._model.bos_token_id).to(self._model.device)
                with torch.no_grad():
                    states = self._model.hidden_states(batch.ids, self._trunk)
                for text, row in zip(part, states, strict=True):
                    self._cached[_key(text)] = row[: len(text)].clone()
        for key in wanted:
            self._cached.move_to_end(key)
        if not new:
            return
        held = sum(states.nbytes for states in self._cached.values())
        while held > self._room and len(self._cached) > len(wanted):
            held -= self._cached.popitem(last=False)[1].nbytes


def _key(text: Tokens) -> bytes:
    return text.numpy().tobytes()
