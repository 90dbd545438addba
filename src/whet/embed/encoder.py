"""What embedders made from language models share: loading, truncation, batches, fingerprints."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whet.errors import require

require("torch", "adapt")

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import CPU_TOKENS, TOKENS
from whet.adapt.checkpoints.loading import DTYPES, load, weights_fingerprint
from whet.embed.model_files import model_folder, tokenizer_fingerprint
from whet.errors import ModelError
from whet.maths.arrays import Array, as_count

BATCH_SIZE = 32  # texts
LONGEST = 2048  # tokens of a text that are read by default: some models accept a million, or any
UNBOUNDED = 10**9  # tokenizers without a limit report 10³⁰
IGNORED = {"_commit_hash", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache"}
IGNORED |= {"transformers_version", "whet_learning_rates"}  # in config.json: change no vector


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBatch:
    """Token ids of texts of similar length, padded at the end."""

    rows: list[int]
    """Positions of the texts among those to embed."""
    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    """True where there is a token."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each text."""
        counts: list[int] = self.mask.sum(1).tolist()
        return counts


class TextEncoder:
    """A Hugging Face network with fixed weights, in evaluation mode, with its tokenizer."""

    def __init__(
        self,
        model: str,
        kind: Literal["AutoModel", "AutoModelForCausalLM"],
        *,
        add_special_tokens: bool,
        dtype: str,
        context: int | None,
        device: str | None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
    ) -> None:
        """Load `model`, by default onto a GPU if there is one.

        Args:
            model: Bundled name, folder or hub id.
            kind: The class of transformers that loads it.
            add_special_tokens: Whether the tokenizer adds special tokens, and recognizes their
                spelling in texts.
            dtype: Precision of the weights.
            context: Tokens of a text that are read, by default at most 2,048.
            device: Where the network runs.
            trust_remote_code: Run the code that the model brings.
            local_files_only: Never download.

        Raises:
            ModelError: If the model cannot be loaded, or accepts fewer than `context` tokens.
            ValueError: If `dtype` is unknown or `context` < 1.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
        loaded = load(
            model, kind, device=device, dtype=DTYPES[dtype],
            trust_remote_code=trust_remote_code, local_files_only=local_files_only,
        )  # fmt: skip
        self.tokenizer, self._config = loaded.tokenizer, loaded.config
        self.network: Any = loaded.network.requires_grad_(False)
        self.network.config.use_cache = False  # keys and values are for generation
        self.model, self._source = model, loaded.source
        self._add_special_tokens = add_special_tokens
        limit = _max_tokens(self.network.config, self.tokenizer)
        self.context = min(limit, LONGEST) if context is None else as_count(context, "context")
        if self.context > limit:
            raise ModelError(f"context is {context}, but {model} accepts {limit} tokens: lower it")

    def fingerprints(self, **options: object) -> tuple[str, str]:
        """A hash of weights, configuration, tokenizer and options, and that of older versions.

        Older versions did not look at the files of the tokenizer, only at its vocabulary.
        """
        config = {key: value for key, value in self._config.items() if key not in IGNORED}
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        weights = weights_fingerprint(dict(self.network.named_parameters()))
        parts = [config, vocabulary, weights, self.context, options]
        tokenizer = tokenizer_fingerprint(model_folder(self._source))
        return _digest([*parts, tokenizer]), _digest(parts)

    def encode(
        self,
        texts: Sequence[str],
        dimension: int,
        embed: Callable[[EncodedBatch], Float[Tensor, "b d"]],
        *,
        normalize: bool,
        batch_tokens: int | None = None,
    ) -> Float[Array, "n d"]:
        """One row per text; texts without a token get zero rows.

        Args:
            texts: Texts to embed.
            dimension: Length of a row.
            embed: Computes the rows of a batch.
            normalize: Whether rows are scaled to length 1.
            batch_tokens: Tokens per batch, unless a single text has more; by default as many as
                suit the device.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text contains an unpaired surrogate.
        """
        limit = batch_tokens or (CPU_TOKENS if self.network.device.type == "cpu" else TOKENS)
        rows = np.zeros((len(texts), dimension), np.float32)
        for batch in self._batches(texts, limit):
            vectors = embed(batch).float()
            finite = vectors.isfinite().all(1).tolist()
            if not all(finite):
                text = texts[batch.rows[finite.index(False)]]
                raise ModelError(
                    f"{self.model} returns non-finite numbers for the text {text[:40]!r}…: "
                    "load it as fp32, or remove that text"
                )
            if normalize:
                vectors = functional.normalize(vectors, dim=1)
            rows[batch.rows] = vectors.cpu().numpy()
        return rows

    def _batches(self, texts: Sequence[str], limit: int) -> Iterator[EncodedBatch]:
        """Batches of at most 32 texts and `limit` tokens, shortest texts first."""
        tokens = self._tokenize(texts)
        order = sorted((i for i, ids in enumerate(tokens) if ids), key=lambda i: len(tokens[i]))
        start = 0
        while start < len(order):
            stop = start + 1
            while (
                stop < min(len(order), start + BATCH_SIZE)
                and (stop + 1 - start) * len(tokens[order[stop]]) <= limit
            ):
                stop += 1
            yield self._batch(order[start:stop], tokens)
            start = stop

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts have more than `context` tokens. Tokenizes the long ones."""
        long = [text for text in texts if len(text.encode()) > self.context - 2]
        return sum(len(ids) > self.context for ids in self._tokenize(long, truncate=False))

    def _tokenize(self, texts: Sequence[str], *, truncate: bool = True) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in texts]
        not_blank = [i for i, text in enumerate(texts) if text.strip()]
        if not not_blank:
            return tokens
        for i in not_blank:
            texts[i].encode()  # an unpaired surrogate is a ValueError with its position
        token_ids = self.tokenizer(
            [texts[i] for i in not_blank],
            truncation=truncate,
            max_length=self.context if truncate else None,
            verbose=False,
            add_special_tokens=self._add_special_tokens,
            split_special_tokens=not self._add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for i, ids in zip(not_blank, token_ids, strict=True):
            tokens[i] = ids
        return tokens

    def _batch(self, rows: list[int], tokens: list[list[int]]) -> EncodedBatch:
        longest = max(len(tokens[i]) for i in rows)
        padded = torch.tensor([tokens[i] + [0] * (longest - len(tokens[i])) for i in rows])
        lengths = torch.tensor([len(tokens[i]) for i in rows])
        mask = torch.arange(longest)[None] < lengths[:, None]
        device = self.network.device
        return EncodedBatch(rows, padded.to(device), mask.to(device))


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _max_tokens(config: Any, tokenizer: Any) -> int:
    """The largest number of tokens that both the model and its tokenizer accept."""
    limit = getattr(config, "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, UNBOUNDED if limit is None else limit, UNBOUNDED))
