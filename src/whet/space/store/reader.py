"""The embedded store: immutable segments in a folder, and one manifest that is replaced as a whole.

Reading is a matter of the manifest: a reader opens the segments that it names and stays with them,
whatever is written later. It holds a shared lock on each, so a segment that no manifest names any
longer is removed only once nobody reads it. Deleting lists ids beside the segments; `compact`
writes what is left anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from whet.data.filters import Filter, check_fields, matches
from whet.errors import EmbedderMismatchError, SpaceError
from whet.io import load
from whet.maths.arrays import Array
from whet.space.store import vectors as exact_search
from whet.space.store.id_index import hash_strings
from whet.space.store.manifest import SEGMENTS, Manifest, read_manifest
from whet.space.store.protocol import COLUMNS, SCHEMA, Metric, SearchResults
from whet.space.store.segment import RECORD, Segment
from whet.space.store.vectors import TopK, check_search, normalize_queries, rerank

Mask = Bool[Array, " _"]
KEPT = 4  # filters whose masks are remembered, a byte a row each


class DiskReader:
    """A version of the store in a folder. Safe in threads, and after a fork."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        segments: list[Segment],
        visible: list[Mask],
        whole: list[bool],
        faults: list[str],
        complete: bool = True,
    ) -> None:
        """Use `open`.

        Args:
            path: The folder.
            manifest: What it said when opened.
            segments: Those it names.
            visible: Which of their rows can be seen.
            whole: Whether all rows of a segment may be read, deleted ones included: its index is
                fitted on them, so nobody else may use it.
            faults: Segments that could not be opened, and why.
            complete: Whether a field that is in no row here is in no row of the store.
        """
        self.path, self.manifest, self.faults = path, manifest, faults
        self.dimension, self.version = manifest.dimension, manifest.version
        self.fingerprint = manifest.fingerprint
        self.segments, self._visible, self._whole = segments, visible, whole
        self._complete = complete
        self._starts = np.cumsum([0] + [segment.count for segment in segments])
        self._masks: dict[Filter, list[Mask]] = {}

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        where: Filter | None = None,
        partial: bool = False,
        fingerprint: str | None = None,
    ) -> "DiskReader":
        """The version that is there now.

        Args:
            path: The folder.
            where: A filter that nothing later can widen: see `restricted`.
            partial: Leave out segments that are broken, instead of refusing; `faults` names them.
            fingerprint: Of the embedder that will be used.

        Raises:
            SpaceError: If it is missing, unfinished, of another format, or a file is broken.
            EmbedderMismatchError: If another embedder made it.
        """
        path = Path(path)
        manifest, segments, deleted, faults = _opened(path, partial)
        if fingerprint not in (None, manifest.fingerprint):
            raise EmbedderMismatchError(
                f"data space {path} was made by embedder {manifest.embedder} with fingerprint "
                f"{manifest.fingerprint!r}, not {fingerprint!r}: rebuild it with `whet index`"
            )
        live = [
            ~np.isin(s.ids, deleted) if len(deleted) else np.ones(s.count, bool) for s in segments
        ]
        found = cls(path, manifest, segments, live, [True] * len(segments), faults)
        return found if where is None else found.filter(where)

    @classmethod
    def shard(cls, path: Path, manifest: Manifest, deleted: Int[Array, " n"]) -> "DiskReader":
        """The segments that `manifest` names, be it replaced by now or only a part of the store's.

        A filter's fields are not checked: they may be in another part.

        Raises:
            SpaceError: If a segment is broken, or gone.
        """
        try:
            segments = [_segment(path, name, manifest.version) for name in manifest.segments]
        except _Replaced:
            raise SpaceError(
                f"version {manifest.version} of {path} is gone: open the data space again"
            ) from None
        _prepare(segments, manifest)
        live = [~np.isin(segment.ids, deleted) for segment in segments]
        return cls(path, manifest, segments, live, [True] * len(segments), [], complete=False)

    def filter(self, where: Filter) -> "DiskReader":
        """See `Reader.filter`. An index that was fitted on rows that fail is not used."""
        self._check(where)
        passing = [matches(where, segment.columns) for segment in self.segments]
        return DiskReader(
            self.path,
            self.manifest,
            self.segments,
            [seen & mask for seen, mask in zip(self._visible, passing, strict=True)],
            [old and bool(m.all()) for old, m in zip(self._whole, passing, strict=True)],
            self.faults,
            self._complete,
        )

    def close(self) -> None:
        """Let the segments be swept away once they are not named any longer."""
        for segment in self.segments:
            segment.close()

    def __len__(self) -> int:
        return self.count()

    def count(self, where: Filter | None = None) -> int:
        return sum(int(np.count_nonzero(mask)) for mask in self._passing(where))

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """See `Reader.ids`."""
        masks = self._passing(where)
        found = [np.asarray(s.ids)[mask] for s, mask in zip(self.segments, masks, strict=True)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *found]))

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """What can be filtered by: each field with the kinds of its values."""
        found: dict[str, set[str]] = {"id": {"text"}}
        for segment, seen in zip(self.segments, self._visible, strict=True):
            for field, kinds in segment.columns.fields(seen).items():
                found.setdefault(field, set()).update(kinds)
        return found

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        return self._gather(self._places(ids))

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """See `Reader.rows`."""
        places = self._places(ids)
        parts, order = [pa.schema([SCHEMA.field(c) for c in columns]).empty_table()], []
        for number, chosen in self._by_segment(places):
            own = places[chosen] - self._starts[number]
            parts.append(self.segments[number].rows.take(own, columns))
            order.append(chosen)
        table = pa.concat_tables(parts)
        return table.take(pa.array(np.argsort(np.concatenate(order)))) if order else table

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """See `Reader.find`."""
        found, wanted = np.full(len(names), -1, np.int64), hash_strings(names)
        for segment, seen in zip(self.segments, self._visible, strict=True):
            maybe = segment.names.places(wanted)
            pairs = [(i, p) for i, own in enumerate(maybe) for p in own.tolist() if seen[p]]
            if pairs:
                lines, places = np.array(pairs, np.int64).T
                own_names = segment.rows.take(places, ["id"])["id"].to_pylist()
                for i, place, name in zip(lines, places, own_names, strict=True):
                    if name == names[i]:
                        found[i] = segment.ids[place]
        return found

    def search(
        self,
        queries: Any,
        k: int,
        *,
        metric: Metric = "abs_cosine",
        where: Filter | None = None,
        vectors: bool = True,
        exact: bool = False,
        probe_fraction: float | None = None,
    ) -> SearchResults:
        """See `Reader.search`. Exact in segments without an index, and where few rows pass."""
        aims = normalize_queries(queries, self.dimension)
        check_search(k, metric, probe_fraction)
        masks = self._passing(where)
        efforts = [self._effort(i, m, k, exact, probe_fraction) for i, m in enumerate(masks)]
        nominees = self._looked_at(aims, k, metric, masks, efforts)
        for line, more in enumerate(self._indexed(aims, k, metric, masks, efforts)):
            nominees[line] = np.union1d(nominees[line], more)
        pools = ((self._ids_at(places), self._gather(places)) for places in nominees)
        found = rerank(aims, pools, k, metric, vectors, self.version)
        ok, faults = len(self.segments), len(self.faults)
        sure = not faults and all(e is None for e in efforts)
        return replace(found, exact=sure, shards_ok=ok, shards=ok + faults)

    def _effort(
        self, number: int, mask: Mask, k: int, exact: bool, asked: float | None
    ) -> float | None:
        """How much of a segment's index to look into; None is to look at all rows that pass."""
        segment = self.segments[number]
        if exact or segment.measured is None or not self._whole[number]:
            return None
        probe_fraction = segment.measured.probe_fraction if asked is None else asked
        looked_at = probe_fraction * segment.count
        no_dearer = 4 * np.count_nonzero(mask) <= looked_at or 2 * k > looked_at
        return None if probe_fraction >= 1 or no_dearer else probe_fraction

    def _looked_at(
        self, aims: Float[Array, "b d"], k: int, metric: Metric, masks: list[Mask],
        efforts: list[float | None],
    ) -> list[Int[Array, " _"]]:  # fmt: skip
        """For each aim the places that may be among the nearest, where no index is used."""
        pools = [TopK(k, self.dimension) for _ in aims]
        narrow = aims.astype(np.float32).T
        size = np.abs if metric == "abs_cosine" else np.asarray
        for number, segment in enumerate(self.segments):
            if efforts[number] is not None:
                continue
            mask = None if masks[number].all() else masks[number]
            for rows, block in segment.vectors.blocks(mask):
                places = rows + self._starts[number]
                for pool, scores in zip(pools, size(block @ narrow).T, strict=True):
                    pool.offer(places, scores)
        return [pool.rows for pool in pools]

    def _indexed(
        self, aims: Float[Array, "b d"], k: int, metric: Metric, masks: list[Mask],
        efforts: list[float | None],
    ) -> list[Int[Array, " _"]]:  # fmt: skip
        """For each aim the places that the indexes nominate: some more than k, to be measured."""
        none = (np.empty(0, np.int64), np.empty(0, np.float32))
        found = [[none] for _ in aims]
        for number, probe_fraction in enumerate(efforts):
            if probe_fraction is not None:
                mask = None if masks[number].all() else masks[number]
                near = self.segments[number].index.search(aims, k, metric, probe_fraction, mask)
                for line, (rows, scores) in enumerate(near):
                    found[line].append((rows + self._starts[number], scores))
        best = []
        for parts in found:
            places, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
            wanted = k + k // 8 + 16
            if len(places) > wanted:
                places = places[np.argpartition(-scores, wanted)[:wanted]]
            best.append(places)
        return best

    def _passing(self, where: Filter | None) -> list[Mask]:
        if where is None:
            return self._visible
        masks = self._masks.get(where)
        if masks is None:
            self._check(where)
            masks = [
                seen & matches(where, segment.columns)
                for segment, seen in zip(self.segments, self._visible, strict=True)
            ]
            if len(self._masks) >= KEPT:
                self._masks = {}
            self._masks[where] = masks
        return masks

    def _check(self, where: Filter) -> None:
        if self._complete:
            check_fields(where, self.fields)

    def holds(self, ids: Any) -> Mask:
        """Which of the rows are here."""
        return self._found(np.asarray(ids, dtype=np.int64).reshape(-1)) >= 0

    def _places(self, ids: Any) -> Int[Array, " n"]:
        """Where rows are, counted over all segments."""
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        places = self._found(wanted)
        if (places < 0).any():
            raise IndexError(f"row {wanted[places < 0][0]} is not in the data space")
        return places

    def _found(self, wanted: Int[Array, " n"]) -> Int[Array, " n"]:
        """Where rows are; -1 for those that are not."""
        places = np.full(len(wanted), -1, np.int64)
        for number, (segment, seen) in enumerate(zip(self.segments, self._visible, strict=True)):
            own = segment.places(wanted)
            here = (own >= 0) & seen[own]
            places[here] = own[here] + self._starts[number]
        return places

    def _by_segment(self, places: Int[Array, " n"]) -> list[tuple[int, Int[Array, " m"]]]:
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        return [(int(n), np.flatnonzero(numbers == n)) for n in np.unique(numbers)]

    def _gather(self, places: Int[Array, " n"]) -> Float[Array, "n d"]:
        found = np.empty((len(places), self.dimension), np.float16)
        for number, chosen in self._by_segment(places):
            own = places[chosen] - self._starts[number]
            found[chosen] = self.segments[number].vectors.gather(own)
        return found

    def _ids_at(self, places: Int[Array, " n"]) -> Int[Array, " n"]:
        found = np.empty(len(places), np.int64)
        for number, chosen in self._by_segment(places):
            found[chosen] = self.segments[number].ids[places[chosen] - self._starts[number]]
        return found


