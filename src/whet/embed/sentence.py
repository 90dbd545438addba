"""Embedders from sentence-transformers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from whet.embed.lsa import MIN_NORM
from whet.errors import ModelError, require
from whet.maths.arrays import Array, normalize_rows

CPU_BATCH, GPU_BATCH = 8, 32  # texts; more of some hundred tokens would not fit a CPU's caches


class SentenceEncoder:
    """A sentence-transformers model, by name or folder (`st:NAME`)."""

    def __init__(self, model: str, *, normalize: bool = True, device: str | None = None) -> None:
        """Load `model`, by default onto a GPU if there is one.

        Raises:
            ModelError: If it cannot be loaded.
        """
        library = require("sentence_transformers", "embed")
        from whet.adapt.loading import weights_fingerprint

        try:
            self._model = library.SentenceTransformer(model, device=device)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"sentence encoder {model!r} cannot be loaded: {reason}") from error
        self.name = f"st:{model}" + ("" if normalize else "@normalize=false")
        self.normalized = normalize
        self._batch = CPU_BATCH if self._model.device.type == "cpu" else GPU_BATCH
        self.dimension = int(self._model.encode(["length"], show_progress_bar=False).shape[1])
        weights = weights_fingerprint(self._model.state_dict())
        self.fingerprint = f"st {weights} {self._model.max_seq_length} {normalize}"

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed texts; blank texts get zero rows, long ones are truncated as the model does.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text contains an unpaired surrogate.
        """
        rows = np.zeros((len(texts), self.dimension), np.float32)
        not_blank = [i for i, text in enumerate(texts) if text.strip()]
        for i in not_blank:
            texts[i].encode()  # an unpaired surrogate is a ValueError with its position
        if not_blank:
            rows[not_blank] = self._model.encode(
                [texts[i] for i in not_blank], batch_size=self._batch, show_progress_bar=False
            )
        if not np.isfinite(rows).all():
            text = texts[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise ModelError(
                f"{self.name} returns non-finite numbers for the text {text[:40]!r}…: "
                "remove that text"
            )
        if not self.normalized:
            return rows
        return normalize_rows(rows, dtype=np.float32, min_norm=MIN_NORM)
