"""Loading of Hugging Face networks: bundled, from a folder, a GGUF file, Ollama, or the hub."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional

from whet.adapt.config import PRECISIONS
from whet.adapt.gguf import INSTALL, PACKAGED, is_converted, resolve
from whet.errors import ModelError, require

LOGGER = logging.getLogger(__name__)
SAMPLED = 64  # numbers of each tensor in a fingerprint
BUNDLED = ("whet-nano", "whet-pico")
NAMED = (*BUNDLED, *PACKAGED)
DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True))
SHOWN_KEYS = 4  # names of missing weights in a message
UNUSED = "pooler."
KINDS = {"AutoModel": "a language model", "AutoModelForCausalLM": "a causal language model"}


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A network in evaluation mode, and its tokenizer."""

    network: Any
    tokenizer: Any
    config: Mapping[str, Any]
    """The network's configuration as it is in its file, without defaults."""
    source: str
    """What transformers loaded: a folder, or an id of the hub."""


def load(
    name: str | Path,
    kind: Literal["AutoModel", "AutoModelForCausalLM"],
    *,
    device: str | None,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> Loaded:
    """Load `name` with the class `kind` of transformers; by default on a GPU if there is one.

    Raises:
        ModelError: If there is no such model or device, the class cannot load the model, or the
            checkpoint lacks weights that the network needs.
    """
    transformers = require("transformers", "adapt")
    device = _check_device(device)
    transformers.utils.logging.disable_progress_bar()  # whet shows its own
    source, local = source_of(name), {"local_files_only": local_files_only}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, **local
        )
        config, _ = transformers.PretrainedConfig.get_config_dict(source, **local)
        network, info = getattr(transformers, kind).from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **local,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {str(name)!r} needs code of its own, which whet does not run: choose a "
                "model that transformers implements"
            ) from error
        if str(name) in PACKAGED:
            raise ModelError(
                f"model {name} is not installed, and {source} cannot be loaded from the hub: "
                f"{INSTALL} ({_reason(error)})"
            ) from error
        if is_converted(source):
            raise ModelError(
                f"the converted weights of {str(name)!r} cannot be read ({_reason(error)}): remove "
                f"{source}, so that they are converted again"
            ) from error
        raise ModelError(
            f"cannot load model {str(name)!r}: expected {', '.join(NAMED)}, ollama:NAME, a .gguf "
            f"file, a folder with {KINDS[kind]}, or an id of the Hugging Face hub ({_reason(error)})"
        ) from error
    _check_complete(str(name), kind, config, info)
    network = network.to(device)
    _fuse_gelu(network)
    return Loaded(network.eval(), tokenizer, config, source)


def source_of(name: str | Path) -> str:
    """What transformers loads `name` from: a folder, which a bundled or converted model has, too,
    or the hub id `name` itself."""
    bundled = str(name) in BUNDLED
    return str(files("whet") / "assets" / str(name)) if bundled else resolve(str(name))


def start_token(tokenizer: Any, name: str) -> int:
    """The token in front of every text.

    Raises:
        ModelError: If the tokenizer has no such token.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ModelError(f"the tokenizer of {name} has neither a BOS nor an EOS token")


def weights_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """32 hex digits that identify named tensors, on any device.

    Hashes names, shapes and 64 evenly spaced numbers of each tensor. So it reads next to nothing of
    a large model, and does not notice a change between those numbers.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        if count := len(flat):
            places = np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64)
            digest.update(flat[places].detach().float().cpu().numpy().astype("<f4").data)
    return digest.hexdigest()[:32]


def _check_complete(
    name: str, kind: str, config: Mapping[str, Any], info: Mapping[str, Any]
) -> None:
    """Raises ModelError if weights of the network are not those of the checkpoint.

    transformers fills them with random numbers and only logs it. Tied weights do not count as
    missing, nor does the pooler of an encoder, which no embedding uses.
    """
    absent = {key for key in info["missing_keys"] if not (kind == "AutoModel" and UNUSED in key)}
    absent |= {entry[0] for entry in info["mismatched_keys"]}
    if absent:
        shown = ", ".join(sorted(absent)[:SHOWN_KEYS])
        more = f" and {len(absent) - SHOWN_KEYS} more" if len(absent) > SHOWN_KEYS else ""
        raise ModelError(
            f"the checkpoint of {name!r} lacks weights of {KINDS[kind]}: {shown}{more}. They would "
            "be random: load a complete checkpoint"
        )
    if kind == "AutoModelForCausalLM" and config.get("is_encoder_decoder"):
        raise ModelError(
            f"model {name!r} is an encoder-decoder: expected {KINDS[kind]}, which has only a decoder"
        )


@cache
def default_device() -> str:
    """`cuda` or `mps` if torch finds such a GPU, otherwise `cpu`.

    `mps` (Apple) is used only if it computes the loss and the gradients of a small network as a CPU
    does, since some versions of torch and macOS do not.
    """
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        if computes_correctly("mps"):
            return "mps"
        LOGGER.warning("the GPU (mps) does not compute as the CPU does: using the CPU")
    return "cpu"


def computes_correctly(device: str) -> bool:
    """Whether `device` gives the loss and the gradients of a small causal network that a CPU gives."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((32, 16), (16, 48), (16, 32))  # embedding, projection to q, k and v, head
    weights = [torch.randn(shape, generator=generator) / 4 for shape in shapes]
    tokens = torch.randint(32, (2, 12), generator=generator)
    try:
        results = []
        for where in ("cpu", device):
            leaves = [w.detach().clone().to(where).requires_grad_() for w in weights]
            embedding, projection, head = leaves
            hidden = functional.layer_norm(embedding[tokens.to(where)], (16,))
            q, k, v = (hidden @ projection).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            logits = functional.gelu(mixed.transpose(1, 2).flatten(2)) @ head
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(where)
            )
            loss.backward()
            results.append([loss.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])  # type: ignore[union-attr]
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-4)
        for one, other in zip(*results, strict=True)
    )


def _check_device(device: str | None) -> str:
    if device is None:
        return default_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} cannot be used: expected cpu, or cuda or mps if torch finds a GPU "
            f"({_reason(error)})"
        ) from error
    return device


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _fuse_gelu(network: Any) -> None:
    """Replace GPT-2's GELU of eight passes over its input by an equal one of a single pass."""
    from transformers import activations

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, activations.NewGELUActivation):
                setattr(module, name, activations.GELUTanh())


def read_max_length(config: Any, name: str) -> int:
    """Length of the context in tokens, from the configuration of the model `name`."""
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise ModelError(
            f"the configuration of {name} has no max_position_embeddings: expected a model with "
            "a bounded context"
        )
    return int(length)


def read_logit_scale(config: Any) -> float:
    """Factor of the logits: Cohere's `logit_scale`, or 1 / `logits_scaling` of Granite."""
    divisor = getattr(config, "logits_scaling", None)
    return float(1 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0)


def read_eos_token_ids(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's and those of the generation configuration."""
    ids = [tokenizer.eos_token_id]
    if hf_model.generation_config is not None:
        configured = hf_model.generation_config.eos_token_id
        ids += configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in ids if token is not None)
