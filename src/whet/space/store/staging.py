"""The folder of an unfinished addition, from which an interrupted one resumes.

Documents are first written to numbered parts of about 2,048; then each part is embedded. A part is
complete on disk before the next one begins, so the parts themselves are the journal. Next to each
file are its size and CRC-32: the documents of an addition with a damaged file are read again.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.documents import Document
from whet.errors import SpaceError
from whet.io import as_json, atomic_write, checksum, fsync, load_npy, write_json
from whet.maths.arrays import Array
from whet.space.store.known_documents import compare_stored
from whet.space.store.manifest import (
    EMBEDDER_FOLDER,
    FAILED_FILE,
    MANIFEST_FILE,
    REMOVED,
    STAGING,
    Manifest,
    chunking_of,
    new_id,
)
from whet.space.store.protocol import SCHEMA
from whet.space.store.reader import DiskReader
from whet.space.store.sealing import Batch
from whet.space.store.segments.records import as_strings

PART_DOCUMENTS, PART_CHARACTERS = 2048, 16_000_000  # a part ends when it reaches either
_PLAN_FILE, _COMPLETE_FILE = "plan.json", "read"
STATE_FILE = "sync.json"  # what the manifest will record of the files that are added
_SUMS = ".crc32"  # ends the name of the file with the checksums of another file, or of a folder


class Staging:
    """The folder of an unfinished addition."""

    def __init__(self, space: Path, plan: dict[str, Any], space_id: str = "") -> None:
        """Resume an addition with the same plan, or begin one.

        Plans without a source are never resumed, since their documents may differ.

        Args:
            space: The folder of the data space.
            plan: Source, embedder, fingerprint and chunks of the addition.
            space_id: `Manifest.id` of the data space.

        Raises:
            SpaceError: If an addition from another source is unfinished.
        """
        self.folder = space / STAGING
        self.resumed = False
        """Whether the addition was begun by an earlier process."""
        unfinished = staged_plan(space)
        if unfinished and "chunks" not in unfinished:  # an older version began it
            rule = chunking_of(str(unfinished.get("source", "")))
            unfinished["chunks"] = plan.get("chunks") if rule == "whole" else rule
        self.id = str(unfinished.get("id", ""))
        """Name of the addition, which the manifest lists once it is complete."""
        if unfinished.get("source") and self._is_intact():
            self.resumed = True
            if all(unfinished.get(key) == value for key, value in plan.items()):
                return
            raise SpaceError(
                f"{space} has an unfinished addition of {_format_plan(unfinished)}, not of "
                f"{_format_plan(plan)}: run that again to finish it, or drop it with `whet space "
                "compact` (if the data space is new, delete the folder)"
            )
        discard_staging(space)
        self.resumed, self.id = False, new_id()
        self.folder.mkdir()
        plan = plan | {"id": self.id, "space": space_id, "checksums": True}
        write_json(self.folder / _PLAN_FILE, plan | {"crc32": _plan_checksum(plan)})
        fsync(space)

    def _is_intact(self) -> bool:
        """Whether no file is missing or damaged.

        An older version may have been killed while it removed some. The documents of an addition
        that is not intact are read again.
        """
        if self.damaged():
            return False
        names = {path.name for path in self.folder.iterdir()}
        parts = {name for name in names if name.endswith(".arrow")}
        if parts != {self._path(part, "arrow").name for part in range(len(parts))}:
            return False
        if not {name.replace(".npy", ".arrow") for name in names if name.endswith(".npy")} <= parts:
            return False
        if _COMPLETE_FILE not in names:
            return True
        count = (self.folder / _COMPLETE_FILE).read_text("utf-8")
        return FAILED_FILE in names and count in ("", str(len(parts)))

    def damaged(self) -> list[Path]:
        """The files that are not as they were written; additions of older versions have no checksums.

        Reads all of them. The embedder may be in the data space already, see `discard_staging`.
        """
        if not staged_plan(self.folder.parent).get("checksums"):
            return []
        expected: dict[str, list[int]] = {}
        for sums in self.folder.glob(f"*{_SUMS}"):
            with suppress(ValueError, TypeError):  # damaged: its file then counts as damaged
                expected |= json.loads(sums.read_text("utf-8"))
        written = [
            p.name for p in self.folder.iterdir() if p.suffix in (".arrow", ".npy", ".failed")
        ]
        if self.read:
            written.append(FAILED_FILE)
        if (self.folder / STATE_FILE).exists():
            written.append(STATE_FILE)
        staged = self.folder / EMBEDDER_FOLDER
        if staged.is_dir():
            written += [f"{EMBEDDER_FOLDER}/{path.name}" for path in staged.iterdir()]
        if staged.is_dir() or (self.folder.parent / EMBEDDER_FOLDER).is_dir():
            written += [name for name in expected if name.startswith(f"{EMBEDDER_FOLDER}/")]
        changed = [self._changed(name, expected) for name in sorted(set(written))]
        return [path for path in changed if path is not None]

    def _changed(self, name: str, expected: dict[str, list[int]]) -> Path | None:
        path = self.folder / name
        if not path.exists() and (self.folder.parent / name).exists():
            path = self.folder.parent / name
        actual = [path.stat().st_size, checksum(path)] if path.exists() else None
        return path if actual != expected.get(name) else None

    def check(self) -> None:
        """Compare all files with their checksums, before they become part of the data space.

        Raises:
            SpaceError: If one is damaged.
        """
        if damaged := self.damaged():
            raise SpaceError(
                f"{damaged[0]} is broken: it has another checksum than when written. Nothing was added; "
                "run the same command again, which reads the documents again"
            )

    def record(self, name: str, written: Path) -> None:
        """Store checksums of a file, or of the files of a folder, that will be renamed to `name`."""
        files = {name: written}
        if written.is_dir():
            files = {f"{name}/{path.name}": path for path in written.iterdir()}
        sums = {name: [path.stat().st_size, checksum(path)] for name, path in files.items()}
        (self.folder / f"{name}{_SUMS}").write_text(json.dumps(sums), "utf-8")

    def remove(self) -> None:
        """Delete the folder."""
        discard_staging(self.folder.parent)

    @property
    def read(self) -> bool:
        """Whether all documents of the source are staged."""
        return (self.folder / _COMPLETE_FILE).exists()

    @property
    def parts(self) -> int:
        """Number of parts so far."""
        return len(list(self.folder.glob("*.arrow")))

    def put(self, documents: list[Document]) -> None:
        """Stage documents as the next part."""
        batch, path = as_records(documents), self._path(self.parts, "arrow")
        with atomic_write(path) as temporary:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as file:
                file.write_batch(batch)
            self.record(path.name, temporary)

    def end(self) -> None:
        """Record that all documents of the source are staged, and which could not be read."""
        self.record(FAILED_FILE, self.folder / FAILED_FILE)
        with atomic_write(self.folder / _COMPLETE_FILE) as temporary:
            temporary.write_text(str(self.parts), "utf-8")

    def rows(self, part: int) -> pa.RecordBatch:
        """Records of a part."""
        with pa.OSFile(str(self._path(part, "arrow"))) as source:
            return pa.ipc.open_file(source).get_batch(0)

    def count(self, part: int) -> int:
        """Number of documents of a part."""
        return len(self.rows(part))

    def embedded(self, part: int) -> bool:
        """Whether the vectors of a part are stored."""
        return self._path(part, "npy").exists()

    def embed(self, part: int, vectors: Float[Array, "n d"], failures: dict[int, str]) -> None:
        """Store the vectors of a part in float16, and the reasons why rows are NaN."""
        if failures:
            ids = as_strings(self.rows(part)["id"])
            records = [{"id": ids[i], "reason": reason} for i, reason in failures.items()]
            with atomic_write(self._path(part, "failed")) as temporary:
                temporary.write_text(json.dumps(records), "utf-8")
                self.record(self._path(part, "failed").name, temporary)
        path = self._path(part, "npy")
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, vectors)
            self.record(path.name, temporary)

    def failures(self, log: str) -> Iterator[dict[str, str]]:
        """Documents that could not be read, from the lines of `log`, or not be embedded."""
        yield from map(json.loads, (self.folder / log).read_text("utf-8").splitlines())
        for path in sorted(self.folder.glob("*.failed")):
            yield from json.loads(path.read_text("utf-8"))

    def vectors(self, part: int) -> Float[Array, "n d"]:
        """Vectors of a part."""
        return load_npy(self._path(part, "npy"))

    def batches(
        self, first: int, stored: DiskReader | None = None, going: Int[Array, " _"] | None = None
    ) -> Iterator[Batch]:
        """All documents that have vectors, with ids that count all documents from `first`.

        Documents whose id is in `stored` are left out, unless they replace its metadata, or its row
        is among those that are `going`.
        """
        for part in range(self.parts):
            rows, vectors = self.rows(part), self.vectors(part)
            valid = ~np.isnan(vectors).any(axis=1)
            if stored is not None:
                known = compare_stored(stored, rows)
                fits = (known.rows < 0) | known.updated
                valid &= fits if going is None else fits | np.isin(known.rows, going)
            if not valid.all():
                rows, vectors = rows.filter(pa.array(valid)), vectors[valid]
            if len(rows):
                yield Batch(np.arange(first, first + len(rows)), rows, vectors)
            first += len(rows)

    def replaced(self, stored: DiskReader) -> Int[Array, " _"]:
        """Rows of `stored` that the staged documents replace: of equal text, with other metadata."""
        rows = [np.empty(0, np.int64)]
        for part in range(self.parts):
            known = compare_stored(stored, self.rows(part))
            rows.append(known.rows[known.updated])
        return np.concatenate(rows)

    def _path(self, part: int, suffix: str) -> Path:
        return self.folder / f"{part:07d}.{suffix}"


def as_records(documents: list[Document]) -> pa.RecordBatch:
    """Documents as records of `SCHEMA`."""
    rows = [{"id": d.id, "text": d.text, "meta": as_json(d.meta)} for d in documents]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


class StagedTexts(Sequence[str]):
    """The staged texts, read on access; fastest when accessed in order."""

    def __init__(self, staging: Staging, include: Callable[[str], bool] | None) -> None:
        """Create the sequence.

        Args:
            staging: Where the texts are.
            include: Whether to include a text, given its metadata; None includes all.
        """
        self._staging = staging
        self._positions: list[Array] = []
        for part in range(staging.parts):
            metas = as_strings(staging.rows(part)["meta"])
            chosen = [i for i, meta in enumerate(metas) if include is None or include(meta)]
            self._positions.append(np.array(chosen, np.int64))
        self._ends = np.cumsum([len(positions) for positions in self._positions])
        self._part, self._texts = -1, pa.array([], pa.large_string())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: Any) -> Any:
        part = int(np.searchsorted(self._ends, row, side="right"))
        if part != self._part:
            self._part, self._texts = part, self._staging.rows(part)["text"]
        start = int(self._ends[part]) - len(self._positions[part])
        return self._texts[int(self._positions[part][row - start])].as_py()


def staged_plan(space: Path) -> dict[str, Any]:
    """The plan of the addition that is staged in `space`; empty if nothing is staged."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        plan = json.loads((space / STAGING / _PLAN_FILE).read_text("utf-8"))
        if isinstance(plan, dict) and plan.pop("crc32", None) in (None, _plan_checksum(plan)):
            return plan
    return {}


def _plan_checksum(plan: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(plan, sort_keys=True).encode())


def is_committed(space: Path, manifest: Manifest) -> bool:
    """Whether the addition that is staged in `space` is complete, so that it can be removed.

    The plan of the first addition with `lsa` has no fingerprint; it is complete once there is a
    manifest.
    """
    plan = staged_plan(space)
    if plan.get("id"):
        return bool(plan["id"] == manifest.addition)
    return plan.get("fingerprint") == "" and plan.get("embedder") == manifest.embedder == "lsa"


def discard_staging(space: Path) -> None:
    """Remove the staged addition of `space`; after an interruption all of it is there, or none."""
    removed = space / REMOVED
    _remove(removed)
    if not (space / MANIFEST_FILE).exists():  # an embedder was fitted on the staged documents
        _remove(space / EMBEDDER_FOLDER)
    if (space / STAGING).exists():
        (space / STAGING).rename(removed)
        fsync(space)
        _remove(removed)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _format_plan(plan: dict[str, Any]) -> str:
    shown = {key: plan.get(key) for key in ("source", "chunks", "embedder", "fingerprint")}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if value)
