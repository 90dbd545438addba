"""Fitting the `lsa` embedder of a data space again, on the documents that it contains now.

An embedder keeps the words that it was fitted on, those of deleted documents too. Fitting it again
forgets them and learns the words of documents that were added since. All vectors are computed again
and written as new segments; the manifest then names these and the new embedder together, so a
process that is killed leaves the old state or the new one.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from whet.embed.lsa import LSA
from whet.errors import SourceError, SpaceError
from whet.io import atomic_write, progress_bar, translate_disk_errors
from whet.maths.arrays import Array
from whet.space.store.manifest import EMBEDDER_FOLDER, Labels
from whet.space.store.protocol import COLUMNS
from whet.space.store.reader import DiskReader
from whet.space.store.sealing import Batch, label_of
from whet.space.store.segments.records import BATCH_ROWS, as_strings
from whet.space.store.segments.vectors import to_float16
from whet.space.store.staging import staged_plan
from whet.space.store.writer import DiskWriter


def refit(path: str | Path, *, progress: bool = False) -> int:
    """Fit the `lsa` embedder of the data space at `path` again, on its present documents.

    In a labeled data space only public documents are used, as when it was built. Ids, rows, metadata
    and labels stay the same; vectors change, and deleted documents are removed from the disk, as by
    `whet space compact`. Takes about half a minute, and a second per 6,000 documents; twice the disk
    space is needed meanwhile.

    Args:
        path: The folder of a data space.
        progress: Draw progress bars on stderr.

    Returns:
        The new version of the data space.

    Raises:
        SpaceError: If there is no intact data space, it was made by another embedder, an addition to
            it is unfinished, or another process is writing.
        SourceError: If it has no (public) document with a word.
    """
    path = Path(path)
    with DiskWriter(path) as writer, translate_disk_errors(path):
        manifest = writer.manifest
        if manifest.embedder != LSA.name:
            raise SpaceError(
                f"data space {path} was made by embedder {manifest.embedder}, which is not fitted on "
                "its documents and does not keep their words: `whet space compact` is all that "
                "deleted documents need"
            )
        if plan := staged_plan(path):
            raise SpaceError(
                f"{path} has an unfinished addition of {plan.get('source') or 'documents'}: run the "
                "same `whet index` again to finish it, or drop it with `whet space compact`, then refit"
            )
        snapshot = writer.snapshot()
        embedder = _fit(snapshot, manifest.labels, path, progress)
        folder = f"{EMBEDDER_FOLDER}-{manifest.version + 1:08d}"
        with atomic_write(path / folder) as new:
            embedder.save(new)
        with tempfile.TemporaryFile(dir=path) as file:  # has no name, so a kill leaves nothing
            vectors = _embed(snapshot, embedder, file, progress)
            with progress_bar("writing", snapshot.count(), show=progress) as advance:
                version = writer.replace_rows(
                    lambda: _batches(snapshot, vectors), advance, embedder_folder=folder,
                    fingerprint=embedder.fingerprint, dimension=embedder.dimension,
                )  # fmt: skip
        snapshot.close()
        writer.sweep()  # what the snapshot had open
    return version


def _fit(snapshot: DiskReader, labels: Labels | None, path: Path, progress: bool) -> LSA:
    texts = StoredTexts(snapshot, _public_rows(snapshot, labels))
    with progress_bar("fitting lsa", None, show=progress):
        try:
            return LSA.fit(texts)
        except ValueError as error:
            public = "" if labels is None else " public"
            raise SourceError(
                f"{path} has no{public} document with a word to fit lsa on: add one, or delete the "
                "folder"
            ) from error


def _public_rows(snapshot: DiskReader, labels: Labels | None) -> Int[Array, " n"]:
    """The rows that the embedder may be fitted on."""
    ids = snapshot.ids()
    if labels is None:
        return ids
    public = [np.empty(0, np.int64)]
    for start in range(0, len(ids), BATCH_ROWS):
        rows = ids[start : start + BATCH_ROWS]
        metas = as_strings(snapshot.rows(rows, ["meta"])["meta"])
        public.append(rows[[label_of(meta, labels) == labels.public for meta in metas]])
    return np.concatenate(public)


def _embed(snapshot: DiskReader, embedder: LSA, file: Any, progress: bool) -> Any:
    """The vectors of all rows, as they are stored, in an array that is mapped to `file`."""
    ids = snapshot.ids()
    with progress_bar("embedding", len(ids), show=progress) as advance:
        for start in range(0, len(ids), BATCH_ROWS):
            rows = ids[start : start + BATCH_ROWS]
            texts = as_strings(snapshot.rows(rows, ["text"])["text"])
            file.write(to_float16(embedder.encode(texts)).data)
            advance(len(rows))
    file.flush()
    return np.memmap(file, "<f2", "r", shape=(len(ids), embedder.dimension))


def _batches(snapshot: DiskReader, vectors: Any) -> Iterator[Batch]:
    ids = snapshot.ids()
    for start in range(0, len(ids), BATCH_ROWS):
        rows = ids[start : start + BATCH_ROWS]
        [records] = snapshot.rows(rows, COLUMNS).combine_chunks().to_batches()
        yield Batch(rows, records, np.asarray(vectors[start : start + len(rows)]))


class StoredTexts(Sequence[str]):
    """The texts of rows of a data space, read on access; fastest when accessed in order."""

    def __init__(self, reader: DiskReader, rows: Int[Array, " n"]) -> None:
        """Read from `reader`, which must stay open."""
        self._reader, self._rows = reader, rows
        self._block, self._texts = -1, list[str]()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        block, offset = divmod(int(index), BATCH_ROWS)
        if block != self._block:
            rows = self._rows[block * BATCH_ROWS : (block + 1) * BATCH_ROWS]
            self._texts = as_strings(self._reader.rows(rows, ["text"])["text"])
            self._block = block
        return self._texts[offset]
