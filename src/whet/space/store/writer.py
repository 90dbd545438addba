"""Writing the store on disk: new files do not count until the manifest names them.

A writer that dies therefore leaves the last version intact, and some files that the manifest does
not name; the next writer removes them.
"""

import json
import re
from collections.abc import Callable, Sequence
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
from whet.embed.lsa import LSA
from whet.errors import SpaceError
from whet.io import DISK_ERRORS, atomic_write, fsync, translate_disk_errors
from whet.locks import LOCK_FILE, exclusive_lock, remove_folder
from whet.maths.arrays import Array
from whet.space.store.kernel import kernel_record
from whet.space.store.manifest import (
    FAILED_FILE,
    MANIFEST_FILE,
    REMOVED,
    SEGMENTS,
    STAGING,
    Manifest,
    file_checksums,
    is_embedder_folder,
    is_own_segment,
    new_id,
    read_manifest,
    refuse_links,
    segment_name,
    segment_record,
)
from whet.space.store.opening import read_deleted_ids
from whet.space.store.protocol import COLUMNS, SCHEMA
from whet.space.store.reader import DiskReader, find_with_passages
from whet.space.store.sealing import Batch, Batches, check_addition, rows_to_delete, seal
from whet.space.store.segments.segment import (
    MAX_ROWS,
    MERGED,
    Segment,
    remove_segment,
    segments_to_merge,
)
from whet.space.store.segments.vectors import to_float16
from whet.space.store.staging import discard_staging, is_committed, staged_plan

LEFTOVERS = r"(deleted-\d+\.npy|sources-\d+\.json)(\.new)?|(meta\.json|failed\.jsonl)\.new"


