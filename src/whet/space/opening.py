"""Which store a path refers to, and which embedder belongs to it."""

from pathlib import Path

from whet.embed.embedder import Embedder
from whet.embed.lsa import LSA
from whet.embed.registry import LOADABLE, base_spec, get_embedder
from whet.errors import EmbedderMismatchError, SpaceError
from whet.space.milvus.reader import MilvusReader
from whet.space.ray.cluster import SCHEME as RAY
from whet.space.ray.cluster import Cluster, find
from whet.space.store.manifest import Labels, Manifest, read_manifest
from whet.space.store.protocol import Reader
from whet.space.store.reader import DiskReader
from whet.space.store.staging import EMBEDDER_FOLDER

MILVUS = "milvus:"


def is_folder(path: str | Path) -> bool:
    """Whether `path` refers to a folder, rather than to a Ray cluster or Milvus."""
    return not str(path).startswith((RAY, MILVUS))


def open_store(path: str | Path, *, partial: bool) -> tuple[Path, Reader, Manifest]:
    """The folder (of a served data space, that of the server), the store and its manifest.

    Raises:
        SpaceError: If the data space is missing, or its files are broken.
        ValueError: If a Milvus address has no collection.
    """
    if str(path).startswith(RAY):
        cluster = find(str(path), partial=partial)
        return cluster.opening.path, cluster, cluster.manifest
    if str(path).startswith(MILVUS):
        uri, _, collection = str(path).removeprefix(MILVUS).rpartition("#")
        if not uri:
            raise ValueError(f"path is {str(path)!r}: expected milvus:URI#COLLECTION")
        milvus = MilvusReader.open(uri, collection)
        manifest = Manifest(
            embedder="", fingerprint=milvus.fingerprint, dimension=milvus.dimension,
            version=milvus.version,
        )  # fmt: skip
        return Path(path), milvus, manifest
    reader = DiskReader.open(path, partial=partial)
    return Path(path), reader, reader.manifest


def load_embedder(path: Path, manifest: Manifest, store: Reader, spec: str | None) -> Embedder:
    """The embedder that made the data space at `path`, which `spec` must agree with.

    Raises:
        EmbedderMismatchError: If it does not.
        SpaceError: If the embedder is a Python object, or its files are broken.
    """
    name = manifest.embedder or spec or ""
    if spec is not None and base_spec(spec) != base_spec(name):
        raise EmbedderMismatchError(
            f"data space {path} was made by embedder {name}, not {spec}: open it without an "
            "embedder, or rebuild it"
        )
    if name == LSA.name and isinstance(store, Cluster):
        return store.lsa()
    if name == LSA.name and isinstance(store, DiskReader):
        return LSA.load(path / EMBEDDER_FOLDER)
    if name.partition(":")[0] not in LOADABLE:
        kind = f"the Python embedder {name!r}" if manifest.embedder else "an embedder"
        raise SpaceError(
            f"data space {path} was made by {kind}: open it in Python with "
            "`DataSpace.open(path, embedder)`"
        )
    embedder = get_embedder(name if spec is None else spec)
    assert embedder is not None
    return embedder


def embedder_for_adding(
    path: Path, embedder: str | Embedder, labels: Labels | None
) -> Embedder | None:
    """The embedder to add to the data space at `path` with; None if it is the space's own `lsa`.

    A model other than that of the data space is rejected before it is loaded.

    Raises:
        EmbedderMismatchError: If another embedder made the data space.
        SpaceError: If the data space has other `labels`, or cannot be read.
    """
    manifest = read_manifest(path)
    made_by = manifest.embedder
    if isinstance(embedder, str):
        matches = base_spec(made_by) == base_spec(embedder)
        loaded = get_embedder(embedder) if matches else None
    else:
        matches, loaded = True, embedder
    if loaded is not None and loaded.fingerprint != manifest.fingerprint:
        matches = loaded.name == made_by  # same name, other weights: `open` explains that
    if not matches and made_by.partition(":")[0] not in ("lsa", *LOADABLE):
        raise EmbedderMismatchError(
            f"data space {path} was made by the Python embedder {made_by!r}: add to it in Python, "
            "with `DataSpace.build(docs, path, embedder)`, or choose another path"
        )
    if not matches:
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
