"""Reading the store on disk: immutable segments and a manifest that is replaced as a whole.

A reader opens the segments that the manifest names and keeps them, whatever is written later. It
holds a shared lock on each of them, so a segment that the manifest no longer names is removed only
when nobody reads it. Deletions are lists of ids next to the segments; `DiskWriter.compact` rewrites
the remaining rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from whet.data.filters import LONGEST, Filter, In, check_fields, matches
from whet.data.values import read_meta
from whet.embed.lsa import LSA
from whet.errors import EmbedderMismatchError, SpaceError
from whet.maths.arrays import Array
from whet.space.store.manifest import Manifest
from whet.space.store.opening import (
    ManifestReplaced,
    configure_vectors,
    load_lsa,
    open_segment,
    open_segments,
)
from whet.space.store.protocol import COLUMNS, SCHEMA, Metric, SearchResults
from whet.space.store.sealing import Batch
from whet.space.store.segments.records import BATCH_ROWS, hash_strings
from whet.space.store.segments.segment import Segment
from whet.space.store.segments.vectors import TopK, check_search, normalize_queries, rerank

Mask = Bool[Array, " _"]
CACHED_FILTERS = 4  # filters whose masks are cached, one byte per row each


class DiskReader:
    """A snapshot of the store in a folder. Thread-safe, and usable after a fork.

    Positions number the rows of all segments, one segment after another.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        segments: list[Segment],
        visible: list[Mask],
        unfiltered: list[bool],
        errors: list[str],
        complete: bool = True,
    ) -> None:
        """Use `open` instead.

        Args:
            path: The folder.
            manifest: The manifest when it was opened.
            segments: The segments it names.
            visible: Which rows of each segment are visible.
            unfiltered: Whether no filter hides rows of a segment. An index is fitted on all rows of
                its segment, deleted ones included, so filtered readers must not use it.
            errors: Descriptions of segments that could not be opened.
            complete: Whether these are all segments of the store, so that unknown fields of a
                filter can be reported.
        """
        self.path, self.manifest, self.errors = path, manifest, errors
        self.dimension, self.version = manifest.dimension, manifest.version
        self.fingerprint = manifest.fingerprint
        self.segments, self._visible, self._unfiltered = segments, visible, unfiltered
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
        """Open the latest version.

        Args:
            path: The folder.
            where: See `filter`.
            partial: Skip broken segments instead of raising; `errors` describes them.
            fingerprint: The expected fingerprint of the embedder.

        Raises:
            SpaceError: If the store is missing, unfinished or of another format, or a file is
                broken.
            EmbedderMismatchError: If another embedder made it.
        """
        path = Path(path)
        manifest, segments, deleted, errors = open_segments(path, partial)
        if fingerprint not in (None, manifest.fingerprint):
            raise EmbedderMismatchError(
                f"data space {path} was made by embedder {manifest.embedder} with fingerprint "
                f"{manifest.fingerprint!r}, not {fingerprint!r}: rebuild it with `whet index`"
            )
        visible = [
            ~np.isin(s.ids, deleted) if len(deleted) else np.ones(s.count, bool) for s in segments
        ]
        reader = cls(path, manifest, segments, visible, [True] * len(segments), errors)
        return reader if where is None else reader.filter(where)

    @classmethod
    def open_shard(cls, path: Path, manifest: Manifest, deleted: Int[Array, " n"]) -> "DiskReader":
        """Open the segments of `manifest`, which may be an older one or name only some segments.

        The fields of filters are not checked, since other shards may have them.

        Raises:
            SpaceError: If a segment is broken or was removed.
        """
        try:
            segments = [open_segment(path, name, manifest) for name in manifest.segments]
        except ManifestReplaced:
            raise SpaceError(
                f"version {manifest.version} of {path} was removed: open the data space again"
            ) from None
        configure_vectors(segments, manifest)
        visible = [~np.isin(segment.ids, deleted) for segment in segments]
        return cls(path, manifest, segments, visible, [True] * len(segments), [], complete=False)

    def filter(self, where: Filter) -> "DiskReader":
        """See `Reader.filter`. Indexes that were fitted on hidden rows are not used."""
        self._check_fields(where)
        masks = [matches(where, segment.metadata) for segment in self.segments]
        return DiskReader(
            self.path,
            self.manifest,
            self.segments,
            [visible & mask for visible, mask in zip(self._visible, masks, strict=True)],
            [old and bool(m.all()) for old, m in zip(self._unfiltered, masks, strict=True)],
            self.errors,
            self._complete,
        )

    def close(self) -> None:
        """Allow the segments to be removed once the manifest no longer names them."""
        for segment in self.segments:
            segment.close()

    def __len__(self) -> int:
        return self.count()

    def count(self, where: Filter | None = None) -> int:
        """See `Reader.count`."""
        return sum(int(np.count_nonzero(mask)) for mask in self._passing(where))

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """See `Reader.ids`."""
        masks = self._passing(where)
        parts = [np.asarray(s.ids)[mask] for s, mask in zip(self.segments, masks, strict=True)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """Fields that filters can use, each with the kinds of its values."""
        fields: dict[str, set[str]] = {"id": {"text"}}
        for segment, visible in zip(self.segments, self._visible, strict=True):
            for field, kinds in segment.metadata.fields(visible).items():
                fields.setdefault(field, set()).update(kinds)
        return fields

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """See `Reader.vectors`."""
        return self._gather_vectors(self._positions(ids))

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """See `Reader.rows`."""
        positions = self._positions(ids)
        parts, order = [pa.schema([SCHEMA.field(c) for c in columns]).empty_table()], []
        for number, chosen in self._by_segment(positions):
            in_segment = positions[chosen] - self._starts[number]
            parts.append(self.segments[number].records.take(in_segment, columns))
            order.append(chosen)
        table = pa.concat_tables(parts)
        return table.take(pa.array(np.argsort(np.concatenate(order)))) if order else table

    def batches(self) -> Iterator[Batch]:
        """All rows by ascending id, for a writer."""
        ids = self.ids()
        for start in range(0, len(ids), BATCH_ROWS):
            batch_ids = ids[start : start + BATCH_ROWS]
            [rows] = self.rows(batch_ids).combine_chunks().to_batches()
            yield Batch(batch_ids, rows, self.vectors(batch_ids))

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """See `Reader.find`."""
        return np.array([rows[-1] if rows else -1 for rows in self.find_all(names)], np.int64)

    def find_all(self, names: Sequence[str]) -> list[list[int]]:
        """Rows of all documents with each id.

        There are several if a key of the server wrote an id that a document it cannot read has.
        """
        rows, hashes = [list[int]() for _ in names], hash_strings(names)
        for segment, visible in zip(self.segments, self._visible, strict=True):
            candidates = segment.id_index.candidates(hashes)
            pairs = [
                (i, p) for i, places in enumerate(candidates) for p in places.tolist() if visible[p]
            ]
            if pairs:
                lines, positions = np.array(pairs, np.int64).T
                stored_names = segment.records.take(positions, ["id"])["id"].to_pylist()
                for i, position, name in zip(lines, positions, stored_names, strict=True):
                    if name == names[i]:
                        rows[i].append(int(segment.ids[position]))
        return rows

    def load_lsa(self) -> LSA:
        """The `lsa` embedder that is stored in the folder. Raises SpaceError if it is broken."""
        return load_lsa(self.path, self.manifest)

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
        """See `Reader.search`. Segments without an index, or with few passing rows, are scanned."""
        units = normalize_queries(queries, self.dimension)
        check_search(k, metric, probe_fraction)
        masks = self._passing(where)
        fractions = [
            self._probe_fraction(number, mask, k, exact, probe_fraction)
            for number, mask in enumerate(masks)
        ]
        indexed, scans = self._search_indexes(
            units, k, metric, masks, fractions, until_stable=probe_fraction is None
        )
        scanned = self._scan(units, k, metric, masks, scans)
        candidates = [np.union1d(*pair) for pair in zip(scanned, indexed, strict=True)]
        pools = ((self._ids_at(p), self._gather_vectors(p)) for p in candidates)
        results = rerank(units, pools, k, metric, vectors, self.version)
        opened, failed = len(self.segments), len(self.errors)
        all_scanned = not failed and all(len(scan) == len(units) for scan in scans)
        return replace(results, exact=all_scanned, shards_ok=opened, shards=opened + failed)

    def _probe_fraction(
        self, number: int, mask: Mask, k: int, exact: bool, requested: float | None
    ) -> float | None:
        """The share of a segment's index to search; None scans all rows that pass."""
        segment = self.segments[number]
        if exact or segment.index_stats is None or not self._unfiltered[number]:
            return None
        fraction = segment.index_stats.probe_fraction if requested is None else requested
        probed_rows = fraction * segment.count
        scan_is_as_fast = 4 * np.count_nonzero(mask) <= probed_rows or 2 * k > probed_rows
        return None if fraction >= 1 or scan_is_as_fast else fraction

    def _search_indexes(
        self, queries: Float[Array, "b d"], k: int, metric: Metric, masks: list[Mask],
        fractions: list[float | None], *, until_stable: bool,
    ) -> tuple[list[Int[Array, " _"]], list[list[int]]]:  # fmt: skip
        """Candidates of each query from the indexes, and the queries that must scan each segment.

        Candidates are positions, somewhat more than k. A query scans a segment if its index is not
        used, or proposes fewer than k of the rows that pass.
        """
        scans: list[list[int]] = []
        results: list[list[tuple[Array, Array]]] = [[] for _ in queries]
        for number, fraction in enumerate(fractions):
            if fraction is None:
                scans.append(list(range(len(queries))))
                continue
            mask, index = masks[number], self.segments[number].index
            parts: list[Any]
            if mask.all():
                parts = list(index.search(queries, k, metric, fraction))
            else:
                parts = [
                    index.search_visible(
                        query, k, metric, fraction, mask, until_stable=until_stable
                    )
                    for query in queries
                ]
            scans.append([i for i, part in enumerate(parts) if part is None or len(part[0]) < k])
            for i in set(range(len(queries))) - set(scans[-1]):
                rows, scores = parts[i]
                results[i].append((rows + self._starts[number], scores))
        return [_best(parts, k + k // 8 + 16) for parts in results], scans

    def _scan(
        self, queries: Float[Array, "b d"], k: int, metric: Metric, masks: list[Mask],
        scans: list[list[int]],
    ) -> list[Int[Array, " _"]]:  # fmt: skip
        """Candidates of each query, as positions, from the segments that the query scans."""
        tops = [TopK(k, self.dimension) for _ in queries]
        narrow = queries.astype(np.float32).T
        size = np.abs if metric == "abs_cosine" else np.asarray
        for number, segment in enumerate(self.segments):
            if not scans[number]:
                continue
            mask = None if masks[number].all() else masks[number]
            for rows, block in segment.vectors.blocks(mask):
                positions = rows + self._starts[number]
                products = size(block @ narrow[:, scans[number]]).T
                for i, scores in zip(scans[number], products, strict=True):
                    tops[i].offer(positions, scores)
        return [top.rows for top in tops]

    def _passing(self, where: Filter | None) -> list[Mask]:
        """Which rows of each segment are visible and pass the filter."""
        if where is None:
            return self._visible
        masks = self._masks.get(where)
        if masks is None:
            self._check_fields(where)
            masks = [
                visible & matches(where, segment.metadata)
                for segment, visible in zip(self.segments, self._visible, strict=True)
            ]
            if len(self._masks) >= CACHED_FILTERS:
                self._masks = {}
            self._masks[where] = masks
        return masks

    def _check_fields(self, where: Filter) -> None:
        if self._complete:
            check_fields(where, self.fields)

    def contains(self, ids: Any) -> Mask:
        """Which of the given rows are visible here."""
        return self._find_positions(np.asarray(ids, dtype=np.int64).reshape(-1)) >= 0

    def _positions(self, ids: Any) -> Int[Array, " n"]:
        """Positions of rows. Raises IndexError for an unknown row."""
        rows = np.asarray(ids, dtype=np.int64).reshape(-1)
        positions = self._find_positions(rows)
        if (positions < 0).any():
            raise IndexError(f"row {rows[positions < 0][0]} is not in the data space")
        return positions

    def _find_positions(self, rows: Int[Array, " n"]) -> Int[Array, " n"]:
        """Positions of rows; -1 for unknown ones."""
        positions = np.full(len(rows), -1, np.int64)
        for number, (segment, visible) in enumerate(zip(self.segments, self._visible, strict=True)):
            in_segment = segment.positions(rows)
            known = (in_segment >= 0) & visible[in_segment]
            positions[known] = in_segment[known] + self._starts[number]
        return positions

    def _by_segment(self, positions: Int[Array, " n"]) -> list[tuple[int, Int[Array, " m"]]]:
        """Segment numbers, each with the indices of the positions in that segment."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return [(int(n), np.flatnonzero(numbers == n)) for n in np.unique(numbers)]

    def _gather_vectors(self, positions: Int[Array, " n"]) -> Float[Array, "n d"]:
        vectors = np.empty((len(positions), self.dimension), np.float16)
        for number, chosen in self._by_segment(positions):
            in_segment = positions[chosen] - self._starts[number]
            vectors[chosen] = self.segments[number].vectors.gather(in_segment)
        return vectors

    def _ids_at(self, positions: Int[Array, " n"]) -> Int[Array, " n"]:
        ids = np.empty(len(positions), np.int64)
        for number, chosen in self._by_segment(positions):
            ids[chosen] = self.segments[number].ids[positions[chosen] - self._starts[number]]
        return ids


def find_with_passages(reader: DiskReader, names: Sequence[str]) -> Int[Array, " n"]:
    """Rows of the documents with these ids, and of the passages that were cut from such documents.

    Unknown ids are ignored.
    """
    rows = {row for found in reader.find_all(names) for row in found}
    short = tuple(name for name in names if len(name) <= LONGEST)
    if short and "parent" in reader.fields:
        cut = reader.ids(In("parent", short))
        metas = [read_meta(meta) for meta in reader.rows(cut, ["meta"])["meta"].to_pylist()]
        rows |= {row for row, meta in zip(cut.tolist(), metas, strict=True) if "span" in meta}
    return np.array(sorted(rows), np.int64)


def _best(parts: list[tuple[Array, Array]], limit: int) -> Int[Array, " _"]:
    """The at most `limit` positions of largest score among several parts."""
    if not parts:
        return np.empty(0, np.int64)
    positions, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    if len(positions) > limit:
        positions = positions[np.argpartition(-scores, limit)[:limit]]
    best: Array = positions
    return best