class DiskWriter:
    """The exclusive right to write in a store's folder, until closed.

    Methods that write return the new version.
    """

    def __init__(self, path: str | Path, new: Manifest | None = None) -> None:
        """Open for writing, and remove what dead writers left except an unfinished addition.

        Args:
            path: The store's folder.
            new: The manifest of a store to create; the first write stores it.

        Raises:
            SpaceError: If another process is writing, the folder cannot be written, a new store's
                folder is in use, or `DiskReader.open` would raise it.
        """
        self.path = Path(path)
        self._lock = ExitStack()
        with translate_disk_errors(self.path):
            if new is None:
                read_manifest(self.path)
            else:
                _make_folder(self.path)
            refuse_links(self.path)
            self._right = self._lock.enter_context(exclusive_lock(self.path))
            try:
                self.manifest = self._initial_manifest(new)
                self.sweep()
            except BaseException:
                self.close()
                raise

    def _initial_manifest(self, new: Manifest | None) -> Manifest:
        if new is None:
            manifest = read_manifest(self.path)
            return manifest if manifest.id else replace(manifest, id=new_id())
        if (self.path / MANIFEST_FILE).exists():
            raise SpaceError(f"{self.path} exists: add to it, or choose another path")
        names = {path.name for path in self.path.iterdir()} - {LOCK_FILE}
        if names and names.isdisjoint({STAGING, REMOVED}):
            raise SpaceError(f"{self.path} exists and is not a data space: choose another path")
        return replace(new, id=staged_plan(self.path).get("space") or new_id())

    def __enter__(self) -> "DiskWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the right to write."""
        self._lock.close()

    def snapshot(self) -> DiskReader:
        """See `Writer.snapshot`."""
        if not (self.path / MANIFEST_FILE).exists():
            return DiskReader(self.path, self.manifest, [], [], [], [])
        return DiskReader.open(self.path)

    def add(self, rows: pa.Table, vectors: Float[Array, "n d"], *, key: str | None = None) -> int:
        """See `Writer.add`."""
        manifest = self.manifest
        if key is not None and key in manifest.keys:
            return manifest.version
        snapshot = self.snapshot()
        check_addition(rows, vectors, snapshot, normalized=manifest.normalized)
        snapshot.close()
        if not len(rows):
            return manifest.version
        end = manifest.next + len(rows)
        batch = Batch(
            np.arange(manifest.next, end),
            rows.select(list(COLUMNS)).cast(SCHEMA).combine_chunks().to_batches()[0],
            to_float16(vectors, manifest.normalized),
        )
        keys = [*manifest.keys, *([] if key is None else [key])]
        return self.commit(lambda: iter([batch]), next=end, keys=keys)

    def delete(self, *, ids: Any = None, where: Filter | None = None) -> int:
        """See `Writer.delete`."""
        snapshot = self.snapshot()
        rows = rows_to_delete(snapshot, ids, where)
        snapshot.close()
        if not len(rows):
            return self.manifest.version
        return self._replace(deleted=np.union1d(read_deleted_ids(self.path, self.manifest), rows))

    def commit(self, batches: Batches, **changes: Any) -> int:
        """Write the rows of `batches` as segments and add these to the manifest, all or none.

        Args:
            batches: Rows by ascending id; called more than once.
            changes: Further changes of the manifest.
        """
        with translate_disk_errors(self.path):
            try:
                names = self._seal(batches, lambda _: None)
                return self._merge(names, **changes)
            except BaseException:
                self.sweep()
                raise

    def adopt(self, folder: Path, names: list[str], **changes: Any) -> int:
        """Move segments from `folder` into the store and add them to the manifest.

        Args:
            folder: Where the segments were written.
            names: Their names.
            changes: Further changes of the manifest.
        """
        with translate_disk_errors(self.path):
            self._right.check()
            segments = self.path / SEGMENTS
            segments.mkdir(exist_ok=True)
            adopted = []
            for number, name in enumerate(names):
                adopted.append(segment_name(self.manifest, number))
                (folder / name).rename(segments / adopted[-1])
            fsync(segments)
            return self._merge(adopted, **changes)

    def compact(self, progress: Callable[[int], None] = lambda _: None) -> int:
        """Rewrite small segments and those with deleted rows, and drop an unfinished addition.

        Row ids do not change. Afterwards the folder contains only files that the manifest names or
        that readers have open.

        Args:
            progress: Called with the number of rows written since the last call.
        """
        with translate_disk_errors(self.path):
            self._right.check()
            discard_staging(self.path)
            snapshot = self.snapshot()
            deleted = read_deleted_ids(self.path, self.manifest)
            old = [s for s in snapshot.segments if _needs_rewrite(s, deleted)]
            if len(old) > 1 or len(deleted):
                visible = [~np.isin(s.ids, deleted) for s in old]
                rest = DiskReader(self.path, self.manifest, old, visible, [True] * len(old), [])
                unchanged = [s.name for s in snapshot.segments if s not in old]
                names = self._seal(rest.batches, progress)
                self._replace(segments=[*unchanged, *names], deleted=np.empty(0, np.int64))
            snapshot.close()
            self.sweep()
        return self.manifest.version

    def replace_rows(
        self, batches: Batches, progress: Callable[[int], None], *, dimension: int, **changes: Any
    ) -> int:
        """Write all rows with other vectors, instead of the present segments.

        Args:
            batches: All rows by ascending id, with their new vectors; called more than once.
            progress: Called with the number of rows written since the last call.
            dimension: Length of the new vectors.
            changes: Further changes of the manifest.
        """
        with translate_disk_errors(self.path):
            try:
                names = self._seal(batches, progress, dimension=dimension)
                changes |= {"segments": names, "deleted": np.empty(0, np.int64)}
                return self._replace(dimension=dimension, **changes)
            except BaseException:
                self.sweep()
                raise

    def _merge(self, new: list[str], **changes: Any) -> int:
        """Add the segments `new` to the manifest, and merge older ones that are small.

        Segments of similar size are merged once there are 16 of them, if they remain too small for
        an index. A row is therefore rewritten at most four times, and additions of any number leave
        at most 15 segments of each size. The merged ones become part of the same version.
        """
        manifest = self.manifest
        if len(manifest.segments) < MERGED:
            return self._replace(segments=[*manifest.segments, *new], **changes)
        snapshot = self.snapshot()
        merged = segments_to_merge(snapshot.segments)
        names = [name for name in manifest.segments if name not in {s.name for s in merged}]
        if merged:
            deleted = read_deleted_ids(self.path, manifest)
            visible = [~np.isin(s.ids, deleted) for s in merged]
            rest = DiskReader(self.path, manifest, merged, visible, [True] * len(merged), [])
            names += self._seal(rest.batches, lambda _: None, first=len(new))
            if len(deleted):
                gone = np.concatenate([s.ids for s in merged])
                changes["deleted"] = np.setdiff1d(deleted, gone)
        snapshot.close()
        return self._replace(segments=[*names, *new], **changes)

    def _seal(
        self,
        batches: Batches,
        progress: Callable[[int], None],
        first: int = 0,
        dimension: int | None = None,
    ) -> list[str]:
        self._right.check()
        manifest, folder = self.manifest, self.path / SEGMENTS
        return seal(
            folder,
            lambda number: segment_name(manifest, first + number),
            batches,
            dimension or manifest.dimension,
            manifest.labels,
            progress,
            indexed=manifest.normalized,
        )

    def _replace(self, deleted: Array | None = None, sources: Any = None, **changes: Any) -> int:
        """Write the manifest of the next version and remove files that it does not name."""
        version = self.manifest.version + 1
        with translate_disk_errors(self.path):
            self._right.check()
            if deleted is not None:
                changes["deleted"] = f"deleted-{version:08d}.npy" if len(deleted) else ""
                if len(deleted):
                    with (
                        atomic_write(self.path / changes["deleted"]) as temporary,
                        temporary.open("wb") as file,
                    ):
                        np.save(file, deleted)
            if sources is not None:
                changes["sources"] = f"sources-{version:08d}.json"
                with atomic_write(self.path / changes["sources"]) as temporary:
                    temporary.write_text(json.dumps(sources, separators=(",", ":")), "utf-8")
            changes |= {"version": version, "whet": __version__}
            manifest = replace(self.manifest, **changes)
            if deleted is None:
                deleted = read_deleted_ids(self.path, manifest)
            manifest = replace(manifest, kernel=kernel_record(self.path, manifest, deleted))
            gone = {*self.manifest.segments, *self.manifest.dropped} - set(manifest.segments)
            manifest = replace(
                manifest,
                files=self._checksums(manifest),
                dropped=sorted(
                    name
                    for name in gone
                    if not is_own_segment(name, manifest) and (self.path / SEGMENTS / name).exists()
                ),
            )
            manifest.write(self.path)
            self.sweep()
        return version

    def _checksums(self, manifest: Manifest) -> dict[str, list[int]]:
        """`Manifest.files`; only files without a checksum are read."""
        known = dict(self.manifest.files)
        names = [segment_record(name) for name in manifest.segments]
        names += [name for name in (manifest.deleted, manifest.sources) if name]
        if manifest.embedder == "lsa":
            folder = manifest.embedder_folder
            files = {f"{folder}/{path.name}" for path in (self.path / folder).glob("*")}
            names += sorted(files | {name for name in known if name.startswith(f"{folder}/")})
        failed = self.path / FAILED_FILE
        if failed.exists():
            names.append(FAILED_FILE)
            grown = failed.stat().st_size != known.get(FAILED_FILE, [0])[0]
            if grown and self.manifest.check_file(self.path, FAILED_FILE) is None:
                known.pop(FAILED_FILE, None)
        return file_checksums(self.path, names, known)

    def sweep(self) -> None:
        """Remove what writers of this data space left and nobody has open.

        Folders that neither were named by the manifest nor have names with its id are not removed.
        """
        refuse_links(self.path)
        if (self.path / MANIFEST_FILE).exists():
            stored = read_manifest(self.path)
            self.manifest = stored if stored.id else replace(stored, id=self.manifest.id)
            if is_committed(self.path, stored):
                discard_staging(self.path)
        for folder in (self.path / SEGMENTS).glob("*"):
            dropped = folder.name in self.manifest.dropped
            if (
                dropped or is_own_segment(folder.name, self.manifest)
            ) and folder.name not in self.manifest.segments:
                remove_segment(folder)
        for file in list(self.path.iterdir()):
            if self._is_old_embedder(file.name):
                file.unlink() if file.is_symlink() else remove_folder(file)
            elif re.fullmatch(LEFTOVERS, file.name) and file.name not in (
                self.manifest.deleted, self.manifest.sources
            ):  # fmt: skip
                file.unlink()

    def _is_old_embedder(self, name: str) -> bool:
        """Whether a folder is that of an `lsa` embedder that the manifest does not name."""
        stored = (self.path / MANIFEST_FILE).exists() and self.manifest.embedder == LSA.name
        return stored and is_embedder_folder(name) and name != self.manifest.embedder_folder


def _needs_rewrite(segment: Segment, deleted: Array) -> bool:
    return segment.count < MAX_ROWS // 2 or bool(np.isin(segment.ids, deleted).any())


def _make_folder(path: Path) -> None:
    if path.is_file():
        raise SpaceError(f"{path} is a file, but a data space is a folder: choose another path")
    try:
        path.mkdir(parents=True, exist_ok=True)
        fsync(path.parent)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise SpaceError(
            f"{path} cannot be created ({error.strerror}): choose another path"
        ) from error


def delete_documents(
    path: str | Path, ids: Sequence[str] = (), where: Filter | str | None = None
) -> int:
    """Delete documents of the data space at `path` by id or by filter; needs no embedder.

    The id of a document that was cut into passages stands for these.

    Returns:
        The number of documents deleted.

    Raises:
        SpaceError: If there is no intact data space at `path`, or another process is writing.
        ValueError: If `ids` is a string, or the filter has a field that no document has.
    """
    reject_str(ids, "ids")
    where = as_filter(where)
    with DiskWriter(path) as writer:
        before = writer.snapshot().count()
        if where is None:
            writer.delete(ids=find_with_passages(writer.snapshot(), ids))
        else:
            writer.delete(where=where)
        return before - writer.snapshot().count()
