"""Embedders from a language model's hidden states, averaged over the tokens.

Source: SIFT, arXiv 2410.08020, Section 5.
"""

from collections.abc import Sequence

from whet.errors import require

require("torch", "adapt")

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet.embed.embedder import spec_of
from whet.embed.encoder import EncodedBatch, TextEncoder
from whet.errors import ModelError
from whet.maths.arrays import Array


class HiddenStates:
    """Hidden state of any Hugging Face encoder or causal model (`hf:NAME`)."""

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
        trust_remote_code: bool = False,
        local_files_only: bool = False,
    ) -> None:
        """Load `model`: bundled, a folder or a hub id.

        Args:
            model: Name, folder or hub id.
            layer: Block after which the hidden state is taken, from 1; by default the last, with
                the final norm, as in transformers' `hidden_states`. Later blocks are dropped.
            pool: `mean` over the tokens, or the `last` token.
            dtype: Precision of the weights; pooling is in fp32.
            context: Tokens of a text that are read, by default as many as the model accepts, at
                most 2,048.
            normalize: Whether vectors are scaled to length 1.
            device: By default a GPU if there is one.
            trust_remote_code: Run the code that the model brings.
            local_files_only: Never download.

        Raises:
            ModelError: If the model cannot be loaded, or has no such layer.
            ValueError: If an option is invalid.
        """
        if pool not in ("mean", "last"):
            raise ValueError(f"pool is {pool!r}: expected mean or last")
        self._encoder = TextEncoder(
            model, "AutoModel", add_special_tokens=True, dtype=dtype, context=context,
            device=device, trust_remote_code=trust_remote_code, local_files_only=local_files_only,
        )  # fmt: skip
        options = {
            "layer": layer,
            "pool": None if pool == "mean" else pool,
            "dtype": None if dtype == "fp32" else dtype,
            "context": context,
            "normalize": None if normalize else "false",
        }
        self.name = spec_of("hf", model, **options)
        self.normalized = normalize
        self.fingerprint, former = self._encoder.fingerprints(kind="hf", **options)
        self.former_fingerprints = (former,)
        self.dimension = int(self._encoder.network.config.hidden_size)
        self._layer = None if layer is None else _drop_blocks(self._encoder, layer)
        self._pool = pool

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read."""
        return self._encoder.context

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens."""
        return self._encoder.count_truncated(texts)

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed texts, truncated to the context; those without a token get zero rows.

        A row depends on the other texts by no more than rounding.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text contains an unpaired surrogate.
        """
        return self._encoder.encode(texts, self.dimension, self._pooled, normalize=self.normalized)

    @torch.no_grad()
    def _pooled(self, batch: EncodedBatch) -> Float[Tensor, "b d"]:
        states = self._states(batch).float()
        if self._pool == "last":
            last = batch.mask.sum(1) - 1
            return states[torch.arange(len(last), device=last.device), last]
        mask = batch.mask[:, :, None]
        return (states * mask).sum(1) / mask.sum(1)

    def _states(self, batch: EncodedBatch) -> Float[Tensor, "b t d"]:
        output = self._encoder.network(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            output_hidden_states=self._layer is not None,
        )
        states: Tensor = (
            output.last_hidden_state if self._layer is None else output.hidden_states[self._layer]
        )
        return states


def _drop_blocks(encoder: TextEncoder, layer: int) -> int | None:
    """Drop the blocks that `layer` does not need; None if it is the last layer."""
    count = int(encoder.network.config.num_hidden_layers)
    blocks = next(
        (m for m in encoder.network.modules() if isinstance(m, nn.ModuleList) and len(m) == count),
        None,
    )
    if blocks is None or not 1 <= layer <= count:
        raise ModelError(f"layer is {layer}, but {encoder.model} has layers 1 to {count}")
    if layer == count:
        return None
    del blocks[layer + 1 :]  # keep one more: the state after the last block is normalized
    return layer
