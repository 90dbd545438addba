"""Adding documents to a data space: an addition is seen whole or not at all, and can be resumed.

Documents are spooled to parts; the parts are embedded one after another, sorted by length, and then
sealed as segments, which the manifest names last. Each finished part is journaled (`staging`), so
an interrupted addition continues where it stopped. Memory holds one part, 16 bytes per document,
and what building an index needs.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.data.chunking import AUTO, PASSAGES, get_chunker, passage_rule
from whet.data.documents import (
    Document,
    DocumentLike,
    encoding_error,
    iter_documents,
    to_documents,
)
from whet.data.walk import FileOptions, LeftOut
from whet.embed.embedder import Embedder, has_fingerprint
from whet.embed.lsa import LSA
from whet.errors import ModelError, SourceError, SpaceError
from whet.io import as_json, atomic_write, progress_bar, translate_disk_errors
from whet.locks import LOCK_FILE
from whet.maths.arrays import Array
from whet.space.store.manifest import EMBEDDER_FOLDER, FAILED_FILE, Labels, Manifest
from whet.space.store.opening import read_deleted_ids
from whet.space.store.protocol import COLUMNS
from whet.space.store.reader import DiskReader
from whet.space.store.sealing import label_of, seal
from whet.space.store.segments.records import as_strings
from whet.space.store.segments.vectors import non_unit_rows, to_float16
from whet.space.store.staging import (
    PART_CHARACTERS,
    PART_DOCUMENTS,
    SeenIds,
    StagedTexts,
    Staging,
    as_records,
    compare_stored,
)
from whet.space.store.writer import DiskWriter

LARGEST = 65_000.0  # of a number in float16
Documents = Iterable[DocumentLike] | str | Path
"""What can be added: documents, texts or mappings; or a source that `read_documents` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Documents to add and how to add them."""

    docs: Documents
    text_field: str = "text"
    chunks: str = AUTO
    resume_key: str = ""
    progress: bool = False
    ray: str | None = None
    files: FileOptions | None = None
    on_left_out: Callable[[LeftOut], None] | None = None

    def __post_init__(self) -> None:
        if self.chunks != AUTO:
            get_chunker(self.chunks)
        if isinstance(self.docs, Mapping | Document):
            raise ValueError(f"docs is {str(self.docs)[:40]}: expected a list of them")

    @property
    def source(self) -> str:
        """What identifies these documents, read in the same way; empty if nothing does."""
        key = self.resume_key
        if not key and isinstance(self.docs, str | Path) and str(self.docs) != "-":
            key = str(Path(self.docs).resolve()) if Path(self.docs).exists() else str(self.docs)
        if not key:
            return ""
        field = "" if self.text_field == "text" else f" by {self.text_field}"
        usual = self.chunks == "whole" or self.chunks.startswith(PASSAGES)
        return key + field + ("" if usual else f" in {self.chunks}")

    def for_embedder(self, embedder: Embedder | None) -> "Addition":
        """With the rule for passages that `embedder` reads entirely in place of `auto`."""
        if self.chunks != AUTO:
            return self
        return replace(self, chunks=passage_rule(getattr(embedder, "max_tokens", None)))

    def for_space(self, manifest: Manifest, path: Path) -> "Addition":
        """With the rule of the data space in place of `auto`.

        Raises:
            SpaceError: If another rule is chosen.
        """
        stored = manifest.chunking
        if not (manifest.chunks or manifest.source):  # an older version was given documents
            return replace(self, chunks="whole") if self.chunks == AUTO else self
        if self.chunks not in (AUTO, stored):
            raise SpaceError(
                f"data space {path} has texts cut by chunks {stored}, not {self.chunks}: add to it "
                f"without --chunks, or build a new data space with {self.chunks}"
            )
        return replace(self, chunks=stored)

    def documents(self, first: int) -> Iterator[Document | SourceError]:
        """The documents; those without an id are numbered from `first`."""
        if isinstance(self.docs, str | Path):
            return iter_documents(
                self.docs,
                text_field=self.text_field,
                chunks=self.chunks,
                files=self.files,
                on_left_out=self.on_left_out,
            )
        return to_documents(self.docs, first, text_field=self.text_field, chunks=self.chunks)


def create(
    addition: Addition, path: Path, embedder: Embedder | None, labels: Labels | None
) -> None:
    """Write a new data space; without an embedder, `lsa` is fitted on the documents."""
    if embedder is None and labels is not None and labels.public is None:
        raise ValueError(
            "lsa would be fitted on restricted texts: name the label of the public ones "
            "(`Labels(public=…)`, --public), or choose a pretrained embedder (st:NAME or hf:NAME)"
        )
    existed, addition = path.exists(), addition.for_embedder(embedder)
    new = Manifest(
        embedder="", fingerprint="", dimension=0, source=addition.source, labels=labels,
        chunks=addition.chunks,
    )  # fmt: skip
    try:
        with DiskWriter(path, new=new) as writer:
            try:
                _add(writer, addition, embedder)
            except (ValueError, SourceError):
                if not existed:
                    with suppress(OSError):  # it contains the lock
                        path.rmdir()
                raise
    finally:
        if not existed and path.is_dir() and {p.name for p in path.iterdir()} == {LOCK_FILE}:
            (path / LOCK_FILE).unlink()
            path.rmdir()


def add(addition: Addition, path: Path, embedder: Embedder) -> int:
    """Add the documents that are new; an `lsa` embedder is not fitted again.

    Returns:
        The number of stored documents whose metadata was replaced.
    """
    with DiskWriter(path) as writer:
        made_by = writer.manifest.fingerprint
        expected = made_by if has_fingerprint(embedder, made_by) else embedder.fingerprint
        DiskReader.open(path, fingerprint=expected).close()
        return _add(writer, addition.for_space(writer.manifest, path), embedder)


def _add(writer: DiskWriter, addition: Addition, embedder: Embedder | None) -> int:
    """An error of the caller or the source leaves no trace; anything else can be resumed.

    Returns:
        The number of stored documents whose metadata was replaced.
    """
    name, fingerprint = (embedder.name, embedder.fingerprint) if embedder else (LSA.name, "")
    plan = {"source": addition.source, "embedder": name, "fingerprint": fingerprint}
    plan["chunks"] = addition.chunks
    with translate_disk_errors(writer.path):
        staging = Staging(writer.path, plan, writer.manifest.id)
        try:
            if not staging.read:
                _spool(addition, staging, writer)
            used = embedder or _fit_lsa(writer, staging, addition.progress)
            _embed(staging, used, addition)
            updated = _commit(writer, staging, used, addition)
        except (ValueError, SourceError):
            staging.remove()
            raise
        staging.remove()
    return updated


def _spool(addition: Addition, staging: Staging, writer: DiskWriter) -> None:
    """Write the new documents to parts; when resuming, those of earlier parts are met again."""
    seen, snapshot = SeenIds(), writer.snapshot()
    for part in range(staging.parts):
        rows = staging.rows(part)
        for record in zip(*(as_strings(rows[c]) for c in COLUMNS), strict=True):
            seen.check(*record)
    with (staging.folder / FAILED_FILE).open("w", encoding="utf-8") as log:
        with progress_bar("reading", None, show=addition.progress) as advance:
            for batch in _batches(addition.documents(writer.manifest.next), advance):
                fresh, failures = _new(batch, seen, snapshot)
                log.writelines(json.dumps(failure) + "\n" for failure in failures)
                if fresh:
                    staging.put(fresh)
    staging.end()


def _batches(
    documents: Iterable[Document | SourceError], advance: Callable[[int], None]
) -> Iterator[list[Document | SourceError]]:
    batch: list[Document | SourceError] = []
    characters = 0
    for item in documents:
        batch.append(item)
        characters += len(item.text) if isinstance(item, Document) else 0
        advance(1)
        if len(batch) == PART_DOCUMENTS or characters >= PART_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _new(
    batch: list[Document | SourceError], seen: SeenIds, snapshot: DiskReader
) -> tuple[list[Document], list[dict[str, str]]]:
    """The documents that are new or have other metadata, and why others cannot be added."""
    failures = [{"reason": str(item)} for item in batch if isinstance(item, SourceError)]
    fresh = []
    for item in batch:
        if isinstance(item, Document):
            if reason := encoding_error(item):
                failures.append({"id": item.id, "reason": reason})
                continue
            same = seen.check(item.id, item.text, as_json(item.meta))
            if same is None:
                fresh.append(item)
            elif not same:
                failures.append(
                    {
                        "id": item.id,
                        "reason": "its id occurs twice, with different texts or metadata",
                    }
                )
    known, new = compare_stored(snapshot, as_records(fresh)), []
    for i, document in enumerate(fresh):
        if known.rows[i] < 0 or known.updated[i]:
            new.append(document)
        elif known.other_text[i]:
            reason = "its id is in the data space with another text: delete that one first"
            failures.append({"id": document.id, "reason": reason})
    return new, failures


def _fit_lsa(writer: DiskWriter, staging: Staging, progress: bool) -> LSA:
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
            raise _no_documents(list(staging.failures(FAILED_FILE)))
        if labels is not None and not len(texts):
            raise SourceError(
                f"no document to fit lsa on: none has field {labels.field!r} with the public value "
                f"{labels.public!r}. Correct these, or choose a pretrained embedder (st:NAME)"
            )
        with progress_bar("fitting lsa", None, show=progress), atomic_write(folder) as new:
            LSA.fit(texts).save(new)
            staging.record(EMBEDDER_FOLDER, new)
    return LSA.load(folder)


def _embed(staging: Staging, embedder: Embedder, addition: Addition) -> None:
    """Embed the parts here or on a Ray cluster, and journal each one when it is finished."""
    embedded = [part for part in range(staging.parts) if staging.embedded(part)]
    results: Iterator[tuple[int, Float[Array, "n d"], dict[int, str]]]
    pending = ((part, as_strings(staging.rows(part)["text"])) for part in range(staging.parts)
               if not staging.embedded(part))  # fmt: skip
    if addition.ray is None:
        results = (_embed_part(embedder, *item) for item in pending)
    else:
        from whet.space.ray.client import connect, map_unordered

        results = map_unordered(connect(addition.ray), _embed_part, embedder, pending)
    total = sum(staging.count(part) for part in range(staging.parts))
    with progress_bar("embedding", total, show=addition.progress) as advance:
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
    unit = _normalized(embedder)
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


def _commit(writer: DiskWriter, staging: Staging, embedder: Embedder, addition: Addition) -> int:
    """Seal the parts as segments and name these in the manifest.

    A document with other metadata than before gets a new row; the old one is deleted in the same
    version, also if the embedder now fails on it, so that nobody reads it under an old label.

    Returns:
        The number of these documents.
    """
    first, labels, path = writer.manifest.next, writer.manifest.labels, writer.path
    staging.check()
    snapshot = writer.snapshot()
    replaced = staging.replaced(snapshot)
    stored = snapshot if staging.resumed else None  # others may have added the same ids
    total = sum(len(batch.ids) for batch in staging.batches(first, stored))
    failures = list(staging.failures(FAILED_FILE))
    if not total and not first:
        raise _no_documents(failures)
    with progress_bar("writing", total, show=addition.progress) as advance:
        names = seal(
            staging.folder, "sealed-{:05d}".format, lambda: staging.batches(first, stored),
            embedder.dimension, labels, advance, indexed=_normalized(embedder),
        )  # fmt: skip
    snapshot.close()
    if (path / FAILED_FILE).exists() and (message := writer.manifest.check_file(path, FAILED_FILE)):
        raise SpaceError(f"{message}, or delete it to begin a new list")
    failed = _log(path / FAILED_FILE, failures, writer.manifest.failed)
    if not total and not len(replaced) and failed == writer.manifest.failed:
        return 0
    changes: dict[str, Any] = {"next": first + total, "failed": failed, "addition": staging.id}
    if not writer.manifest.chunks:
        changes["chunks"] = addition.chunks
    if not first:
        changes |= {"embedder": embedder.name, "fingerprint": embedder.fingerprint,
                    "dimension": embedder.dimension,
                    "normalized": _normalized(embedder)}  # fmt: skip
        if (staging.folder / EMBEDDER_FOLDER).exists():
            (staging.folder / EMBEDDER_FOLDER).rename(path / EMBEDDER_FOLDER)
    if len(replaced):
        changes["deleted"] = np.union1d(read_deleted_ids(path, writer.manifest), replaced)
    writer.adopt(staging.folder, names, **changes)
    return len(replaced)


def _no_documents(failures: list[dict[str, str]]) -> SourceError:
    """The error about an addition of which no document can be stored."""
    others = f", and {len(failures) - 1:,} more" if len(failures) > 1 else ""
    reason = f" ({failures[0]['reason']}{others})" if failures else ""
    return SourceError(f"no documents: a data space needs at least one{reason}")


def _normalized(embedder: Embedder) -> bool:
    """Whether the vectors have length 1 or 0, which is the default for embedders."""
    return bool(getattr(embedder, "normalized", True))


def _log(path: Path, failures: list[dict[str, str]], known: int) -> int:
    """List the documents that could not be added, each once, and return their number.

    Lines after the first `known` were written by an addition that did not become complete.
    """
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    logged = dict.fromkeys([*lines[:known], *(json.dumps(failure) for failure in failures)])
    if list(logged) != lines:
        with atomic_write(path) as new:
            new.write_text("".join(line + "\n" for line in logged), "utf-8")
    return len(logged)
