"""Documents in, segments out: an addition is seen whole or not at all, and a killed one goes on.

Documents are spooled to parts, the parts embedded one after another, by length, and then sealed as
segments that the manifest names last. Each part is journaled, so what is done is not done again
(`staging`). Memory holds a part, 16 bytes a document, and what building an index takes.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.data.documents import Document, as_document, broken
from whet.embed.lsa import LSA, Embedder
from whet.errors import ModelError, SourceError
from whet.io import atomic_write, translate_disk_errors
from whet.maths.arrays import Array
from whet.space.progress import bar
from whet.space.ray.client import connected, spread
from whet.space.store.manifest import STAGING, Labels, Manifest
from whet.space.store.reader import Segments
from whet.space.store.records import as_strings
from whet.space.store.sealing import label_of, seal
from whet.space.store.staging import CHARACTERS, EMBEDDER, PART, Seen, Staging, Texts
from whet.space.store.vectors import as_stored, odd_lengths
from whet.space.store.writer import SegmentsWriter

FAILED = "failed.jsonl"
LARGEST = 65_000.0  # of a number in float16
Reading = Iterable[Document | SourceError | str | Mapping[str, Any]]
"""Documents, texts, or mappings as records of JSON are; an error stands for one that cannot be
read, where its source can go on."""


def build(
    documents: Reading,
    path: Path,
    embedder: Embedder | None,
    source: str,
    labels: Labels | None,
    progress: bool,
    ray: str | None = None,
) -> None:
    """Write a new data space; without an embedder, `lsa` is fitted on the documents.

    `ray` is the address of a cluster whose workers embed.
    """
    if embedder is None and labels is not None and labels.public is None:
        raise ValueError(
            "lsa would be fitted on texts that not everybody may read: name the label of the "
            "public ones (--public), or choose a pretrained embedder (st:NAME or hf:NAME)"
        )
    there = path.exists()
    new = Manifest(embedder="", fingerprint="", dimension=0, source=source, labels=labels)
    with SegmentsWriter(path, new=new) as writer:
        try:
            _add(writer, documents, embedder, source, progress, ray)
        except (ValueError, SourceError):
            if not there:
                os.rmdir(path)
            raise


def add(
    documents: Reading, path: Path, embedder: Embedder, source: str, progress: bool,
    ray: str | None = None,
) -> None:  # fmt: skip
    """Add what is new among `documents`; the data space's `lsa` stays as it is."""
    with SegmentsWriter(path) as writer:
        Segments.open(path, fingerprint=embedder.fingerprint).close()
        _add(writer, documents, embedder, source, progress, ray)


def _add(
    writer: SegmentsWriter, documents: Reading, embedder: Embedder | None, source: str,
    progress: bool, ray: str | None,
) -> None:  # fmt: skip
    """What is wrong with the call or the source leaves nothing; from all else it can go on."""
    name, fingerprint = (embedder.name, embedder.fingerprint) if embedder else (LSA.name, "")
    plan = {"source": source, "embedder": name, "fingerprint": fingerprint}
    with translate_disk_errors(writer.path):
        staging = Staging(writer.path / STAGING, plan)
        try:
            if not staging.read:
                _spool(documents, staging, writer, progress)
            used = embedder or _fitted(writer, staging, progress)
            _embed(staging, used, progress, ray)
            _commit(writer, staging, used, progress)
        except (ValueError, SourceError):
            staging.remove()
            raise
        staging.remove()


def _spool(documents: Reading, staging: Staging, writer: SegmentsWriter, progress: bool) -> None:
    """Write the documents that are new; going on, those of earlier parts are met again."""
    seen, now, first = Seen(), writer.snapshot(), writer.manifest.next
    for part in range(staging.parts):
        rows = staging.rows(part)
        for name, text in zip(*(as_strings(rows[c]) for c in ("id", "text")), strict=True):
            seen.same(name, text)
    with (staging.folder / FAILED).open("w", encoding="utf-8") as log:
        with bar("reading", None, show=progress) as done:
            for batch in _parts(documents, first, done):
                fresh, failures = _new(batch, seen, now)
                log.writelines(json.dumps(failure) + "\n" for failure in failures)
                if fresh:
                    staging.put(fresh)
    staging.end()


