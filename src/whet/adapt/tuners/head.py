"""Training of the output matrix alone: the trunk runs once per text, then a step is one product.

Nothing below the head changes, so the hidden states of a text are cached for all prompts. A head
that is tied to the input embeddings is untied while it is trained.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from whet.adapt.batches import CPU_TOKENS, TOKENS, Batch, Tokens, group_by_length
from whet.adapt.model import LanguageModel


class HeadTuner:
    """Trains the output matrix: see `whet.adapt.slots.Tuner`."""

    def __init__(self, model: LanguageModel, cache_bytes: int, torch_compile: bool) -> None:
        self._model, self._trunk = model, model.compiled_trunk() if torch_compile else None
        self._layer = model.hf_model.get_output_embeddings()
        self.initial = {"weight": self._layer.weight.detach()}
        self.lm_head = model.lm_head()
        self._cached: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._version = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        tied = self._layer.weight
        version = sum(p._version for p in self._model.hf_model.parameters())
        if version != self._version:  # such as after `Adapter.merge_into`
            self._cached.clear()
            self._version = version
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
        self.precompute(texts)
        length = batch.ids.shape[1]
        cached = [self._cached[_key(text)] for text in texts]
        return torch.stack([functional.pad(row, (0, 0, 0, length - len(row))) for row in cached])

    @property
    def cached_tokens(self) -> int:
        """Number of tokens whose hidden states are cached."""
        return sum(map(len, self._cached.values()))

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Compute the hidden states of `texts` that are not cached, batched by length.

        The least recently used ones are dropped, but never those of `texts`.
        """
        wanted = {_key(text): text for text in texts}
        new = [text for key, text in wanted.items() if key not in self._cached]
        max_tokens = CPU_TOKENS if self._model.device.type == "cpu" else TOKENS
        lengths = [self._model.padded_length(len(text)) for text in new]
        for length, positions in group_by_length(lengths).items():
            batch_size = max(1, max_tokens // length)
            for first in range(0, len(positions), batch_size):
                chunk = [new[position] for position in positions[first : first + batch_size]]
                batch = Batch.from_texts(chunk, length, self._model.bos_token_id).to(
                    self._model.device
                )
                with torch.no_grad():
                    states = self._model.hidden_states(batch.ids, self._trunk)
                for text, row in zip(chunk, states, strict=True):
                    self._cached[_key(text)] = row[: len(text)].clone()
        for key in wanted:
            self._cached.move_to_end(key)
        if not new:
            return
        size = sum(states.nbytes for states in self._cached.values())
        while size > self._cache_bytes and len(self._cached) > len(wanted):
            size -= self._cached.popitem(last=False)[1].nbytes


def _key(text: Tokens) -> bytes:
    return text.numpy().tobytes()
