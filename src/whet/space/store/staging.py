"""What an unfinished addition has got so far, so that a killed one goes on where it stopped.

Documents are spooled to numbered parts of about 2,048, then each part is embedded. A part is on the
disk, whole, before the next is begun: that is the journal.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from whet.data.documents import Document
from whet.errors import SpaceError
from whet.io import as_json, atomic_write, load, sync, write_json
from whet.maths.arrays import Array
from whet.space.store.id_index import hash_strings
from whet.space.store.protocol import SCHEMA
from whet.space.store.records import as_strings
from whet.space.store.sealing import Batch

PART_DOCUMENTS, PART_CHARACTERS = 2048, 16_000_000  # a part ends at the first of these
EMBEDDER_FOLDER = "embedder"  # the folder of an embedder that is fitted on the data space itself


class Staging:
    """The folder of an unfinished addition."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        """Go on with what was begun by the same plan, or begin; one without a source begins anew,
        since its documents may be others.

        Raises:
            SpaceError: If an addition of another source was begun there.
        """
        self.folder = folder
        begun = _begun(folder)
        if begun and begun["source"]:
            if begun == plan:
                return
            raise SpaceError(
                f"{folder.parent} has an unfinished addition of {_told(begun)}, not of "
                f"{_told(plan)}: run that again to finish it, or drop it with `whet space "
                "compact` (of a new data space: delete the folder)"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_json(folder / "plan.json", plan)
        sync(folder.parent)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def read(self) -> bool:
        """Whether all documents of the source are here."""
        return (self.folder / "read").exists()

    @property
    def parts(self) -> int:
        return len(list(self.folder.glob("*.arrow")))

    def put(self, documents: list[Document]) -> None:
        """A further part."""
        rows = [{"id": d.id, "text": d.text, "meta": as_json(d.meta)} for d in documents]
        batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
        with (
            atomic_write(self._path(self.parts, "arrow")) as new,
            pa.OSFile(str(new), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as file,
        ):
            file.write_batch(batch)

    def end(self) -> None:
        """All documents are here."""
        with atomic_write(self.folder / "read") as new:
            new.touch()

    def rows(self, part: int) -> pa.RecordBatch:
        with pa.OSFile(str(self._path(part, "arrow"))) as source:
            return pa.ipc.open_file(source).get_batch(0)

    def count(self, part: int) -> int:
        """Documents of a part."""
        with pa.OSFile(str(self._path(part, "arrow"))) as source:
            return len(pa.ipc.open_file(source).get_batch(0))

    def embedded(self, part: int) -> bool:
        return self._path(part, "npy").exists()

    def embed(self, part: int, vectors: Float[Array, "n d"], failures: dict[int, str]) -> None:
        """The vectors of a part as they are stored, a row of NaN where there is a failure."""
        if failures:
            names = as_strings(self.rows(part)["id"])
            told = [{"id": names[i], "reason": reason} for i, reason in failures.items()]
            write_json(self._path(part, "failed"), told)
        with atomic_write(self._path(part, "npy")) as new, new.open("wb") as file:
            np.save(file, vectors)

    def failures(self, log: str) -> Iterator[dict[str, str]]:
        """What could not be read, of the lines of `log`, or not be embedded."""
        yield from map(json.loads, (self.folder / log).read_text("utf-8").splitlines())
        for path in sorted(self.folder.glob("*.failed")):
            yield from json.loads(path.read_text("utf-8"))

    def vectors(self, part: int) -> Float[Array, "n d"]:
        return load(self._path(part, "npy"))

    def batches(self, first: int) -> Iterator[Batch]:
        """Documents with their vectors; ids count from `first`. Those without a vector are left
        out."""
        for part in range(self.parts):
            rows, vectors = self.rows(part), self.vectors(part)
            good = ~np.isnan(vectors).any(axis=1)
            if not good.all():
                rows, vectors = rows.filter(pa.array(good)), vectors[good]
            if len(rows):
                yield Batch(np.arange(first, first + len(rows)), rows, vectors)
            first += len(rows)

    def _path(self, part: int, kind: str) -> Path:
        return self.folder / f"{part:07d}.{kind}"


class StagedTexts(Sequence[str]):
    """The texts that are staged, each read when asked for; best asked in order."""

    def __init__(self, staging: Staging, kept: Callable[[str], bool] | None) -> None:
        """Args:
        staging: Where they are.
        kept: Tells by its metadata whether a text is among them.
        """
        self._staging = staging
        self._places: list[Array] = []
        for part in range(staging.parts):
            metas = as_strings(staging.rows(part)["meta"])
            chosen = [i for i, meta in enumerate(metas) if kept is None or kept(meta)]
            self._places.append(np.array(chosen, np.int64))
        self._ends = np.cumsum([len(places) for places in self._places])
        self._part, self._read = -1, pa.array([], pa.large_string())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: Any) -> Any:
        part = int(np.searchsorted(self._ends, row, side="right"))
        if part != self._part:
            self._part, self._read = part, self._staging.rows(part)["text"]
        start = int(self._ends[part]) - len(self._places[part])
        return self._read[int(self._places[part][row - start])].as_py()


class SeenIds:
    """The texts of the ids met so far, by their hashes: 16 bytes a document."""

    def __init__(self) -> None:
        self._names, self._texts = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._new: dict[int, int] = {}

    def same(self, name: str, text: str) -> bool | None:
        """Whether `name` was met with this text; None if it is met for the first time."""
        key, value = (int(h) for h in hash_strings([name, text]))
        was = self._new.get(key)
        if was is None:
            place = int(np.searchsorted(self._names, np.uint64(key)))
            if place < len(self._names) and int(self._names[place]) == key:
                was = int(self._texts[place])
        if was is not None:
            return was == value
        self._new[key] = value
        if len(self._new) >= 65_536:
            self._merge()
        return None

    def _merge(self) -> None:
        names = np.concatenate([self._names, np.fromiter(self._new, np.uint64, len(self._new))])
        texts = np.fromiter(self._new.values(), np.uint64, len(self._new))
        order = np.argsort(names, kind="stable")
        self._names, self._texts = names[order], np.concatenate([self._texts, texts])[order]
        self._new = {}


def _begun(folder: Path) -> dict[str, Any]:
    """The plan of the unfinished addition in `folder`; empty if there is none."""
    with suppress(FileNotFoundError, ValueError):
        plan: dict[str, Any] = json.loads((folder / "plan.json").read_text("utf-8"))
        return plan
    return {}


def _told(plan: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in plan.items() if value)
