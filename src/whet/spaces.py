"""Data spaces by name, made, opened and asked: a prompt's way as far as it needs no model."""

from pathlib import Path

from whet.data.documents import try_documents
from whet.data.filters import as_filter
from whet.embed.registry import get_embedder, model_of
from whet.errors import EmbedderMismatchError, SpaceError
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.select.registry import selector
from whet.space.ray.cluster import SCHEME, find
from whet.space.retrieve import Retrieval, Retriever
from whet.space.space import LOADED, DataSpace
from whet.space.store.manifest import FILE, Labels, read_manifest
from whet.space.tuning import GRID, calibrate


def retrieve(
    space: DataSpace, prompt: str, options: SelectionConfig | ResolvedSelection
) -> Retrieval:
    """What an engine with `options` would be sharpened on for `prompt`; needs no model.

    Raises:
        ValueError: If the prompt is empty, or shares nothing with the space.
    """
    if isinstance(options, SelectionConfig):
        options = calibrated(space, options)
    return Retriever(space, options).select(prompt)


def calibrated(
    space: DataSpace, options: SelectionConfig, *, prompts: int = 256, progress: bool = False
) -> ResolvedSelection:
    """`options` with numbers for whatever is `auto`: see `whet.space.tuning`.

    Nothing is stored: who asks often should keep what this gives. An engine does it once.

    Raises:
        ValueError: If too few documents of the data space can be held out.
    """
    if not options.has_auto:
        return ResolvedSelection.of(options)
    where = as_filter(options.where)
    found = calibrate(
        space if where is None else space.filter(where),
        n=options.n,
        k=options.k,
        lams=GRID if options.lam == "auto" else [float(options.lam)],
        selector=selector(options.selector),
        prompts=prompts,
        progress=progress,
    )
    alpha = found.alpha if options.stop_alpha == "auto" else options.stop_alpha
    return ResolvedSelection.of(options, lam=found.lam, stop_alpha=alpha)


def build_space(
    source: str | Path,
    path: str | Path,
    embedder: str = "lsa",
    *,
    text_field: str = "text",
    chunks: str = "whole",
    labels: Labels | None = None,
    progress: bool = False,
    ray: str | None = None,
) -> DataSpace:
    """A data space of the texts of `source`; one that is there already gets what is new.

    One that was killed on the way goes on where it stopped. For `embedder` see `get_embedder`, for
    `text_field` and `chunks` `read_documents`, for `labels` docs/space.md.

    Raises:
        ValueError: If there is no such embedder, or no such rule of chunks.
        WhetError: If the source cannot be read, or `path` holds something else.
    """
    documents = try_documents(source, text_field=text_field, chunks=chunks)
    name = _told(source, text_field, chunks)
    if not (Path(path) / FILE).exists():
        made = get_embedder(embedder)
        return DataSpace.build(documents, path, made, progress, source=name, labels=labels, ray=ray)
    manifest = read_manifest(Path(path))
    made_by = manifest.embedder  # another model is refused before it is loaded
    same_model = model_of(made_by) == model_of(embedder)
    made = get_embedder(embedder) if same_model else None
    if made is not None and made.fingerprint != manifest.fingerprint:
        same_model = made.name == made_by  # of one name with other weights: `open` tells these
    if not same_model and made_by.partition(":")[0] not in ("lsa", *LOADED):
        raise EmbedderMismatchError(
            f"data space {path} was made by the Python embedder {made_by!r}: add to it in Python, "
            "with `DataSpace.open(path, embedder).add(documents)`, or choose another place"
        )
    if not same_model:
        raise EmbedderMismatchError(
            f"data space {path} was made by embedder {made_by}, not {embedder}: "
            f"add to it with `--embedder {made_by}`, or choose another place"
        )
    if labels not in (None, manifest.labels):
        raise SpaceError(
            f"data space {path} has labels {manifest.labels}, not {labels}: they are "
            "chosen when it is made"
        )
    return DataSpace.open(path, made).add(documents, progress, source=name, ray=ray)


def _told(source: str | Path, text_field: str, chunks: str) -> str:
    """By what an addition that was killed knows its source again, read in the same way.

    Nothing for stdin's, which is never the same.
    """
    if str(source) == "-":
        return ""
    place = str(Path(source).resolve()) if Path(source).exists() else str(source)
    field = "" if text_field == "text" else f" by {text_field}"
    return place + field + ("" if chunks == "whole" else f" in {chunks}")


def open_space(path: str | Path) -> DataSpace:
    """The data space at `path` with the embedder that made it, a language model's included.

    `ray:HOST:PORT/NAME` is one that a Ray cluster serves.

    Raises:
        SpaceError: If there is no whole data space at `path`.
    """
    served = str(path).startswith(SCHEME)
    manifest = find(str(path)).manifest if served else read_manifest(Path(path))
    kind = manifest.embedder.partition(":")[0]
    loaded = get_embedder(manifest.embedder) if kind in LOADED else None
    return DataSpace.open(path, loaded)
