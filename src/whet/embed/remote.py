"""Embedders on a server with OpenAI's interface: OpenAI, vLLM, llama.cpp, Ollama, TEI, whet."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float

from whet.embed.embedder import spec_of
from whet.embed.lsa import MIN_NORM
from whet.errors import ModelError, require
from whet.maths.arrays import Array, normalize_rows

BATCH_TEXTS = 256  # of one request
BATCH_CHARACTERS = 200_000  # of one request: OpenAI accepts 300,000 tokens
RETRIES = 5  # of a request that a busy or restarting server does not answer
TIMEOUT_S = 120.0
NO_KEY = "none"  # sent to servers that ask for no key


class RemoteEmbedder:
    """The embeddings of a server, by its address and a model: `openai:URL#MODEL`.

    The API key is in the environment variable OPENAI_API_KEY. Requests are repeated, with growing
    pauses, while the server is busy (429), fails (5xx) or cannot be reached.
    """

    def __init__(
        self,
        model: str,
        *,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
    ) -> None:
        """Ask the server for one vector, to learn their length.

        Args:
            model: Address up to `/v1`, `#`, and the model, as `http://localhost:8000/v1#e5`.
            query_prompt: Text in front of every query.
            passage_prompt: Text in front of every document.
            truncate_dim: Numbers of a vector that are used, for models trained for that; by default
                all.
            normalize: Whether vectors are scaled to length 1.

        Raises:
            ModelError: If the server cannot be reached, refuses, or its vectors are too short.
            ValueError: If the address is not one.
        """
        self.url, _, self.model = model.partition("#")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not self.model:
            raise ValueError(
                f"embedder is {'openai:' + model!r}: expected an address and a model, as "
                "'openai:http://localhost:8000/v1#MODEL'"
            )
        options: dict[str, Any] = {
            "query_prompt": query_prompt,
            "passage_prompt": passage_prompt,
            "truncate_dim": truncate_dim,
            "normalize": None if normalize else "false",
        }
        self._query_prompt, self._passage_prompt = query_prompt or "", passage_prompt or ""
        self._truncate_dim, self.normalized = truncate_dim, normalize
        self.name = spec_of("openai", model, **options)
        self._connect()
        length = len(self._request(["length"])[0])
        if truncate_dim is not None and not 1 <= truncate_dim <= length:
            raise ModelError(
                f"truncate_dim is {truncate_dim}, but the vectors of {model} have {length} numbers"
            )
        self.dimension = truncate_dim or length
        identity = json.dumps([self.model, self.dimension, options], sort_keys=True)
        self.fingerprint = "openai " + hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _connect(self) -> None:
        library = require("openai", "openai")
        self._library: Any = library
        self._client: Any = library.OpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY") or NO_KEY,
            max_retries=RETRIES,
            timeout=TIMEOUT_S,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Connections cannot be sent to another process: each has its own."""
        state = self.__dict__.copy()
        del state["_client"], state["_library"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Connect again."""
        self.__dict__.update(state)
        self._connect()

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed documents; blank texts get zero rows and are not sent.

        Raises:
            ModelError: If the server does not answer, or answers with something else.
            ValueError: If a text contains an unpaired surrogate.
        """
        return self._encode(texts, self._passage_prompt)

    def encode_queries(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed queries, with `query_prompt` in front of each."""
        return self._encode(texts, self._query_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Float[Array, "n d"]:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        batch: list[int] = []
        characters = 0
        for i, text in enumerate(texts):
            text.encode()  # an unpaired surrogate is a ValueError with its position
            if not text.strip():
                continue
            if batch and (len(batch) == BATCH_TEXTS or characters + len(text) > BATCH_CHARACTERS):
                rows[batch] = self._vectors([prompt + texts[j] for j in batch])
                batch, characters = [], 0
            batch.append(i)
            characters += len(text)
        if batch:
            rows[batch] = self._vectors([prompt + texts[j] for j in batch])
        return (
            normalize_rows(rows, dtype=np.float32, min_norm=MIN_NORM) if self.normalized else rows
        )

    def _vectors(self, texts: list[str]) -> Float[Array, "n d"]:
        vectors = self._request(texts)
        lengths = {len(vector) for vector in vectors}
        if any(length < self.dimension for length in lengths) or len(lengths) > 1:
            raise ModelError(
                f"{self.name} returned vectors of {sorted(lengths)} numbers: expected "
                f"{self.dimension}, as before"
            )
        rows = np.array(vectors, np.float32)[:, : self.dimension]
        if not np.isfinite(rows).all():
            text = texts[int(np.argmin(np.isfinite(rows).all(axis=1)))]
            raise ModelError(f"{self.name} returns non-finite numbers for the text {text[:40]!r}…")
        return rows

    def _request(self, texts: list[str]) -> list[list[float]]:
        """The vectors of one request, in the order of the texts."""
        try:
            answer = self._client.embeddings.create(
                model=self.model, input=texts, encoding_format="float"
            )
            entries = sorted(answer.data, key=lambda entry: entry.index)
            vectors = [list(map(float, entry.embedding)) for entry in entries]
        except self._library.APIStatusError as error:
            hint = ": set OPENAI_API_KEY" if error.status_code in (401, 403) else ""
            raise ModelError(
                f"{self.url} refused to embed with {self.model!r} (status {error.status_code}{hint}): "
                f"{_reason(error)}"
            ) from error
        except self._library.APIConnectionError as error:
            raise ModelError(
                f"{self.url} cannot be reached for embeddings ({_reason(error)}): start the server, "
                "or correct the address"
            ) from error
        except (self._library.OpenAIError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{self.url} did not answer with embeddings ({_reason(error)}): expected the "
                "interface of OpenAI, usually at an address that ends in /v1"
            ) from error
        if len(vectors) != len(texts):
            raise ModelError(f"{self.url} returned {len(vectors)} vectors for {len(texts)} texts")
        return vectors


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
