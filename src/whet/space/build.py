"""Adding documents to a data space: an addition is seen whole or not at all, and can be resumed.

Documents are spooled to parts; the parts are embedded one after another, sorted by length, and then
sealed as segments, which the manifest names last. Each finished part is journaled (`staging`), so
an interrupted addition continues where it stopped. Memory holds one part, 16 bytes per document,
and what building an index needs.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whet.data.chunking import AUTO
from whet.data.documents import (
    Document,
    encoding_error,
)
from whet.embed.embedder import Embedder, has_fingerprint
from whet.embed.lsa import LSA
from whet.embed.registry import base_spec
from whet.errors import SourceError, SpaceError
from whet.io import as_json, atomic_write, count_of, progress_bar, translate_disk_errors
from whet.locks import LOCK_FILE
from whet.space.indexing.addition import Addition
from whet.space.indexing.embedding import embed_parts, fit_lsa, is_normalized, no_documents
from whet.space.indexing.records import differ, read_sources, rows_of, staged_state, with_rows
from whet.space.indexing.sync import Changes, Scan
from whet.space.store.known_documents import SeenIds, compare_stored
from whet.space.store.manifest import (
    EMBEDDER_FOLDER,
    FAILED_FILE,
    Labels,
    Manifest,
    chunking_of,
    read_manifest,
)
from whet.space.store.opening import read_deleted_ids
from whet.space.store.protocol import COLUMNS
from whet.space.store.reader import DiskReader
from whet.space.store.sealing import seal
from whet.space.store.segments.records import as_strings
from whet.space.store.staging import (
    PART_CHARACTERS,
    PART_DOCUMENTS,
    Staging,
    as_records,
    staged_plan,
)
from whet.space.store.writer import DiskWriter

LOGGER = logging.getLogger(__name__)


def create(
    addition: Addition, path: Path, embedder: Embedder | None, labels: Labels | None
) -> Changes:
    """Write a new data space; without an embedder, `lsa` is fitted on the documents."""
    if embedder is None and labels is not None and labels.public is None:
        raise ValueError(
            "lsa would be fitted on restricted texts: name the label of the public ones "
            "(`Labels(public=…)`, --public), or choose a pretrained embedder (st:NAME or hf:NAME)"
        )
    if addition.chunks == AUTO and (plan := staged_plan(path)):  # an older version may have begun
        rule = plan.get("chunks") or chunking_of(str(plan.get("source", "")))
        addition = replace(addition, chunks=rule)
    existed, addition = path.exists(), addition.for_embedder(embedder)
    new = Manifest(
        embedder="", fingerprint="", dimension=0, source=addition.source, labels=labels,
        chunks=addition.chunks,
    )  # fmt: skip
    try:
        with DiskWriter(path, new=new) as writer:
            try:
                return _add(writer, addition, embedder)
            except (ValueError, SourceError):
                if not existed:
                    with suppress(OSError):  # it contains the lock
                        path.rmdir()
                raise
    finally:
        if not existed and path.is_dir() and {p.name for p in path.iterdir()} == {LOCK_FILE}:
            (path / LOCK_FILE).unlink()
            path.rmdir()


def add(addition: Addition, path: Path, embedder: Embedder) -> Changes:
    """Add the documents that are new; an `lsa` embedder is not fitted again.

    Of a folder or file that was added before, documents that are no longer there are deleted.
    """
    with DiskWriter(path) as writer:
        made_by = writer.manifest.fingerprint
        expected = made_by if has_fingerprint(embedder, made_by) else embedder.fingerprint
        DiskReader.open(path, fingerprint=expected).close()
        addition = addition.for_space(writer.manifest, path)
        return _add(writer, addition.in_known_folder(path, writer.manifest), embedder)


def unchanged(
    addition: Addition, path: Path, embedder: str | Embedder | None, labels: Labels | None
) -> Changes | None:
    """The counts of files if the data space at `path` is in step with its source.

    None if something is to be done, or to be refused, such as another embedder. Loads no embedder,
    and reads only files that may have changed.
    """
    manifest = read_manifest(path)
    spec = embedder if isinstance(embedder, str) else manifest.embedder
    same = base_spec(spec) == base_spec(manifest.embedder) and labels in (None, manifest.labels)
    if not same or staged_plan(path):
        return None
    addition = addition.for_space(manifest, path).in_known_folder(path, manifest)
    files = addition.scan(path, manifest)
    return files.changes if files is not None and files.is_current else None


def _add(writer: DiskWriter, addition: Addition, embedder: Embedder | None) -> Changes:
    """An error of the caller or the source leaves no trace; anything else can be resumed.

    An addition of files that is resumed is of the files as they were; it is followed by another.
    """
    name, fingerprint = (embedder.name, embedder.fingerprint) if embedder else (LSA.name, "")
    plan = {"source": addition.source, "embedder": name, "fingerprint": fingerprint}
    plan["chunks"] = addition.chunks
    with translate_disk_errors(writer.path):
        staging = Staging(writer.path, plan, writer.manifest.id)
        files = addition.scan(writer.path, writer.manifest)
        if files is not None and not staging.read and staging.resumed:
            staging.remove()  # some of its files may have changed
            staging = Staging(writer.path, plan, writer.manifest.id)
        resumed = staging.read
        try:
            if not resumed:
                _spool(addition, staging, writer, files)
            used = embedder or fit_lsa(writer, staging, addition.progress)
            embed_parts(staging, used, ray=addition.ray, progress=addition.progress)
            changes = _commit(writer, staging, used, addition, files)
        except (ValueError, SourceError):
            staging.remove()
            raise
        staging.remove()
    if files is None or not resumed:
        return changes
    again = _add(writer, addition, used)
    again.count_documents(changes)
    return again


def _spool(addition: Addition, staging: Staging, writer: DiskWriter, files: Scan | None) -> None:
    """Write the new documents to parts; when resuming, those of earlier parts are met again."""
    seen, snapshot = SeenIds(), writer.snapshot()
    for part in range(staging.parts):
        rows = staging.rows(part)
        for record in zip(*(as_strings(rows[c]) for c in COLUMNS), strict=True):
            seen.check(*record)
    with (staging.folder / FAILED_FILE).open("w", encoding="utf-8") as log:
        with progress_bar("reading", None, show=addition.progress) as advance:
            documents = (
                addition.documents(writer.manifest.next) if files is None else files.documents()
            )
            staged: list[str] = []
            for batch in _batches(documents, advance):
                fresh, failures = _new(batch, seen, snapshot, files)
                log.writelines(json.dumps(failure) + "\n" for failure in failures)
                if fresh:
                    staging.put(fresh)
                if files is not None:
                    staged += [document.id for document in fresh]
    if files is not None:
        files.save(staging, staged)
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
    batch: list[Document | SourceError], seen: SeenIds, snapshot: DiskReader, files: Scan | None
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
        row = int(known.rows[i])
        if row < 0 or known.updated[i]:
            new.append(document)
        elif files is not None and files.owns(row):
            if known.other_text[i]:
                files.outdated.append(row)
                new.append(document)
            else:
                files.kept[row] = document.id
        elif known.other_text[i]:
            reason = "its id is in the data space with another text: delete that one first"
            failures.append({"id": document.id, "reason": reason})
    return new, failures


def _commit(
    writer: DiskWriter, staging: Staging, embedder: Embedder, addition: Addition,
    files: Scan | None,
) -> Changes:  # fmt: skip
    """Seal the parts as segments and name these in the manifest.

    A document with other metadata than before gets a new row; the old one is deleted in the same
    version, also if the embedder now fails on it, so that nobody reads it under an old label.
    """
    first, labels, path = writer.manifest.next, writer.manifest.labels, writer.path
    staging.check()
    snapshot = writer.snapshot()
    replaced, state = staging.replaced(snapshot), staged_state(staging.folder)
    going = rows_of(state["going"] if state else ())
    going = going[snapshot.contains(going)]
    stored = snapshot if staging.resumed else None  # others may have added the same ids
    batches = partial(staging.batches, first, stored, going)
    total, row_of = 0, dict[str, int]()
    for batch in batches():
        total += len(batch.ids)
        if state:
            names_of_rows = zip(as_strings(batch.rows["id"]), batch.ids.tolist(), strict=True)
            row_of |= names_of_rows
    failures = list(staging.failures(FAILED_FILE))
    if not total and not first:
        raise no_documents(failures)
    with progress_bar("writing", total, show=addition.progress) as advance:
        names = seal(
            staging.folder, "sealed-{:05d}".format, batches,
            embedder.dimension, labels, advance, indexed=is_normalized(embedder),
        )  # fmt: skip
    snapshot.close()
    failed = _log(path / FAILED_FILE, failures, writer.manifest)
    deleted = np.union1d(replaced, going)
    sources = read_sources(path, writer.manifest)
    old, now = sources.get(addition.source, {}), with_rows(state, row_of) if state else {}
    result = Changes() if files is None else files.changes
    result.updated, result.documents_added = len(replaced), total
    result.documents_removed = len(deleted)
    same = not total and not len(deleted) and not (state and differ(old, now))
    if same and failed == writer.manifest.failed:
        return result
    changes: dict[str, Any] = {"next": first + total, "failed": failed, "addition": staging.id}
    if not writer.manifest.chunks:
        changes["chunks"] = addition.chunks
    if not first:
        changes |= {"embedder": embedder.name, "fingerprint": embedder.fingerprint,
                    "dimension": embedder.dimension,
                    "normalized": is_normalized(embedder)}  # fmt: skip
        if (staging.folder / EMBEDDER_FOLDER).exists():
            (staging.folder / EMBEDDER_FOLDER).rename(path / EMBEDDER_FOLDER)
    if len(deleted):
        changes["deleted"] = np.union1d(read_deleted_ids(path, writer.manifest), deleted)
    if state:
        changes["sources"] = sources | {addition.source: now}
    writer.adopt(staging.folder, names, **changes)
    return result


def _log(path: Path, failures: list[dict[str, str]], manifest: Manifest) -> int:
    """List the documents that could not be added, each once, and return their number.

    Lines after those that the manifest counts were written by an addition that did not become
    complete.

    Raises:
        SpaceError: If the file is not as the manifest describes it.
    """
    if path.exists() and (message := manifest.check_file(path.parent, path.name)):
        raise SpaceError(f"{message}, or delete it to begin a new list")
    lines, known = path.read_text("utf-8").splitlines() if path.exists() else [], manifest.failed
    logged = dict.fromkeys([*lines[:known], *(json.dumps(failure) for failure in failures)])
    if list(logged) != lines:
        with atomic_write(path) as new:
            new.write_text("".join(line + "\n" for line in logged), "utf-8")
    if added := len(logged) - known:
        LOGGER.warning("%s could not be added: see %s", count_of(added, "document"), path)
    return len(logged)
