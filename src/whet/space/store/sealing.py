"""Rows into segments: none too large, and where rows have labels, one label to an index.

What an index is fitted on shapes it. So in a labelled space a segment with an index holds the rows
of one label; rows of labels too small for an index share segments without one.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from whet.maths.arrays import Array
from whet.space.store import ann_index as index
from whet.space.store import segment
from whet.space.store.manifest import Labels
from whet.space.store.records import as_strings
from whet.space.store.segment import RECORD, SegmentWriter, read_record


class Batch(NamedTuple):
    """Some rows, ready to be stored."""

    ids: Int[Array, " n"]
    rows: pa.RecordBatch
    vectors: Float[Array, "n d"]


Batches = Callable[[], Iterator[Batch]]


def seal(
    folder: Path,
    prefix: str,
    batches: Batches,
    dimension: int,
    labels: Labels | None,
    done: Callable[[int], None],
    *,
    indexed: bool = True,
) -> list[str]:
    """Write segments of all rows of `batches`, which is read once a group; gives their names.

    A segment that is whole already is not written again, so this goes on where it was killed.

    Args:
        folder: Where the segments' folders go.
        prefix: Of their names.
        batches: Gives the same rows each time, by ascending id.
        dimension: Of the vectors.
        labels: What tells the groups.
        done: Is told how many more rows are written.
        indexed: Whether a large segment gets an index, which takes unit vectors.
    """
    groups = _groups(batches, labels)
    names: list[str] = []
    for large, count in groups.items():
        chosen = _of_group(batches, labels, large, groups)
        left: Batch | None = None
        while count:
            size = min(count, segment.MAX_ROWS)
            names.append(f"{prefix}-{len(names):05d}")
            left = _write(folder / names[-1], size, dimension, chosen, left,
                          indexed and (large is not None or labels is None), done)  # fmt: skip
            count -= size
    return names


def _groups(batches: Batches, labels: Labels | None) -> dict[Any, int]:
    """Rows of each label that has enough for an index; under None, of all others."""
    if labels is None:
        return {None: sum(len(batch.ids) for batch in batches())}
    counts: Counter[Any] = Counter()
    for batch in batches():
        counts.update(_labels(batch, labels))
    large = {label: n for label, n in counts.items() if label is not None and n >= index.MIN_ROWS}
    rest = counts.total() - sum(large.values())
    return large | ({None: rest} if rest else {})


def _of_group(
    batches: Batches, labels: Labels | None, group: Any, groups: dict[Any, int]
) -> Iterator[Batch]:
    for batch in batches():
        if labels is None:
            yield batch
            continue
        own = [label if label in groups else None for label in _labels(batch, labels)]
        kept = np.array([label == group for label in own], bool)
        if kept.any():
            yield masked(batch, kept)


def _write(
    folder: Path, count: int, dimension: int, batches: Iterator[Batch], left: Batch | None,
    indexed: bool, done: Callable[[int], None],
) -> Batch | None:  # fmt: skip
    """Write the next `count` rows, `left` of the last batch first; gives what is left of it."""
    whole = (folder / RECORD).exists() and read_record(folder)["count"] == count
    writer = None if whole else SegmentWriter(folder, count, dimension)
    while count:
        batch = left or next(batches)
        taken, left = _cut(batch, min(count, len(batch.ids)))
        if writer:
            writer.add(*taken)
        count -= len(taken.ids)
        done(len(taken.ids))
    if writer:
        writer.close(indexed=indexed)
    return left


def _cut(batch: Batch, at: int) -> tuple[Batch, Batch | None]:
    ids, rows, vectors = batch
    rest = Batch(ids[at:], rows.slice(at), vectors[at:]) if at < len(ids) else None
    return Batch(ids[:at], rows.slice(0, at), vectors[:at]), rest


def masked(batch: Batch, kept: Bool[Array, " n"]) -> Batch:
    """Some of a batch's rows."""
    return Batch(batch.ids[kept], batch.rows.filter(pa.array(kept)), batch.vectors[kept])


def _labels(batch: Batch, labels: Labels) -> list[Any]:
    return [label_of(meta, labels) for meta in as_strings(batch.rows.column("meta"))]


def label_of(meta: str, labels: Labels) -> Any:
    """A row's label; None for what cannot be one, as a list."""
    value = json.loads(meta).get(labels.field)
    return value if isinstance(value, str | int | float) else None
