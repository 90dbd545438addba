"""Texts as a network reads them: padded batches of tokens, shortest texts first.

What the embedders made of a language model share: loading, cutting, batching, and what tells one
network from another.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import CPU_TOKENS, TOKENS
from whet.adapt.loading import DTYPES, load
from whet.embed.fingerprint import digest
from whet.errors import ModelError
from whet.maths.arrays import Array, as_count

TEXTS = 32  # a batch
LONGEST = 2048  # tokens of a text that are read, unless asked: some models take a million, or any
UNBOUNDED = 10**9  # tokenizers without a limit say 10³⁰
PASSING = {"_commit_hash", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache"}
PASSING |= {"transformers_version", "whet_learning_rates"}  # of config.json: changes no vector


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts of similar length, filled up at the end."""

    rows: list[int]
    """Their places among the texts that were asked for."""
    tokens: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    """Where there is a token."""

    @property
    def lengths(self) -> list[int]:
        counts: list[int] = self.mask.sum(1).tolist()
        return counts


class Reader:
    """A Hugging Face network in evaluation mode, its weights fixed, with its tokenizer."""

    def __init__(
        self,
        model: str,
        kind: Literal["AutoModel", "AutoModelForCausalLM"],
        *,
        special: bool,
        dtype: str,
        context: int | None,
        device: str | None,
    ) -> None:
        """Load `model`: bundled, a folder or a hub id; by default onto a GPU if there is one.

        Args:
            model: Its name.
            kind: The class that loads it.
            special: Whether its tokenizer adds special tokens and reads them out of texts.
            dtype: Precision of its weights.
            context: Tokens of a text that are read, by default at most 2,048.
            device: Where it runs.

        Raises:
            ModelError: If it cannot be loaded, or takes fewer than `context` tokens.
            ValueError: If `dtype` is unknown or `context` < 1.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
        loaded = load(model, kind, device=device, dtype=DTYPES[dtype])
        self.tokenizer, self._config = loaded.tokenizer, loaded.config
        self.network: Any = loaded.network.requires_grad_(False)
        self.network.config.use_cache = False  # keys and values are for generation
        self.model = model
        self._special = special
        most = _most(self.network.config, self.tokenizer)
        self.context = min(most, LONGEST) if context is None else as_count(context, "context")
        if self.context > most:
            raise ModelError(f"context is {context}, but {model} takes {most} tokens: lower it")

    def fingerprint(self, **options: object) -> str:
        """Differs where the weights, the configuration, the vocabulary or an option differ."""
        told = {key: value for key, value in self._config.items() if key not in PASSING}
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        weights = digest(dict(self.network.named_parameters()))
        said = [told, vocabulary, weights, self.context, options]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]

    def encode(
        self,
        texts: Sequence[str],
        dimension: int,
        embed: Callable[[Batch], Float[Tensor, "b d"]],
        *,
        normalize: bool,
        tokens: int | None = None,
    ) -> Float[Array, "n d"]:
        """A row a text by `embed`, which gets batches of `tokens`, or of one text, at most.

        Unless given, as many tokens as suit the device. Texts without one give zero rows.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text holds half of a surrogate pair.
        """
        most = tokens or (CPU_TOKENS if self.network.device.type == "cpu" else TOKENS)
        rows = np.zeros((len(texts), dimension), np.float32)
        for batch in self._batches(texts, most):
            made = embed(batch).float()
            finite = made.isfinite().all(1).tolist()
            if not all(finite):
                text = texts[batch.rows[finite.index(False)]]
                raise ModelError(
                    f"{self.model} makes numbers that are not finite of the text {text[:40]!r}…: "
                    "load it as fp32, or leave that text out"
                )
            if normalize:
                made = functional.normalize(made, dim=1)
            rows[batch.rows] = made.cpu().numpy()
        return rows

    def _batches(self, texts: Sequence[str], most: int) -> Iterator[Batch]:
        tokens = self._tokens(texts)
        order = sorted((i for i, ids in enumerate(tokens) if ids), key=lambda i: len(tokens[i]))
        start = 0
        while start < len(order):
            stop = start + 1
            while (
                stop < min(len(order), start + TEXTS)
                and (stop + 1 - start) * len(tokens[order[stop]]) <= most
            ):
                stop += 1
            yield self._batch(order[start:stop], tokens)
            start = stop

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in texts]
        told = [i for i, text in enumerate(texts) if text.strip()]
        if not told:
            return tokens
        for i in told:
            texts[i].encode()  # half of a surrogate pair is a ValueError with its place
        made = self.tokenizer(
            [texts[i] for i in told],
            truncation=True,
            max_length=self.context,
            add_special_tokens=self._special,
            split_special_tokens=not self._special,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for i, ids in zip(told, made, strict=True):
            tokens[i] = ids
        return tokens

    def _batch(self, rows: list[int], tokens: list[list[int]]) -> Batch:
        longest = max(len(tokens[i]) for i in rows)
        padded = torch.tensor([tokens[i] + [0] * (longest - len(tokens[i])) for i in rows])
        lengths = torch.tensor([len(tokens[i]) for i in rows])
        mask = torch.arange(longest)[None] < lengths[:, None]
        device = self.network.device
        return Batch(rows, padded.to(device), mask.to(device))


def named(kind: str, model: str, **options: object) -> str:
    """An embedder's name: what `--embedder` calls it, with the options that are not None."""
    given = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
    return f"{kind}:{model}" + (f"@{given}" if given else "")


def _most(config: Any, tokenizer: Any) -> int:
    """The most tokens that both the model and its tokenizer take."""
    limit = getattr(config, "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, UNBOUNDED if limit is None else limit, UNBOUNDED))