class _Replaced(Exception):
    """The manifest was replaced, and its segments swept away, while they were being opened."""


def _opened(path: Path, partial: bool) -> tuple[Manifest, list[Segment], Array, list[str]]:
    """The manifest, its segments, the deleted ids, and the segments that are broken."""
    while True:
        manifest = read_manifest(path)
        segments, faults = [], []
        try:
            for name in manifest.segments:
                try:
                    segments.append(_segment(path, name, manifest.version))
                except SpaceError as error:
                    if not partial:
                        raise
                    faults.append(str(error))
            deleted = deleted_ids(path, manifest)
        except _Replaced:
            continue
        _prepare(segments, manifest)
        return manifest, segments, deleted, faults


def _prepare(segments: list[Segment], manifest: Manifest) -> None:
    size = sum(segment.count for segment in segments) * manifest.dimension * 4
    for segment in segments:
        segment.vectors.in_memory = size <= exact_search.IN_MEMORY
        segment.vectors.normalized = manifest.normalized


def _segment(path: Path, name: str, version: int) -> Segment:
    try:
        return Segment(path / SEGMENTS / name)
    except (FileNotFoundError, BlockingIOError) as error:
        raise _gone(path, path / SEGMENTS / name / RECORD, version) from error


def deleted_ids(path: Path, manifest: Manifest) -> Int[Array, " n"]:
    """Ids of rows that segments still hold."""
    if not manifest.deleted:
        return np.empty(0, np.int64)
    file = path / manifest.deleted
    try:
        return load(file)
    except FileNotFoundError as error:
        raise _gone(path, file, manifest.version) from error
    except (OSError, ValueError, EOFError) as error:
        raise SpaceError(f"{file} cannot be read: {error}") from error


def _gone(path: Path, file: Path, version: int) -> Exception:
    if read_manifest(path).version != version:
        return _Replaced()
    return SpaceError(f"{file} is missing: restore it, or open the rest with partial")
