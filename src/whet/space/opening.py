"""Opening the store that a path or address refers to, and the embedder that belongs to it.

The module of an address's scheme is imported only when such an address is opened, so data spaces on
disk do not depend on Ray or Milvus. To add a kind of store, write a module with a function
`open_reader(address, *, partial)` that returns a `SpaceReader`, and list it in `OPENERS`.
"""

import importlib
import logging
import os
from pathlib import Path, PureWindowsPath
from typing import Protocol, cast
from urllib.parse import urlsplit

from whet.embed.embedder import Embedder, check_embedder, has_fingerprint
from whet.embed.lsa import LSA
from whet.embed.model_files import PACKAGED
from whet.embed.registry import LOADABLE, base_spec, get_embedder, is_hub_id, stored_options
from whet.errors import EmbedderMismatchError, ModelError, SpaceError
from whet.space.store.manifest import Labels, Manifest, read_manifest
from whet.space.store.opening import ManifestReplaced
from whet.space.store.protocol import Reader
from whet.space.store.reader import DiskReader

LOGGER = logging.getLogger(__name__)
ALLOW_DOWNLOAD = "WHET_ALLOW_DOWNLOAD"
"""Environment variable: 1 lets data spaces name models that are then downloaded."""
OPENERS = {"ray": "whet.space.ray.cluster", "milvus": "whet.space.milvus.reader"}


class SpaceReader(Reader, Protocol):
    """A reader of a store that also describes the data space."""

    @property
    def path(self) -> Path:
        """Folder or address of the store."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Embedder, labels and version of the store."""
        ...

    def load_lsa(self) -> LSA:
        """The `lsa` embedder that was fitted on the store's documents."""
        ...


def is_folder(path: str | Path) -> bool:
    """Whether `path` refers to a folder, rather than to a Ray cluster or Milvus.

    >>> is_folder("docs.whet"), is_folder("ray:10.0.0.1:6379/docs")
    (True, False)
    """
    return not str(path).startswith(tuple(f"{scheme}:" for scheme in OPENERS))


def open_store(path: str | Path, *, partial: bool = False) -> SpaceReader:
    """Open the store in a folder or at an address.

    Args:
        path: A folder, `ray:HOST:PORT/NAME` or `milvus:URI#COLLECTION`.
        partial: Skip broken segments, or shards that do not respond, instead of raising.

    Raises:
        SpaceError: If the data space is missing, or its files are broken.
        ValueError: If the address is invalid.
    """
    if is_folder(path):
        return DiskReader.open(path, partial=partial)
    module = importlib.import_module(OPENERS[str(path).partition(":")[0]])
    return cast(SpaceReader, module.open_reader(str(path), partial=partial))


def open_with_embedder(
    path: str | Path, embedder: str | Embedder | None, *, partial: bool = False
) -> tuple[SpaceReader, Embedder]:
    """Open a store, and its embedder unless that is given as an object.

    Raises:
        EmbedderMismatchError: If another embedder made the data space.
        ModelError, SpaceError, ValueError: See `open_store` and `load_embedder`.
    """
    if embedder is not None:
        check_embedder(embedder)
    while True:
        store = open_store(path, partial=partial)
        try:
            loaded = (
                load_embedder(store, embedder)
                if embedder is None or isinstance(embedder, str)
                else embedder
            )
        except ManifestReplaced:  # fitted again in the meantime
            store.close()
            continue
        _check_made_by(loaded, store)
        return store, loaded


def _check_made_by(embedder: Embedder, store: SpaceReader) -> None:
    """Raises EmbedderMismatchError unless `embedder` made the vectors of `store`."""
    manifest = store.manifest
    if embedder.dimension != manifest.dimension or not has_fingerprint(
        embedder, manifest.fingerprint
    ):
        raise EmbedderMismatchError(
            f"data space {store.path} holds vectors of dimension {manifest.dimension} by "
            f"{manifest.embedder or 'an embedder'}, but this {embedder.name} has dimension "
            f"{embedder.dimension}, or other weights, configuration or tokenizer: restore its "
            f"files, or rebuild the data space with `whet index --embedder {embedder.name}`"
        )


def load_embedder(store: SpaceReader, spec: str | None) -> Embedder:
    """The embedder that made a data space, which `spec` must agree with.

    Raises:
        EmbedderMismatchError: If it does not.
        SpaceError: If the embedder is a Python object, or its files are broken.
    """
    path, stored = store.path, store.manifest.embedder
    name = stored or spec or ""
    if spec is not None and base_spec(spec) != base_spec(name):
        raise EmbedderMismatchError(
            f"data space {path} was made by embedder {name}, not {spec}: open it without an "
            "embedder, or rebuild it"
        )
    if not name:
        raise SpaceError(
            f"data space {path} was written by an older version of whet, which did not store its "
            "embedder: open it in Python with `DataSpace.open(path, embedder)`, or copy it again"
        )
    if name == LSA.name:
        return store.load_lsa()
    if name.partition(":")[0] not in LOADABLE:
        raise SpaceError(
            f"data space {path} was made by the Python embedder {name!r}: open it in Python with "
            "`DataSpace.open(path, embedder)`"
        )
    LOGGER.info("embedder: %s", name)
    embedder = get_embedder(spec) if spec is not None else _load_stored(path, name)
    assert embedder is not None
    return embedder


