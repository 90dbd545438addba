"""What a data space records of the files of its sources, in a file that the manifest names.

While an addition is staged, its records are in the folder of the addition; they get the rows of new
documents when it is complete.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from whet.errors import SpaceError
from whet.maths.arrays import Array
from whet.space.store.manifest import Manifest
from whet.space.store.staging import STATE_FILE

Rows = Int[Array, " n"]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was read; the values are stored in this order."""

    size: int
    modified_ns: int
    changed_ns: int
    settled: bool
    """Whether a later change must show in the size or the times."""
    digest: str
    """Hash of the bytes; empty if the file must be read again."""
    rows: tuple[tuple[int, int], ...]
    """First and last row of each run of rows that its documents have."""

    def as_list(self) -> list[Any]:
        """The values as they are stored."""
        return [self.size, self.modified_ns, self.changed_ns, self.settled, self.digest,
                [list(run) for run in self.rows]]  # fmt: skip

    @classmethod
    def of_list(cls, values: list[Any]) -> "FileRecord":
        """The record that `as_list` stored."""
        size, modified_ns, changed_ns, settled, digest, runs = values
        rows = tuple((first, last) for first, last in runs)
        return cls(size, modified_ns, changed_ns, settled, digest, rows)


Files = dict[str, FileRecord]


def runs_of(rows: Rows) -> tuple[tuple[int, int], ...]:
    """Ascending rows as first and last of each run."""
    if not len(rows):
        return ()
    ends = np.flatnonzero(np.diff(rows) != 1)
    firsts, lasts = rows[np.r_[0, ends + 1]], rows[np.r_[ends, len(rows) - 1]]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


def rows_of(runs: Iterable[Sequence[int]]) -> Rows:
    """The rows of runs, each given by its first and last row."""
    parts = [np.arange(first, last + 1) for first, last in runs]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def with_rows(state: dict[str, Any], row_of: Mapping[str, int]) -> dict[str, list[Any]]:
    """The files of a staged state, with the rows that new documents have got, by id."""
    files: dict[str, list[Any]] = {}
    for path, values in state["files"].items():
        record = FileRecord.of_list(values)
        new = [row_of[name] for name in state["ids"].get(path, ()) if name in row_of]
        runs = runs_of(np.union1d(rows_of(record.rows), np.array(new, np.int64)))
        files[path] = replace(record, rows=runs).as_list()
    return files


def staged_state(folder: Path) -> dict[str, Any]:
    """What `Scan.save` stored in the folder of an addition; empty if it is not of files."""
    with suppress(FileNotFoundError):
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text("utf-8"))
        return state
    return {}


def read_sources(folder: Path, manifest: Manifest) -> dict[str, dict[str, list[Any]]]:
    """What a data space has recorded of its sources: the files of each.

    Raises:
        SpaceError: If the record is missing or damaged.
    """
    if not manifest.sources:
        return {}
    try:
        sources: dict[str, dict[str, list[Any]]] = json.loads(
            manifest.read_file(folder, manifest.sources)
        )
    except FileNotFoundError as error:
        raise SpaceError(f"{folder / manifest.sources} is missing: restore it") from error
    return sources


def differ(old: dict[str, list[Any]], new: dict[str, list[Any]]) -> bool:
    """Whether other files, contents or rows are recorded; new times alone are not worth a write."""
    old_files, new_files = (
        {path: FileRecord.of_list(values) for path, values in files.items()} for files in (old, new)
    )
    return {p: (r.digest, r.rows) for p, r in old_files.items()} != {
        p: (r.digest, r.rows) for p, r in new_files.items()
    }
