"""Embedders from sentence-transformers."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from whet.embed.embedder import spec_of
from whet.embed.lsa import MIN_NORM
from whet.embed.model_files import model_folder, modules_fingerprint, resolve
from whet.errors import ModelError, require
from whet.hub import is_cut_off
from whet.maths.arrays import Array, normalize_rows

UNBOUNDED = 10**9  # tokens: more means no limit
CPU_BATCH, GPU_BATCH = 8, 32  # texts; more of some hundred tokens would not fit a CPU's caches


def _refuse_custom_modules(folder: Path) -> None:
    """Check that a folder names no classes but the library's: older versions would run its code.

    Raises:
        ModelError: If it does.
    """
    for name in ("modules.json", "*/router_config.json", "router_config.json"):
        for path in folder.glob(name) if folder.is_dir() else ():
            content = json.loads(path.read_text("utf-8"))
            modules = content if isinstance(content, list) else [content]
            types = [str(module.get("type", "")) for module in modules if "type" in module]
            types += [str(t) for module in modules for t in dict(module.get("types", {})).values()]
            for type_ in types:
                if not type_.startswith("sentence_transformers."):
                    raise ModelError(
                        f"sentence encoder {str(folder)!r} needs code of its own ({type_}), which "
                        "whet does not run: choose a model of sentence-transformers' own modules"
                    )


class SentenceEncoder:
    """A sentence-transformers model, by name or folder (`st:NAME`); `minilm` is all-MiniLM-L6-v2."""

    def __init__(
        self,
        model: str,
        *,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
        device: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
    ) -> None:
        """Load `model`, by default onto a GPU if there is one.

        Args:
            model: `minilm`, name or folder; also of a static model of model2vec.
            query_prompt: Text in front of every query, or the name of one of the model's own
                prompts; by default what the model itself puts in front of any text.
            passage_prompt: The same for documents.
            truncate_dim: Numbers of a vector that are used, for models trained for that
                (Matryoshka); by default all.
            normalize: Whether vectors are scaled to length 1.
            device: By default a GPU if there is one.
            trust_remote_code: Run the code that the model brings.
            local_files_only: Never download.

        Raises:
            ModelError: If it cannot be loaded, needs code of its own, or its vectors are shorter
                than `truncate_dim`.
        """
        library = require("sentence_transformers", "embed")
        from whet.adapt.checkpoints.gguf import LOADING
        from whet.adapt.checkpoints.loading import weights_fingerprint
        from whet.adapt.checkpoints.processor import default_device

        located = resolve(model)
        if not trust_remote_code:
            _refuse_custom_modules(Path(located))
        require("transformers", "embed").utils.logging.disable_progress_bar()  # of loading weights
        try:
            with LOADING:
                self._model = library.SentenceTransformer(
                    located,
                    device=device or default_device(),
                    trust_remote_code=trust_remote_code,
                    local_files_only=local_files_only or is_cut_off(located),
                )
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"sentence encoder {model!r} cannot be loaded: {reason}") from error
        options = {
            "query_prompt": query_prompt,
            "passage_prompt": passage_prompt,
            "truncate_dim": truncate_dim,
            "normalize": None if normalize else "false",
        }
        self.name = spec_of("st", model, **options)
        self.normalized = normalize
        self._truncate_dim = truncate_dim
        self._query_prompt, self._passage_prompt = (
            self._text(query_prompt),
            self._text(passage_prompt),
        )
        self._batch = CPU_BATCH if self._model.device.type == "cpu" else GPU_BATCH
        length = int(self._model.encode(["length"], show_progress_bar=False).shape[1])
        if truncate_dim is not None and not 1 <= truncate_dim <= length:
            raise ModelError(
                f"truncate_dim is {truncate_dim}, but the vectors of {model} have {length} numbers"
            )
        self.dimension = truncate_dim or length
        weights = weights_fingerprint(self._model.state_dict())
        former = f"st {weights} {self._model.max_seq_length} {normalize}"
        self.fingerprint = f"{former} {modules_fingerprint(model_folder(located))}"
        self.former_fingerprints: tuple[str, ...] = (former,)
        changes = [self._query_prompt, self._passage_prompt, truncate_dim]
        if changes != [None, None, None]:
            self.fingerprint += f" {changes}"
            self.former_fingerprints = ()
        limit = self._model.max_seq_length
        self.max_tokens = None if limit is None or limit >= UNBOUNDED else int(limit)
        """Tokens of a text that are read, special ones included; None for all."""

    def _text(self, prompt: str | None) -> str | None:
        """The text of a prompt that may be the name of one of the model's."""
        return prompt and self._model.prompts.get(prompt, prompt)

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts have more than `max_tokens` tokens. Tokenizes the long ones."""
        if self.max_tokens is None:
            return 0
        before = self._passage_prompt or ""
        texts = [before + text for text in texts]
        long = [text for text in texts if len(text.encode()) > self.max_tokens - 2]
        tokens = (
            self._model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
            if long
            else []
        )
        return sum(len(ids) > self.max_tokens for ids in tokens)

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed documents; see `encode_queries` for queries."""
        return self._encode(texts, self._passage_prompt)

    def encode_queries(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed queries, with `query_prompt` in front of each."""
        return self._encode(texts, self._query_prompt)

    def _encode(self, texts: Sequence[str], prompt: str | None) -> Float[Array, "n d"]:
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
                [texts[i] for i in not_blank],
                prompt=prompt,
                batch_size=self._batch,
                show_progress_bar=False,
                truncate_dim=self._truncate_dim,
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
