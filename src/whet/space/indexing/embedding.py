"""Fitting `lsa` on the documents of an addition, and embedding its parts."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from whet.embed.embedder import Embedder
from whet.embed.lsa import LSA
from whet.errors import ModelError, SourceError
from whet.io import atomic_write, progress_bar
from whet.maths.arrays import Array
from whet.space.store.manifest import EMBEDDER_FOLDER, FAILED_FILE
from whet.space.store.sealing import label_of
from whet.space.store.segments.records import as_strings
from whet.space.store.segments.vectors import non_unit_rows, to_float16
from whet.space.store.staging import StagedTexts, Staging
from whet.space.store.writer import DiskWriter

LARGEST = 65_000.0  # of a number in float16


def embed_parts(
    staging: Staging, embedder: Embedder, *, ray: str | None = None, progress: bool = False
) -> None:
    """Embed the parts here or on a Ray cluster, and journal each one when it is finished."""
    embedded = [part for part in range(staging.parts) if staging.embedded(part)]
    results: Iterator[tuple[int, Float[Array, "n d"], dict[int, str]]]
    pending = ((part, as_strings(staging.rows(part)["text"])) for part in range(staging.parts)
               if not staging.embedded(part))  # fmt: skip
    if ray is None:
        results = (_embed_part(embedder, *item) for item in pending)
    else:
        from whet.space.ray.client import connect, map_unordered

        results = map_unordered(connect(ray), _embed_part, embedder, pending)
    total = sum(staging.count(part) for part in range(staging.parts))
    with progress_bar("embedding", total, show=progress) as advance:
        advance(sum(staging.count(part) for part in embedded))
        for part, vectors, failures in results:
            staging.embed(part, vectors, failures)
            advance(staging.count(part))


def _embed_part(
    embedder: Embedder, part: int, texts: list[str]
) -> tuple[int, Float[Array, "n d"], dict[int, str]]:
    return part, *_encode(embedder, texts)


def _encode(embedder: Embedder, texts: list[str]) -> tuple[Float[Array, "n d"], dict[int, str]]:
    """Vectors as stored, and an error message for each text whose row is NaN instead."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows, failures = _embed_or_bisect(embedder, [texts[i] for i in order])
    unit = is_normalized(embedder)
    odd = non_unit_rows(rows) if unit else np.flatnonzero(~(np.abs(rows) < LARGEST).all(axis=1))
    for i in odd.tolist():
        length = np.linalg.norm(rows[i])
        failures.setdefault(i, f"embedder {embedder.name} returned a vector of length {length}")
    rows[list(failures)] = 0
    stored = to_float16(rows, unit)
    stored[list(failures)] = np.nan
    vectors = np.empty_like(stored)
    vectors[order] = stored
    return vectors, {order[i]: reason for i, reason in failures.items()}


def _embed_or_bisect(
    embedder: Embedder, texts: list[str]
) -> tuple[Float[Array, "n d"], dict[int, str]]:
    """Embed the texts; if a batch fails, embed its halves to find the texts that fail."""
    try:
        rows = np.array(embedder.encode(texts), dtype=np.float32)
    except (ValueError, ModelError) as error:
        if len(texts) == 1:
            return np.full((1, embedder.dimension), np.nan, np.float32), {0: str(error)}
        middle = len(texts) // 2
        left, errors = _embed_or_bisect(embedder, texts[:middle])
        right, more = _embed_or_bisect(embedder, texts[middle:])
        return np.concatenate([left, right]), errors | {i + middle: e for i, e in more.items()}
    if rows.shape != (len(texts), embedder.dimension):
        raise ModelError(
            f"embedder {embedder.name} returned vectors of shape {rows.shape} for {len(texts)} "
            f"texts: expected dimension {embedder.dimension}"
        )
    return rows, {}


def is_normalized(embedder: Embedder) -> bool:
    """Whether the vectors have length 1 or 0, which is the default for embedders."""
    return bool(getattr(embedder, "normalized", True))


def fit_lsa(writer: DiskWriter, staging: Staging, progress: bool) -> LSA:
    """The data space's own embedder, fitted on its public documents."""
    final = writer.path / EMBEDDER_FOLDER
    if final.exists():  # the writer was killed just before it finished
        return LSA.load(final)
    folder = staging.folder / EMBEDDER_FOLDER
    if not folder.exists():
        labels = writer.manifest.labels
        is_public = None if labels is None else lambda meta: label_of(meta, labels) == labels.public
        texts = StagedTexts(staging, is_public)
        if not staging.parts:
            raise no_documents(list(staging.failures(FAILED_FILE)))
        if labels is not None and not len(texts):
            raise SourceError(
                f"no document to fit lsa on: none has field {labels.field!r} with the public value "
                f"{labels.public!r}. Correct these, or choose a pretrained embedder (st:NAME)"
            )
        with progress_bar("fitting lsa", None, show=progress), atomic_write(folder) as new:
            LSA.fit(texts).save(new)
            staging.record(EMBEDDER_FOLDER, new)
    return LSA.load(folder)


def no_documents(failures: list[dict[str, str]]) -> SourceError:
    """The error about an addition of which no document can be stored."""
    others = f", and {len(failures) - 1:,} more" if len(failures) > 1 else ""
    reason = f" ({failures[0]['reason']}{others})" if failures else ""
    return SourceError(f"no documents: a data space needs at least one{reason}")
