"""LoRA adapters as GGUF files, for llama.cpp (`--lora`) and Ollama (`ADAPTER`).

Source: `convert_lora_to_gguf.py` of https://github.com/ggml-org/llama.cpp. A file has the names of
llama.cpp's tensors with `.lora_a` and `.lora_b`, and alpha in `adapter.lora.alpha`. llama.cpp stores
the query and key weights of Llama models with the two halves of each head interleaved, so the rows
of their B have that order, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.adapt.adapters import Adapter
from whet.adapt.checkpoints.gguf import resolve
from whet.adapt.checkpoints.loading import BUNDLED
from whet.adapt.tuners.lora import LORA_A, LORA_B
from whet.errors import ModelError, require
from whet.io import atomic_write
from whet.maths.arrays import Array


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp does with the models of one class of transformers."""

    name: str
    """llama.cpp's name."""
    interleaved: bool = False
    """Whether the rows of query and key heads are interleaved."""


ARCHITECTURES = {
    "GemmaForCausalLM": Architecture("gemma"),
    "Gemma2ForCausalLM": Architecture("gemma2"),
    "Gemma3ForCausalLM": Architecture("gemma3"),
    "GPT2LMHeadModel": Architecture("gpt2"),
    "LlamaForCausalLM": Architecture("llama", interleaved=True),
    "MistralForCausalLM": Architecture("llama", interleaved=True),
    "Phi3ForCausalLM": Architecture("phi3"),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
}
"""The models whose adapters can be written: those whose linear layers llama.cpp has one by one."""


def save_gguf(adapter: Adapter, path: str | Path, *, model: str | None = None) -> None:
    """Write a LoRA adapter as a GGUF file, which replaces `path` when it is complete.

    The numbers are float32, as in the adapter.

    Args:
        adapter: What `Engine.submit` has returned, or `Adapter.from_pretrained` has read.
        path: The file.
        model: Name or folder of the model that the adapter belongs to, of which only the
            configuration is read [default: the name in the adapter].

    Raises:
        ModelError: If the model's configuration cannot be read, llama.cpp has no such model, a
            layer of the adapter has no counterpart in it, or the file cannot be written.
        MissingDependencyError: If `gguf` is not installed.
    """
    gguf = require("gguf", "gguf")
    name = adapter.base_model if model is None else model
    config = _read_config(name)
    kind = (config.get("architectures") or ["unknown"])[0]
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"model {name} is a {kind}: adapters can be written as GGUF for "
            f"{', '.join(ARCHITECTURES)}; convert others with llama.cpp's convert_lora_to_gguf.py"
        )
    architecture = ARCHITECTURES[kind]
    tensors = _tensors(gguf, adapter, architecture, config)
    try:
        with atomic_write(Path(path)) as new:
            writer = gguf.GGUFWriter(new, architecture.name)
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_name(Path(path).stem)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.config.lora_alpha))
            for tensor_name, values in tensors.items():
                writer.add_tensor(tensor_name, values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except OSError as error:  # NumPy's short writes have no number
        raise ModelError(f"{path} cannot be written ({error}): nothing was changed") from error


def _tensors(
    gguf: Any, adapter: Adapter, architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, Float[Array, "m n"]]:
    """A and B of each layer by llama.cpp's names."""
    codes = {name: code for code, name in gguf.MODEL_ARCH_NAMES.items()}
    blocks = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    names = gguf.get_tensor_name_map(codes[architecture.name], blocks)
    tensors = {}
    for layer in sorted(name.removesuffix(LORA_A) for name in adapter.weights if LORA_A in name):
        target = names.get_name(layer)
        if target is None:
            raise ModelError(
                f"layer {layer} of the adapter has no counterpart in llama.cpp's {architecture.name} "
                f"with {blocks} blocks: name the model that the adapter was trained on"
            )
        lora_A, lora_B = (
            adapter.weights[layer + part].float().cpu().numpy() for part in (LORA_A, LORA_B)
        )
        if architecture.interleaved and layer.endswith(("q_proj", "k_proj")):
            lora_B = _interleaved(lora_B, _heads(config, layer))
        tensors[f"{target}.weight.lora_a"] = lora_A
        tensors[f"{target}.weight.lora_b"] = lora_B
    return tensors


def _interleaved(rows: Float[Array, "m n"], heads: int) -> Float[Array, "m n"]:
    """The rows of each head with its first and second half in turn."""
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _heads(config: Mapping[str, Any], layer: str) -> int:
    heads = int(config["num_attention_heads"])
    return heads if layer.endswith("q_proj") else int(config.get("num_key_value_heads") or heads)


def _read_config(name: str) -> Mapping[str, Any]:
    """The configuration of a model as it is in its file."""
    transformers = require("transformers", "adapt")
    source = str(files("whet") / "assets" / name) if name in BUNDLED else resolve(name)
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the configuration of model {name!r} cannot be read: expected a folder or an id of the "
            "hub; name the model with --model"
        ) from error
    if not config:
        raise ModelError(
            f"model {name!r} has no config.json: name a folder with --model, or an id of the hub"
        )
    return dict(config)
