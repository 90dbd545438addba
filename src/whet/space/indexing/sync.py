"""Keeping a data space in step with a folder or file that it was built from.

For each source, the data space records its files: size, times, a hash of the bytes, and the rows of
the documents that were read from it. Indexing the source again reads only files that changed; rows
of documents that are no longer there are deleted in the same version that adds the new ones. Rows
that another source added are never deleted.

A file is skipped if its size and times are as recorded, unless it was read within two seconds of its
last change, when a further change might not show in them: then its hash decides.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from whet.data.documents import Document, iter_documents
from whet.data.files import iter_files
from whet.data.walk import FileOptions, LeftOut
from whet.errors import SourceError
from whet.io import atomic_write
from whet.space.indexing.records import (
    FileRecord,
    Files,
    read_sources,
    rows_of,
    runs_of,
)
from whet.space.store.manifest import Manifest
from whet.space.store.reader import DiskReader
from whet.space.store.staging import STATE_FILE, Staging

LARGEST = (
    2 * 10**9
)  # bytes of a source that is kept in step; of larger ones documents are added only
RECENT_NS = 2 * 10**9  # between a change and reading, in which another change might not show


@dataclass(slots=True)
class Changes:
    """What indexing a source again changed; counts of files."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    documents_added: int = 0
    documents_removed: int = 0
    updated: int = 0
    """Documents of the same text whose metadata was replaced; they are counted as added too."""

    def count_documents(self, others: "Changes") -> None:
        """Add the counts of documents of another addition."""
        self.documents_added += others.documents_added
        self.documents_removed += others.documents_removed
        self.updated += others.updated

    def record(self) -> dict[str, Any]:
        """The counts for JSON."""
        return {
            "files": {name: getattr(self, name) for name in STATES},
            "documents": {"added": self.documents_added, "removed": self.documents_removed},
        }


STATES = ("added", "changed", "removed", "unchanged")


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    location: Path
    record: FileRecord
    """With the rows of the record before, if there was one."""
    read: Callable[..., Iterator[Document | SourceError]]
    """Reads the documents; takes `text_field` and `chunks`."""


