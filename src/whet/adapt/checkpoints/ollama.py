"""Models in the local store of Ollama: manifests name the blobs, one of which is a GGUF file."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from whet.errors import ModelError

OLLAMA = "ollama:"
REGISTRY = ("registry.ollama.ai", "library")
STORES = (Path("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))  # user, service
NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MODEL_LAYER = "application/vnd.ollama.image.model"
ADAPTER_LAYER = "application/vnd.ollama.image.adapter"


def ollama_file(name: str) -> Path:
    """The GGUF file of the model `ollama:NAME[:TAG]` in Ollama's local store.

    Raises:
        ModelError: If there is no store, no such model, or the model is not one GGUF file.
    """
    stores = [Path(value)] if (value := os.environ.get("OLLAMA_MODELS")) else list(STORES)
    stores = [store.expanduser() for store in stores]
    present = [store for store in stores if os.path.isdir(store / "manifests")]
    if not present:
        raise ModelError(
            f"{name}: there is no store of Ollama in {' or '.join(map(str, stores))}. Run "
            "`ollama pull NAME`, or set OLLAMA_MODELS to its folder of models"
        )
    wanted, _, tag = name.removeprefix(OLLAMA).partition(":")
    *prefix, last = wanted.split("/")
    prefix = [*REGISTRY[: max(0, 2 - len(prefix))], *prefix]
    parts = [*prefix, last, tag or "latest"]
    for store in present:
        manifest = store.joinpath("manifests", *parts)
        if all(map(NAME_PART.fullmatch, parts)) and os.path.isfile(manifest):
            return _model_layer(name, store, manifest)
    listed = ", ".join(sorted({each for store in present for each in _ollama_models(store)}))
    raise ModelError(
        f"Ollama has no model {':'.join(parts[-2:])}: expected {listed or 'none, as it is empty'}. "
        f"Run `ollama pull {wanted}`"
    )


def _model_layer(name: str, store: Path, manifest: Path) -> Path:
    try:
        layers = json.loads(manifest.read_text("utf-8"))["layers"]
        digests = {layer["mediaType"]: layer["digest"] for layer in layers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: {manifest} cannot be read ({error!r}): pull it again") from error
    if ADAPTER_LAYER in digests:
        raise ModelError(
            f"{name} consists of a model and an adapter, which whet does not join: choose a model "
            "without one"
        )
    digest = str(digests.get(MODEL_LAYER))
    if not DIGEST.fullmatch(digest):
        raise ModelError(f"{name} has no layer with a GGUF model: choose another model")
    blob = store / "blobs" / digest.replace(":", "-")
    if not blob.is_file():
        raise ModelError(f"{name}: {blob} is missing: run `ollama pull` again")
    return blob


def _ollama_models(store: Path) -> Iterator[str]:
    root = store / "manifests"
    for manifest in root.glob("*/*/*/*"):
        *prefix, name, tag = manifest.relative_to(root).parts
        common = 2 if tuple(prefix) == REGISTRY else int(prefix[0] == REGISTRY[0])
        yield f"{'/'.join([*prefix[common:], name])}:{tag}"
