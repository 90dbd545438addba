"""Writing the embedded store: whatever is written counts for nothing until the manifest names it.

So a writer that dies leaves the last version and some files that no manifest names; the next writer
sweeps these away.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from whet._version import __version__
from whet.data.documents import reject_str
from whet.data.filters import Filter, as_filter
from whet.errors import SpaceError
from whet.io import atomic_write, exclusive_lock, sync, translate_disk_errors
from whet.maths.arrays import Array
from whet.space.store.manifest import MANIFEST_FILE, SEGMENTS, STAGING, Manifest, read_manifest
from whet.space.store.protocol import COLUMNS, SCHEMA
from whet.space.store.reader import DiskReader, deleted_ids
from whet.space.store.records import BATCH_ROWS, as_row_numbers
from whet.space.store.sealing import Batch, Batches, seal
from whet.space.store.segment import MAX_ROWS, Segment, removed
from whet.space.store.vectors import non_unit_rows, to_float16


class DiskWriter:
    """The sole right to write in a folder of segments, until closed."""

    def __init__(self, path: str | Path, new: Manifest | None = None) -> None:
        """Open for writing; sweeps away what dead writers left, but for an unfinished addition.

        Args:
            path: The store's folder.
            new: The manifest of a store that is not there yet, and will be with its first write.

        Raises:
            SpaceError: If another process is writing, the folder cannot be written, there is a
                store where a new one is wanted, or as `DiskReader.open`.
        """
        self.path = Path(path)
        self._held = ExitStack()
        with translate_disk_errors(self.path):
            if new is None:
                read_manifest(self.path)
            else:
                _make_folder(self.path)
            self._held.enter_context(exclusive_lock(self.path))
            try:
                self.manifest = self._begin(new)
                self.sweep()
            except BaseException:
                self.close()
                raise

    def _begin(self, new: Manifest | None) -> Manifest:
        if new is None:
            return read_manifest(self.path)
        if (self.path / MANIFEST_FILE).exists():
            raise SpaceError(f"{self.path} exists: open and extend it, or choose another place")
        if any(self.path.iterdir()) and not (self.path / STAGING).exists():
            raise SpaceError(f"{self.path} exists and is no data space: choose another place")
        return new

    def __enter__(self) -> "DiskWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the right to write back."""
        self._held.close()

    def snapshot(self) -> DiskReader:
        """See `Writer.snapshot`."""
        if not (self.path / MANIFEST_FILE).exists():
            return DiskReader(self.path, self.manifest, [], [], [], [])
        return DiskReader.open(self.path)

    def add(self, rows: pa.Table, vectors: Float[Array, "n d"], *, key: str | None = None) -> int:
        """See `Writer.add`."""
        if key is not None and key in self.manifest.keys:
            return self.manifest.version
        self._check(rows, vectors)
        if not len(rows):
            return self.manifest.version
        first, stored = self.manifest.next, to_float16(vectors, self.manifest.normalized)
        batch = Batch(
            np.arange(first, first + len(rows)),
            rows.select(list(COLUMNS)).cast(SCHEMA).combine_chunks().to_batches()[0],
            stored,
        )
        keys = [*self.manifest.keys, *([] if key is None else [key])]
        return self.commit(lambda: iter([batch]), next=first + len(rows), keys=keys)

    def delete(self, *, ids: Any = None, where: Filter | None = None) -> int:
        """See `Writer.delete`."""
        if (ids is None) == (where is None):
            raise ValueError("delete takes either ids or a filter: give one of them")
        now = self.snapshot()
        live = now.ids(where)
        if ids is not None:
            live = np.intersect1d(live, as_row_numbers(ids))
        now.close()
        if not len(live):
            return self.manifest.version
        gone = np.union1d(deleted_ids(self.path, self.manifest), live)
        return self._replace(deleted=gone)

    def commit(self, batches: Batches, **changes: Any) -> int:
        """Write segments of the rows of `batches`, and name them: all or none.

        Args:
            batches: Rows by ascending id, the same each time it is called.
            changes: Of the manifest, besides.
        """
        with translate_disk_errors(self.path):
            try:
                names = self._seal(batches, lambda _: None)
                return self._replace(segments=[*self.manifest.segments, *names], **changes)
            except BaseException:
                self.sweep()
                raise

    def adopt(self, folder: Path, names: list[str], **changes: Any) -> int:
        """Name segments that were written in `folder`, beside those that are there."""
        with translate_disk_errors(self.path):
            segments = self.path / SEGMENTS
            segments.mkdir(exist_ok=True)
            named = []
            for number, name in enumerate(names):
                named.append(f"{self.manifest.version + 1:08d}-{number:05d}")
                (folder / name).rename(segments / named[-1])
            sync(segments)
            return self._replace(segments=[*self.manifest.segments, *named], **changes)

    def compact(self, done: Callable[[int], None] = lambda _: None) -> int:
        """Write anew what has deleted rows or is small, and drop an unfinished addition.

        Ids stay. Afterwards there is nothing on the disk but what the manifest names and what
        readers still have open.
        """
        with translate_disk_errors(self.path):
            shutil.rmtree(self.path / STAGING, ignore_errors=True)
            now = self.snapshot()
            deleted = deleted_ids(self.path, self.manifest)
            worn = [s for s in now.segments if _worn(s, deleted)]
            if len(worn) > 1 or len(deleted):
                live = [~np.isin(s.ids, deleted) for s in worn]
                left = DiskReader(self.path, self.manifest, worn, live, [True] * len(worn), [])
                kept = [s.name for s in now.segments if s not in worn]
                names = self._seal(lambda: _live(left), done)
                self._replace(segments=[*kept, *names], deleted=np.empty(0, np.int64))
            now.close()
            self.sweep()
        return self.manifest.version

    def _seal(self, batches: Batches, done: Callable[[int], None]) -> list[str]:
        prefix = f"{self.manifest.version + 1:08d}"
        manifest, folder = self.manifest, self.path / SEGMENTS
        return seal(
            folder, prefix, batches, manifest.dimension, manifest.labels, done,
            indexed=manifest.normalized,
        )  # fmt: skip

    def _check(self, rows: pa.Table, vectors: Float[Array, "n d"]) -> None:
        if vectors.shape != (len(rows), self.manifest.dimension):
            raise ValueError(
                f"vectors have shape {vectors.shape}: expected {len(rows)} rows of dimension "
                f"{self.manifest.dimension}"
            )
        odd = non_unit_rows(vectors)
        if self.manifest.normalized and len(odd):
            length = np.linalg.norm(vectors[odd[0]])
            raise ValueError(f"vector {odd[0]} has length {length}: expected 1, or 0")
        names = rows["id"].to_pylist()
        now = self.snapshot()
        there = np.flatnonzero(now.find(names) >= 0)
        now.close()
        if len(there):
            raise ValueError(f"document {names[there[0]]!r} is there already: delete it first")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"document {twice!r} comes twice: ids must differ")

    def _replace(self, deleted: Array | None = None, **changes: Any) -> int:
        """The next version; sweeps away what it does not name."""
        version = self.manifest.version + 1
        with translate_disk_errors(self.path):
            if deleted is not None:
                changes["deleted"] = f"deleted-{version:08d}.npy" if len(deleted) else ""
                if len(deleted):
                    with (
                        atomic_write(self.path / changes["deleted"]) as new,
                        new.open("wb") as file,
                    ):
                        np.save(file, deleted)
            changes |= {"version": version, "whet": __version__}
            replace(self.manifest, **changes).write(self.path)
            self.sweep()
        return version

    def sweep(self) -> None:
        """Remove what the manifest on the disk does not name and nobody has open."""
        if (self.path / MANIFEST_FILE).exists():
            self.manifest = read_manifest(self.path)
        for folder in (self.path / SEGMENTS).glob("*"):
            if folder.name not in self.manifest.segments:
                removed(folder)
        for file in {*self.path.glob("deleted-*"), *self.path.glob("*.new")}:
            if file.name != self.manifest.deleted:
                file.unlink()