class Scan:
    """The files of a source next to those that a data space has of it."""

    def __init__(
        self, source: Path, known: Files, *, text_field: str, chunks: str, keep_missing: bool,
        options: FileOptions | None, on_left_out: Callable[[LeftOut], None] | None,
        adopts: bool = False, within: str = "",
    ) -> None:  # fmt: skip
        """List the files, and hash those that may have changed.

        Args:
            source: A folder or a file.
            known: Its files as the data space has them.
            text_field: Field of a record that holds the text.
            chunks: How texts are cut.
            keep_missing: Keep documents of files that are no longer there.
            options: Which files of a folder are read.
            on_left_out: Called with what is left out.
            adopts: Whether stored documents of the ids that are read belong to this source: if an
                older version, which did not record files, built the data space from it.
            within: Only this file or folder of the source; files elsewhere stay as they are.

        Raises:
            SourceError: If the source holds no file that can be read, though it did before.
        """
        self._source, self._text_field, self._chunks = source, text_field, chunks
        self._options, self._leave_out = options, on_left_out or (lambda _: None)
        self._keep_missing, self._adopts = keep_missing, adopts and not known
        self._within = within
        self.kept: dict[int, str] = {}
        """Rows of documents that are as before, although their file has changed, with their ids."""
        self.outdated: list[int] = []
        """Rows of documents that were read with another text."""
        self.known, self.changes = known, Changes()
        self.files: Files = {p: r for p, r in known.items() if not is_within(p, within)}
        """Records of files that need not be read, by path."""
        self.to_read: list[_File] = []
        """Files that are new or have changed."""
        self.problems: list[SourceError] = []
        """Why files cannot be read; their documents stay as they are."""
        self.file_of: dict[str, str] = {}
        """The path of the file that each document was read from, by its id."""
        self._read: Counter[str] = Counter()
        self._list()
        vanished = known.keys() - self.files.keys() - {file.path for file in self.to_read}
        if vanished and not self.files and not self.to_read:
            raise SourceError(
                f"{source} holds no file that can be read, but the data space has {len(vanished):,} "
                "of it: nothing is removed; if they shall go, use `whet space delete`"
            )
        if keep_missing:
            self.files |= {path: known[path] for path in vanished}
        else:
            self.changes.removed = len(vanished)
        self._vanished = vanished
        self.changes.unchanged = len(self.files)

    def _list(self) -> None:
        if not self._source.is_dir():
            read = partial(
                iter_documents, self._source, files=self._options, on_left_out=self._leave_out
            )
            self._compare(self._source.name, self._source, read)
            return
        for file in iter_files(self._source, self._options):
            if not is_within(file.path, self._within):
                continue
            location = self._source / file.path
            if isinstance(file.problem, LeftOut):
                self._leave_out(file.problem)
            elif file.problem is not None:
                self._keep(file.path, file.problem)
            else:
                self._compare(file.path, location, file.documents)

    def _keep(self, path: str, problem: SourceError) -> None:
        """Keep the documents of a file, or of all files below a folder, that cannot be read."""
        self.problems.append(problem)
        below = {p: r for p, r in self.known.items() if p == path or p.startswith(f"{path}/")}
        self.files |= below

    def _compare(
        self, path: str, location: Path, read: Callable[..., Iterator[Document | SourceError]]
    ) -> None:
        known = self.known.get(path)
        try:
            now = time.time_ns()
            stat = location.stat()
            times = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            settled = max(stat.st_mtime_ns, stat.st_ctime_ns) < now - RECENT_NS
            if known and known.digest and known.settled and times == (
                known.size, known.modified_ns, known.changed_ns
            ):  # fmt: skip
                self.files[path] = known
                return
            digest = _digest(location)
        except OSError as error:
            reason = SourceError(f"{location}: cannot be read: {error.strerror or error}")
            self._keep(path, reason)
            return
        record = FileRecord(*times, settled, digest, known.rows if known else ())
        if known and known.digest == digest:
            self.files[path] = record
        else:
            self.to_read.append(_File(path, location, record, read))

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to do."""
        same = {p: r.rows for p, r in self.files.items()} == {
            p: r.rows for p, r in self.known.items()
        }
        return bool(self.known) and same and not self.to_read and not self.problems

    @cached_property
    def _going(self) -> set[int]:
        """Rows that are deleted unless their document is read again."""
        replaced = [] if self._keep_missing else [self.known[p].rows for p in self._vanished]
        replaced += [file.record.rows for file in self.to_read]
        return {row for runs in replaced for first, last in runs for row in range(first, last + 1)}

    def documents(self) -> Iterator[Document | SourceError]:
        """The documents of the files that are new or have changed."""
        yield from self.problems
        errors = list(self.problems)
        for file in self.to_read:
            known = self.known.get(file.path)
            self.changes.changed += known is not None
            self.changes.added += known is None
            for item in file.read(text_field=self._text_field, chunks=self._chunks):
                if isinstance(item, LeftOut):
                    self._leave_out(item)
                    continue
                if isinstance(item, SourceError):
                    errors.append(item)
                elif item.id not in self.file_of:
                    self.file_of[item.id] = file.path
                    self._read[file.path] += 1
                yield item
        if not self.file_of and not self.known:
            reason = f" ({errors[0]})" if errors else ""
            raise SourceError(
                f"{self._source} holds no documents{reason}: expected at least one text"
            )

    def owns(self, row: int) -> bool:
        """Whether a stored document with the id of one that is read came from this source."""
        return self._adopts or row in self._going

    def save(self, staging: Staging, staged: list[str]) -> None:
        """Store the state of the source, once all documents are staged, by their ids."""
        kept = self.kept
        ids: dict[str, list[str]] = {}
        rows: dict[str, list[int]] = {}
        for name in staged:
            ids.setdefault(self.file_of[name], []).append(name)
        for row, name in kept.items():
            rows.setdefault(self.file_of[name], []).append(row)
        files = {path: record.as_list() for path, record in self.files.items()}
        for file in self.to_read:
            complete = self._read[file.path] == len(ids.get(file.path, ())) + len(
                rows.get(file.path, ())
            )
            unchanged = complete and _is_same(file)
            record = FileRecord(
                file.record.size, file.record.modified_ns, file.record.changed_ns,
                file.record.settled, file.record.digest if unchanged else "",
                runs_of(np.array(sorted(rows.get(file.path, ())), np.int64)),
            )  # fmt: skip
            files[file.path] = record.as_list()
        going = np.setdiff1d([*self._going, *self.outdated], list(kept)).astype(np.int64)
        state = {"files": files, "ids": ids, "going": [list(run) for run in runs_of(going)]}
        with atomic_write(staging.folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps(state), "utf-8")
            staging.record(STATE_FILE, temporary)


def is_within(path: str, part: str) -> bool:
    """Whether `path` is the file `part` or in the folder `part`; an empty `part` is everything.

    >>> is_within("api/a.md", "api"), is_within("apis/a.md", "api"), is_within("a.md", "")
    (True, False, True)
    """
    return not part or path == part or path.startswith(f"{part}/")


def _is_same(file: _File) -> bool:
    """Whether a file is as it was before it was read."""
    try:
        stat = file.location.stat()
    except OSError:
        return False
    times = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return times == (file.record.size, file.record.modified_ns, file.record.changed_ns)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _without_deleted(files: Files, folder: Path) -> Files:
    """The records, so that a file is read again if one of its documents was deleted meanwhile."""
    if not files:
        return files
    with closing(DiskReader.open(folder)) as reader:
        deleted = [
            path
            for path, record in files.items()
            if record.rows and not reader.contains(rows_of(record.rows)).all()
        ]
    return files | {path: replace(files[path], digest="") for path in deleted}


def scan(
    source: Path, folder: Path, manifest: Manifest, key: str, *, text_field: str, chunks: str,
    keep_missing: bool, options: FileOptions | None,
    on_left_out: Callable[[LeftOut], None] | None, within: str = "",
) -> Scan | None:  # fmt: skip
    """The files of `source` next to those of the data space; None if it is too large.

    Args:
        source: A folder or a file.
        folder: The data space.
        manifest: Its manifest.
        key: What identifies the source.
        text_field: Field of a record that holds the text.
        chunks: How texts are cut.
        keep_missing: Keep documents of files that are no longer there.
        options: Which files of a folder are read.
        on_left_out: Called with what is left out.
        within: Only this file or folder of the source; empty for all.

    Raises:
        SourceError: See `Scan`.
        SpaceError: If the record of the sources is damaged.
    """
    known = read_sources(folder, manifest).get(key, {})
    size = (
        source.stat().st_size
        if source.is_file()
        else sum(f.size for f in iter_files(source, options))
    )
    if size > LARGEST and not known:
        return None
    files = {path: FileRecord.of_list(values) for path, values in known.items()}
    return Scan(
        source, _without_deleted(files, folder),
        text_field=text_field, chunks=chunks, keep_missing=keep_missing, options=options,
        on_left_out=on_left_out, adopts=manifest.source == key and bool(manifest.next), within=within,
    )  # fmt: skip