def _parts(
    documents: Reading, first: int, done: Callable[[int], None]
) -> Iterator[list[Document | SourceError]]:
    if isinstance(documents, str | Mapping | Document):
        raise ValueError(f"documents is {str(documents)[:40]!r}: expected a list of them")
    part: list[Document | SourceError] = []
    characters = 0
    for number, given in enumerate(documents, start=first):
        item = as_document(given, number)
        part.append(item)
        characters += len(item.text) if isinstance(item, Document) else 0
        done(1)
        if len(part) == PART or characters >= CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _new(
    batch: list[Document | SourceError], seen: Seen, now: Segments
) -> tuple[list[Document], list[dict[str, str]]]:
    """The documents that are nowhere yet, and what is wrong with others."""
    failures = [{"reason": str(item)} for item in batch if isinstance(item, SourceError)]
    fresh = []
    for item in batch:
        if isinstance(item, Document):
            if reason := broken(item):
                failures.append({"id": item.id, "reason": reason})
                continue
            same = seen.same(item.id, item.text)
            if same is None:
                fresh.append(item)
            elif not same:
                failures.append({"id": item.id, "reason": "its id is given twice, with two texts"})
    rows = now.find([document.id for document in fresh])
    stored = iter(now.rows(rows[rows >= 0], ["text"])["text"].to_pylist())
    left = []
    for document, row in zip(fresh, rows.tolist(), strict=True):
        if row < 0:
            left.append(document)
        elif next(stored) != document.text:
            reason = "its id is in the data space with another text: delete that one first"
            failures.append({"id": document.id, "reason": reason})
    return left, failures


def _fitted(writer: SegmentsWriter, staging: Staging, progress: bool) -> LSA:
    """The data space's own embedder, fitted on what everybody may read."""
    final = writer.path / EMBEDDER
    if final.exists():  # it was killed just before its end
        return LSA.load(final)
    folder = staging.folder / EMBEDDER
    if not folder.exists():
        labels = writer.manifest.labels
        kept = None if labels is None else lambda meta: label_of(meta, labels) == labels.public
        texts = Texts(staging, kept)
        if not staging.parts:
            raise _nothing(list(staging.failures(FAILED)))
        if labels is not None and not len(texts):
            raise SourceError(
                f"no document to fit lsa on: none has field {labels.field!r} with the public value "
                f"{labels.public!r}. Correct these, or choose a pretrained embedder (st:NAME)"
            )
        with bar("fitting lsa", None, show=progress), atomic_write(folder) as new:
            LSA.fit(texts).save(new)
    return LSA.load(folder)


def _embed(staging: Staging, embedder: Embedder, progress: bool, ray: str | None) -> None:
    """Here, or by the workers of a cluster; in either case a part is journaled as it is done."""
    embedded = [part for part in range(staging.parts) if staging.embedded(part)]
    left = ((part, as_strings(staging.rows(part)["text"])) for part in range(staging.parts)
            if not staging.embedded(part))  # fmt: skip
    made = (
        (_part(embedder, *one) for one in left)
        if ray is None
        else spread(connected(ray), _part, embedder, left)
    )
    total = sum(staging.count(part) for part in range(staging.parts))
    with bar("embedding", total, show=progress) as done:
        done(sum(staging.count(part) for part in embedded))
        for part, vectors, failures in made:
            staging.embed(part, vectors, failures)
            done(staging.count(part))


def _part(
    embedder: Embedder, part: int, texts: list[str]
) -> tuple[int, Float[Array, "n d"], dict[int, str]]:
    return part, *_encoded(embedder, texts)