def _load_stored(path: Path, spec: str) -> Embedder | None:
    """The embedder that a data space names; without the user's word, nothing is downloaded.

    Raises:
        ModelError: If its model cannot be loaded, or is not on this machine.
        SpaceError: If it names a relative path, a server, or options that only a user may set.
    """
    if spec.startswith("openai:"):
        _refuse_unknown_server(path, spec)
        return get_embedder(spec)
    if options := stored_options(spec):
        raise SpaceError(
            f"data space {path} names the embedder {spec} with {options[0]}, which a data space "
            f"cannot set: if you trust it, name it, as `DataSpace.open(path, {spec!r})`"
        )
    _refuse_relative(path, spec)
    if not is_hub_id(spec) or os.environ.get(ALLOW_DOWNLOAD) == "1":
        return get_embedder(spec)
    try:
        return get_embedder(spec, local_files_only=True)
    except ModelError as error:
        raise ModelError(
            f"data space {path} names the embedder {spec}, which cannot be loaded from the local "
            "cache of Hugging Face models, and opening a data space downloads nothing. If you trust "
            f"that model, name it, as `DataSpace.open(path, {spec!r})`, or set {ALLOW_DOWNLOAD}=1 "
            f"({error})"
        ) from error


def _refuse_unknown_server(path: Path, spec: str) -> None:
    """Check that prompts and an API key are sent to nobody whom only the data space names.

    Raises:
        SpaceError: If the server is neither on this machine, nor OpenAI's, nor OPENAI_BASE_URL.
    """
    host = urlsplit(spec.partition(":")[2]).hostname
    trusted = {"localhost", "127.0.0.1", "::1", "api.openai.com"}
    trusted.add(urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname or "")
    if host not in trusted:
        raise SpaceError(
            f"data space {path} names the embedder {spec}, a server that would receive your prompts: "
            f"if you trust it, name it, as `DataSpace.open(path, {spec!r})`, or set OPENAI_BASE_URL"
        )


def _refuse_relative(path: Path, spec: str) -> None:
    """Check that a stored specification does not depend on the current folder.

    whet stores the absolute paths of local models. A relative one could refer to a folder that came
    with the data space.

    Raises:
        SpaceError: If it names a relative path.
    """
    model = spec.partition(":")[2].partition("@")[0]
    bundled = model in ("whet-nano", "whet-pico", *PACKAGED)
    relative = not Path(model).is_absolute() and not bundled
    if relative and PureWindowsPath(model).is_absolute():
        raise SpaceError(
            f"data space {path} names the embedder {spec} by a path of Windows: load the same model "
            "from its folder here, and pass it to `DataSpace.open(path, embedder)`"
        )
    if relative and (model.startswith((".", "~")) or Path(model).exists() or model.count("/") > 1):
        raise SpaceError(
            f"data space {path} names the embedder {spec} by a path relative to the current folder, "
            f"which is not loaded: if you trust it, name it, as `DataSpace.open(path, {spec!r})`"
        )


def embedder_for_adding(
    path: Path, embedder: str | Embedder | None, labels: Labels | None
) -> Embedder | None:
    """The embedder to add to the data space at `path` with; None for the one that it stores.

    A model other than that of the data space is rejected before it is loaded.

    Raises:
        EmbedderMismatchError: If another embedder made the data space.
        SpaceError: If the data space has other `labels`, or cannot be read.
    """
    manifest = read_manifest(path)
    made_by = manifest.embedder
    can_load, loaded = made_by.partition(":")[0] in ("lsa", *LOADABLE), None
    if embedder is None:
        matches = can_load
    elif isinstance(embedder, str):
        matches = base_spec(made_by) == base_spec(embedder)
        loaded = get_embedder(embedder) if matches else None
    else:
        matches, loaded = True, embedder
    if loaded is not None and not has_fingerprint(loaded, manifest.fingerprint):
        matches = loaded.name == made_by  # same name, other weights: `open` explains that
    if not matches and not can_load:
        raise EmbedderMismatchError(
            f"data space {path} was made by the Python embedder {made_by!r}: add to it in Python, "
            "with `DataSpace.build(docs, path, embedder)`, or choose another path"
        )
    if not matches and embedder is not None:
        name = embedder if isinstance(embedder, str) else embedder.name
        raise EmbedderMismatchError(
            f"data space {path} was made by embedder {made_by}, not {name}: "
            f"add to it with embedder {made_by}, or choose another path"
        )
    if labels not in (None, manifest.labels):
        raise SpaceError(
            f"data space {path} has labels {manifest.labels}, not {labels}: labels are "
            "chosen when a data space is created"
        )
    return loaded
