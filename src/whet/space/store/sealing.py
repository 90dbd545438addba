"""Checks rows and divides them into segments: none too large, and with labels, one per index.

The rows on which an index is fitted determine its layout. In a data space with access labels, a
segment with an index therefore contains rows of a single label; rows of labels that are too small
for an index share segments without one.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from whet.data.filters import Filter
from whet.maths.arrays import Array
from whet.space.store.manifest import Labels
from whet.space.store.protocol import Reader
from whet.space.store.segments import ann_index, segment
from whet.space.store.segments.records import as_row_numbers, as_strings
from whet.space.store.segments.segment import SegmentWriter, is_complete_segment
from whet.space.store.segments.vectors import non_unit_rows


class Batch(NamedTuple):
    """Rows to be stored."""

    ids: Int[Array, " n"]
    rows: pa.RecordBatch
    vectors: Float[Array, "n d"]


Batches = Callable[[], Iterator[Batch]]
"""Returns the same batches on every call, by ascending id."""


def seal(
    folder: Path,
    name: Callable[[int], str],
    batches: Batches,
    dimension: int,
    labels: Labels | None,
    progress: Callable[[int], None],
    *,
    indexed: bool = True,
) -> list[str]:
    """Write segments of all rows of `batches`.

    Segments that are complete already are not written again, so an interrupted call resumes.

    Args:
        folder: Folder for the segments.
        name: Returns the name of the n-th of them.
        batches: The rows; read once, or with labels once per label that has an index.
        dimension: Length of the vectors.
        labels: Access labels, if rows have any.
        progress: Called with the number of rows written since the last call.
        indexed: Whether large segments get an index, which requires unit vectors.

    Returns:
        Names of the segments.
    """
    groups = _count_groups(batches, labels)
    names: list[str] = []
    for label, count in groups.items():
        group_batches = _select_group(batches, labels, label, groups)
        rest: Batch | None = None
        while count:
            size = min(count, segment.MAX_ROWS)
            names.append(name(len(names)))
            rest = _write(folder / names[-1], size, dimension, group_batches, rest,
                          indexed and (label is not None or labels is None), progress)  # fmt: skip
            count -= size
    return names


def _count_groups(batches: Batches, labels: Labels | None) -> dict[Any, int]:
    """Number of rows of each label with enough rows for an index, and under None of all others."""
    if labels is None:
        return {None: sum(len(batch.ids) for batch in batches())}
    counts: Counter[Any] = Counter()
    for batch in batches():
        counts.update(_labels(batch, labels))
    large = {
        label: count
        for label, count in counts.items()
        if label is not None and count >= ann_index.MIN_ROWS
    }
    rest = counts.total() - sum(large.values())
    return large | ({None: rest} if rest else {})


def _select_group(
    batches: Batches, labels: Labels | None, group: Any, groups: dict[Any, int]
) -> Iterator[Batch]:
    for batch in batches():
        if labels is None:
            yield batch
            continue
        row_groups = [label if label in groups else None for label in _labels(batch, labels)]
        mask = np.array([row_group == group for row_group in row_groups], bool)
        if mask.any():
            yield _filter_batch(batch, mask)


def _write(
    folder: Path, count: int, dimension: int, batches: Iterator[Batch], rest: Batch | None,
    indexed: bool, progress: Callable[[int], None],
) -> Batch | None:  # fmt: skip
    """Write a segment of the next `count` rows, `rest` first; returns the rest of the last batch."""
    complete = is_complete_segment(folder, count)
    writer = None if complete else SegmentWriter(folder, count, dimension)
    while count:
        batch = rest or next(batches)
        head, rest = _split_batch(batch, min(count, len(batch.ids)))
        if writer:
            writer.add(*head)
        count -= len(head.ids)
        progress(len(head.ids))
    if writer:
        writer.close(indexed=indexed)
    return rest


def _split_batch(batch: Batch, at: int) -> tuple[Batch, Batch | None]:
    ids, rows, vectors = batch
    rest = Batch(ids[at:], rows.slice(at), vectors[at:]) if at < len(ids) else None
    return Batch(ids[:at], rows.slice(0, at), vectors[:at]), rest


def _filter_batch(batch: Batch, mask: Bool[Array, " n"]) -> Batch:
    return Batch(batch.ids[mask], batch.rows.filter(pa.array(mask)), batch.vectors[mask])


def _labels(batch: Batch, labels: Labels) -> list[Any]:
    return [label_of(meta, labels) for meta in as_strings(batch.rows.column("meta"))]


def label_of(meta: str, labels: Labels) -> Any:
    """The label of a row with metadata `meta` (JSON); None if the value cannot be a label."""
    value = json.loads(meta).get(labels.field)
    return value if isinstance(value, str | int | float) else None


def check_addition(
    rows: pa.Table, vectors: Float[Array, "n d"], snapshot: Reader, *, normalized: bool = True
) -> None:
    """Check the arguments of `Writer.add` against what is stored.

    Raises:
        ValueError: See `Writer.add`.
    """
    if vectors.shape != (len(rows), snapshot.dimension):
        raise ValueError(
            f"vectors have shape {vectors.shape}: expected {len(rows)} rows of dimension "
            f"{snapshot.dimension}"
        )
    wide = vectors.astype(np.float32) if vectors.dtype == np.float16 else vectors
    invalid = non_unit_rows(wide)
    if normalized and len(invalid):
        length = np.linalg.norm(wide[invalid[0]])
        raise ValueError(f"vector {invalid[0]} has length {length}: expected 1, or 0")
    ids = rows["id"].to_pylist()
    stored = np.flatnonzero(snapshot.find(ids) >= 0)
    if len(stored):
        raise ValueError(f"document {ids[stored[0]]!r} is stored already: delete it first")
    if len(set(ids)) < len(ids):
        repeated = next(id for id in ids if ids.count(id) > 1)
        raise ValueError(f"document {repeated!r} is repeated: ids must be unique")


def rows_to_delete(snapshot: Reader, ids: Any, where: Filter | None) -> Array:
    """The stored rows that the arguments of `Writer.delete` select.

    Raises:
        ValueError: See `Writer.delete`.
    """
    if (ids is None) == (where is None):
        raise ValueError("delete takes either ids or a filter: pass one of them")
    rows = snapshot.ids(where)
    return rows if ids is None else np.intersect1d(rows, as_row_numbers(ids))
