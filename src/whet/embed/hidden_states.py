"""Text to vectors by a language model's own hidden states.

What the model itself makes of a text, as in the paper's Section 5: a hidden state, mean over the
tokens. Meets the data space's Embedder by its shape alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.embed.encoder import Batch, Reader, named
from whet.errors import ModelError
from whet.maths.arrays import Array


class HiddenStates:
    """A hidden state of any Hugging Face encoder or causal model (`hf:NAME`)."""

    def __init__(
        self,
        model: str,
        *,
        layer: int | None = None,
        pool: str = "mean",
        dtype: str = "fp32",
        context: int | None = None,
        normalize: bool = True,
        device: str | None = None,
    ) -> None:
        """Load `model`: bundled, a folder or a hub id.

        Args:
            model: Its name.
            layer: After which of its blocks, from 1; by default the last, with the final norm, as
                in transformers' `hidden_states`. The blocks above the next are not kept.
            pool: Mean over the tokens, or the last token.
            dtype: Precision of its weights; pooling is in fp32.
            context: Tokens of a text that are read, by default as many as the model takes, at most
                2,048.
            normalize: Whether rows have length 1.
            device: By default a GPU if there is one.

        Raises:
            ModelError: If it cannot be loaded, or has no such layer.
            ValueError: If an option is none of those above.
        """
        if pool not in ("mean", "last"):
            raise ValueError(f"pool is {pool!r}: expected mean or last")
        self._reader = Reader(
            model, "AutoModel", special=True, dtype=dtype, context=context, device=device
        )
        options = {
            "layer": layer,
            "pool": None if pool == "mean" else pool,
            "dtype": None if dtype == "fp32" else dtype,
            "context": context,
            "normalize": None if normalize else "false",
        }
        self.name = named("hf", model, **options)
        self.normalized = normalize
        self.fingerprint = self._reader.fingerprint(kind="hf", **options)
        self.dimension = int(self._reader.network.config.hidden_size)
        self._layer = None if layer is None else _cut(self._reader, layer)
        self._pool = pool

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Texts are cut at the context; those without a token give zero rows.

        Runs batches of texts of similar length; a text's row depends on its batch by no more than
        rounding.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text holds half of a surrogate pair.
        """
        return self._reader.encode(texts, self.dimension, self._pooled, normalize=self.normalized)

    @torch.no_grad()
    def _pooled(self, batch: Batch) -> Float[Tensor, "b d"]:
        states = self._states(batch).float()
        if self._pool == "last":
            last = batch.mask.sum(1) - 1
            return states[torch.arange(len(last), device=last.device), last]
        seen = batch.mask[:, :, None]
        return (states * seen).sum(1) / seen.sum(1)

    def _states(self, batch: Batch) -> Float[Tensor, "b t d"]:
        output = self._reader.network(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            output_hidden_states=self._layer is not None,
        )
        states: Tensor = (
            output.last_hidden_state if self._layer is None else output.hidden_states[self._layer]
        )
        return states


def _cut(reader: Reader, layer: int) -> int | None:
    """Drop the blocks that `layer` does not need; None where it is the last."""
    count = int(reader.network.config.num_hidden_layers)
    blocks = next(
        (m for m in reader.network.modules() if isinstance(m, nn.ModuleList) and len(m) == count),
        None,
    )
    if blocks is None or not 1 <= layer <= count:
        raise ModelError(f"layer is {layer}, but {reader.model} has layers 1 to {count}")
    if layer == count:
        return None
    del blocks[layer + 1 :]  # one more than is read: the last one's state is seen after the norm
    return layer