def _encoded(embedder: Embedder, texts: list[str]) -> tuple[Float[Array, "n d"], dict[int, str]]:
    """Vectors as they are stored, and what is wrong with texts whose row is NaN instead."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows, failures = _tried(embedder, [texts[i] for i in order])
    unit = _normalized(embedder)
    odd = odd_lengths(rows) if unit else np.flatnonzero(~(np.abs(rows) < LARGEST).all(axis=1))
    for i in odd.tolist():
        told = f"embedder {embedder.name} made a vector of length {np.linalg.norm(rows[i])} of it"
        failures.setdefault(i, told)
    rows[list(failures)] = 0
    stored = as_stored(rows, unit)
    stored[list(failures)] = np.nan
    vectors = np.empty_like(stored)
    vectors[order] = stored
    return vectors, {order[i]: reason for i, reason in failures.items()}


def _tried(embedder: Embedder, texts: list[str]) -> tuple[Float[Array, "n d"], dict[int, str]]:
    """All that can be embedded: of a batch that cannot, its halves."""
    try:
        rows = np.array(embedder.encode(texts), dtype=np.float32)
    except (ValueError, ModelError) as error:
        if len(texts) == 1:
            return np.full((1, embedder.dimension), np.nan, np.float32), {0: str(error)}
        middle = len(texts) // 2
        one, first = _tried(embedder, texts[:middle])
        two, second = _tried(embedder, texts[middle:])
        return np.concatenate([one, two]), first | {i + middle: r for i, r in second.items()}
    if rows.shape != (len(texts), embedder.dimension):
        raise ModelError(
            f"embedder {embedder.name} made vectors of shape {rows.shape} of {len(texts)} texts,"
            f" expected dimension {embedder.dimension}"
        )
    return rows, {}


def _commit(writer: SegmentsWriter, staging: Staging, embedder: Embedder, progress: bool) -> None:
    """Seal the parts as segments, and name them."""
    first, labels, path = writer.manifest.next, writer.manifest.labels, writer.path
    total = sum(len(batch.ids) for batch in staging.batches(first))
    failures = list(staging.failures(FAILED))
    if not total and not first:
        raise _nothing(failures)
    with bar("writing", total, show=progress) as done:
        names = seal(staging.folder, "sealed", lambda: staging.batches(first),
                     embedder.dimension, labels, done, indexed=_normalized(embedder))  # fmt: skip
    failed = _log(path / FAILED, failures)
    if not total and failed == writer.manifest.failed:
        return
    changes: dict[str, Any] = {"next": first + total, "failed": failed}
    if not first:
        changes |= {"embedder": embedder.name, "fingerprint": embedder.fingerprint,
                    "dimension": embedder.dimension,
                    "normalized": _normalized(embedder)}  # fmt: skip
        if (staging.folder / EMBEDDER).exists():
            (staging.folder / EMBEDDER).rename(path / EMBEDDER)
    writer.adopt(staging.folder, names, **changes)


def _nothing(failures: list[dict[str, str]]) -> SourceError:
    """Why there is no document to make a data space of."""
    others = f", and {len(failures) - 1:,} more" if len(failures) > 1 else ""
    told = f" ({failures[0]['reason']}{others})" if failures else ""
    return SourceError(f"no documents: a data space needs at least one{told}")


def _normalized(embedder: Embedder) -> bool:
    """Whether its vectors have length 1 or 0; so they have unless the embedder denies it."""
    return bool(getattr(embedder, "normalized", True))


def _log(path: Path, failures: list[dict[str, str]]) -> int:
    """Tell what could not be added, each once; gives how many there are by now."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    told = dict.fromkeys([*lines, *(json.dumps(failure) for failure in failures)])
    if len(told) > len(lines):
        with atomic_write(path) as new:
            new.write_text("".join(line + "\n" for line in told), "utf-8")
    return len(told)
