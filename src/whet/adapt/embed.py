"""Text to unit vectors by a language model's own hidden states.

What the model itself makes of a text, as in the paper's Section 5: last hidden state, mean over the
tokens. Meets the data space's Embedder by its shape alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.errors import ModelError, optional
from whet.maths.arrays import Array

BATCH = 32  # texts
UNBOUNDED = 10**9  # tokenizers without a limit say 10³⁰


class HiddenStates:
    """Mean of the last hidden state of any Hugging Face encoder or causal model (`hf:NAME`)."""

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        self._torch = optional("torch", "adapt")
        library = optional("transformers", "adapt")
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(model)
            self._model = library.AutoModel.from_pretrained(model).to(device).eval()
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"model {model!r} cannot be loaded: {reason}") from error
        self._context = _context(self._model.config, self._tokenizer)
        self.name = f"hf:{model}"
        self.dimension = int(self._model.config.hidden_size)
        self.fingerprint = f"{self.name} {self.dimension}"

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Texts are cut at the model's context; blank ones give zero rows.

        Runs batches of 32 texts of similar length; a text's row depends on its batch by no more
        than rounding.
        """
        rows = np.zeros((len(texts), self.dimension), np.float32)
        told = [i for i, text in enumerate(texts) if text.strip()]
        if not told:
            return rows
        tokens = self._tokenizer(
            [texts[i] for i in told], truncation=True, max_length=self._context
        )["input_ids"]
        order = sorted(range(len(told)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            rows[[told[i] for i in part]] = self._means([tokens[i] for i in part])
        return rows

    def _means(self, tokens: list[list[int]]) -> Float[Array, "b d"]:
        torch, device = self._torch, self._model.device
        longest = max(map(len, tokens))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        with torch.no_grad():
            states = self._model(
                input_ids=padded.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
        seen = mask.to(device)[:, :, None]
        means = (states.float() * seen).sum(1) / seen.sum(1)
        unit: Array = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
        return unit


def _context(config: Any, tokenizer: Any) -> int:
    """The most tokens that both the model and its tokenizer take."""
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", UNBOUNDED)]
    return int(min(*limits, UNBOUNDED))
