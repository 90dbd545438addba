"""Documents in, a data space out: whole or not at all.

The documents are streamed to the rows file, then read back to fit and to embed, so memory holds
their ids and one batch. A new data space is written in a folder beside its place and renamed; an
addition is written in new files, and `meta.json` is replaced last.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from whet import __version__
from whet.errors import SourceError, SpaceError
from whet.maths.arrays import Array
from whet.space.documents import Document
from whet.space.embed import LSA, Embedder
from whet.space.meta import Meta, read_meta, sync_folder
from whet.space.progress import bar
from whet.space.rows import Rows, RowsWriter
from whet.space.vectors import begin, put

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
UNIT = 1e-3  # how far from 1 the length of an embedder's vector may be


def build(
    documents: Iterable[Document],
    path: Path,
    embedder: Embedder | None,
    source: str,
    progress: bool,
) -> None:
    """Write a new data space; without an embedder, `lsa` is fitted on the documents."""
    with _beside(path) as folder:
        with RowsWriter(folder / "rows.arrow") as writer:
            _spool(documents, writer, None, progress)
        rows = Rows(folder / "rows.arrow")
        if not len(rows):
            raise SourceError("no documents: a data space needs at least one")
        if embedder is None:
            with bar("fitting lsa", None, show=progress):
                embedder = LSA.fit(rows.texts)
        if isinstance(embedder, LSA):
            embedder.save(folder / "embedder")
            _sync_files(folder / "embedder")
        _embed(folder / "vectors.npy", rows, 0, None, embedder, progress)
        Meta(
            embedder=embedder.name,
            fingerprint=embedder.fingerprint,
            dimension=embedder.dimension,
            count=len(rows),
            source=source,
            whet=__version__,
        ).write(folder)


def extend(documents: Iterable[Document], path: Path, embedder: Embedder, progress: bool) -> None:
    """Add what is new among `documents` to a data space that is `locked`."""
    meta, mark = read_meta(path), secrets.token_hex(4)
    old, stored = Rows(path / meta.rows), path / meta.vectors
    new = replace(meta, rows=f"rows-{mark}.arrow", vectors=f"vectors-{mark}.npy", whet=__version__)
    try:
        with _no_room(path):
            with RowsWriter(path / new.rows) as writer:
                writer.copy(old)
                _spool(documents, writer, old, progress)
            rows = Rows(path / new.rows)
            if len(rows) > len(old):
                _embed(path / new.vectors, rows, len(old), stored, embedder, progress)
                replace(new, count=len(rows)).write(path)
    finally:
        _sweep(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The sole right to write in `folder`, until left or until the process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpaceError(f"{folder} is being written by another process: wait") from error
        yield
    finally:
        os.close(descriptor)


def _spool(
    documents: Iterable[Document], writer: RowsWriter, old: Rows | None, progress: bool
) -> None:
    """Write the documents that are not among the `old` ones."""
    row_of = {name: row for row, name in enumerate(old.ids)} if old else {}
    place: dict[str, int] = {}
    with bar("reading", None, show=progress) as done:
        for number, document in enumerate(documents, start=1):
            first = place.setdefault(document.id, number)
            if first != number:
                raise SourceError(
                    f"id {document.id!r} is given twice, to documents {first} and {number} of the "
                    "source: ids must differ"
                )
            row = row_of.get(document.id)
            if row is None:
                writer.add(document)
            elif old and old.text(row) != document.text:
                raise SourceError(
                    f"id {document.id!r} is in the data space with another text: give the new "
                    "text another id, or rebuild the data space"
                )
            done(1)


def _embed(
    path: Path, rows: Rows, old: int, stored: Path | None, embedder: Embedder, progress: bool
) -> None:
    """Write the vectors of all rows; those of the first `old` are copied from `stored`."""
    with path.open("wb") as file, bar("embedding", len(rows) - old, show=progress) as done:
        begin(file, len(rows), embedder.dimension)
        if stored:
            known = np.load(stored, mmap_mode="r", allow_pickle=False)
            file.write(known.data)
        row = 0
        for batch in rows.batches():
            if row >= old:  # a batch of new rows begins where the old ones end
                ids, texts = batch.column("id").to_pylist(), batch.column("text").to_pylist()
                put(file, _encoded(embedder, ids, texts))
                done(len(ids))
            row += len(batch)
        file.flush()
        os.fsync(file.fileno())


def _encoded(embedder: Embedder, ids: list[str], texts: list[str]) -> Float[Array, "n d"]:
    vectors = np.asarray(embedder.encode(texts), dtype=np.float32)
    if vectors.shape != (len(texts), embedder.dimension):
        raise SpaceError(
            f"embedder {embedder.name} made vectors of shape {vectors.shape} of {len(texts)} texts,"
            f" expected dimension {embedder.dimension}"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~((lengths == 0) | (np.abs(lengths - 1) < UNIT)))
    if len(wrong):
        raise SpaceError(
            f"embedder {embedder.name} made a vector of length {lengths[wrong[0]]} of document "
            f"{ids[wrong[0]]!r}: expected 1, or 0 where the text tells nothing"
        )
    return vectors


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, renamed to it at the end; removed if an error gets in between.

    Only a kill leaves it behind: a folder `….partial-…` may be deleted once its writer is dead.
    """
    if path.exists():
        raise SpaceError(f"{path} exists: open and extend it, or choose another place")
    folder = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SpaceError(f"{path} cannot be made: {error.strerror}") from error
    try:
        with _no_room(path):
            yield folder
            try:
                os.rename(folder, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise SpaceError(f"{path} was made meanwhile by another process") from error
            sync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _no_room(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise SpaceError(
            f"{path} cannot be written ({error.strerror}): nothing was changed"
        ) from error


def _sweep(folder: Path) -> None:
    """Remove the files of rows and vectors that `meta.json` does not name."""
    meta = read_meta(folder)
    for path in [*folder.glob("rows*.arrow"), *folder.glob("vectors*.npy")]:
        if path.name not in (meta.rows, meta.vectors):
            path.unlink()


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