def _worn(one: Segment, deleted: Array) -> bool:
    return one.count < MAX_ROWS // 2 or bool(np.isin(one.ids, deleted).any())


def _live(left: DiskReader) -> Iterator[Batch]:
    """The rows that are left, by ascending id."""
    ids = left.ids()
    for start in range(0, len(ids), BATCH_ROWS):
        own = ids[start : start + BATCH_ROWS]
        [rows] = left.rows(own).combine_chunks().to_batches()
        yield Batch(own, rows, left.vectors(own))


def _make_folder(path: Path) -> None:
    if path.is_file():
        raise SpaceError(f"{path} is a file, but a data space is a folder: choose another place")
    try:
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise SpaceError(f"{path} cannot be made: {error.strerror}") from error


def delete_documents(
    path: str | Path, ids: Sequence[str] = (), where: Filter | str | None = None
) -> int:
    """Delete documents by id or by filter; gives how many there were. Needs no embedder.

    Raises:
        SpaceError: If there is no whole data space at `path`, or another process is writing.
        ValueError: If `ids` is one text, or the filter has a field that no document has.
    """
    reject_str(ids, "ids")
    where = as_filter(where)
    with DiskWriter(path) as writer:
        before = writer.snapshot().count()
        if where is None:
            writer.delete(ids=writer.snapshot().find(ids))
        else:
            writer.delete(where=where)
        return before - writer.snapshot().count()
