"""Data spaces by name, made, opened and asked: a prompt's way as far as it needs no model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from whet.data.documents import try_documents
from whet.data.filters import Filter, as_filter
from whet.embed.registry import get_embedder, model_of
from whet.errors import EmbedderMismatchError, SpaceError
from whet.maths.arrays import as_count, as_positive
from whet.select.registry import selector
from whet.space.ray.cluster import SCHEME, find
from whet.space.retrieve import Retrieval, Retriever, check_candidates
from whet.space.space import LOADED, DataSpace
from whet.space.store.manifest import FILE, Labels, read_manifest
from whet.space.tuning import GRID, calibrate

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """How an engine selects; what it trains is an `Adaptation`."""

    selector: str = "sift"
    """Name of the selector: see `whet select --help`."""
    n: int = 50
    """Gradient steps, one on each selected text; with 0 an engine answers by the base model."""
    k: int | None = None
    """Candidates nearest the prompt, among which the selector chooses; none for 200, or all that
    there are."""
    lam: float | Auto = 0.01
    """λ', the variance of the observation noise: small for diversity, large for relevance; auto
    chooses it on held-out documents of the data space, as `calibrated` tells."""
    alpha: float | Auto | None = None
    """Stop before the first step m with σ_m > 1 / (α m); none takes all n steps, auto chooses."""
    where: Filter | str | None = None
    """What a candidate must pass, such as `set == "github" and year >= 2010`."""
    candidates: str = "vectors"
    """Who nominates them: vectors, bm25 (the prompt's words) or hybrid (both)."""

    def __post_init__(self) -> None:
        selector(self.selector)
        if self.n != 0:
            as_count(self.n, "n")
        if self.k is not None:
            as_count(self.k, "k")
        if self.lam != "auto":
            as_positive(self.lam, "lam")
        if self.alpha not in (None, "auto"):
            as_positive(self.alpha, "alpha")
        check_candidates(self.candidates)
        self.filter()

    def filter(self) -> Filter | None:
        """`where`, read."""
        return as_filter(self.where)


def retrieve(space: DataSpace, prompt: str, options: SelectionConfig) -> Retrieval:
    """What an engine with `options` would be sharpened on for `prompt`; needs no model.

    Raises:
        ValueError: If the prompt is empty, or shares nothing with the space.
    """
    options = calibrated(space, options)
    retriever = Retriever(
        space,
        selector=selector(options.selector),
        k=options.k,
        lam=float(options.lam),
        where=options.filter(),
        candidates=options.candidates,
    )
    found = retriever.select(prompt, options.n)
    return found if options.alpha is None else found.stop_at(float(options.alpha))


def calibrated(
    space: DataSpace, options: SelectionConfig, *, prompts: int = 256, progress: bool = False
) -> SelectionConfig:
    """`options` with numbers for whatever is `auto`: see `whet.space.tuning`.

    Nothing is stored: who asks often should keep what this gives. An engine does it once.

    Raises:
        ValueError: If too few documents of the data space can be held out.
    """
    if "auto" not in (options.lam, options.alpha):
        return options
    where = options.filter()
    found = calibrate(
        space if where is None else space.restricted(where),
        n=options.n,
        k=options.k,
        lams=GRID if options.lam == "auto" else [float(options.lam)],
        selector=selector(options.selector),
        prompts=prompts,
        progress=progress,
    )
    alpha = found.alpha if options.alpha == "auto" else options.alpha
    return replace(options, lam=found.lam, alpha=alpha)


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
            "with `DataSpace.open(path, embedder).extend(documents)`, or choose another place"
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
    return DataSpace.open(path, made).extend(documents, progress, source=name, ray=ray)


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
