"""A shard of a data space: an actor that opens some of its segments wherever the folder is mounted.

Shards have no state of their own. Every call names the segments and the version it refers to, so a
shard that was killed answers again as soon as it restarts, and never from another version.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from jaxtyping import Int

from whet.data.filters import Filter
from whet.maths.arrays import Array
from whet.space.store.manifest import Manifest
from whet.space.store.opening import read_deleted_ids
from whet.space.store.reader import DiskReader
from whet.space.store.segments.segment import Segment

MAX_OPEN = 8  # readers kept open; the least recently used is closed


@dataclass(frozen=True, slots=True, eq=False)
class ShardSpec:
    """What a shard needs to open its segments."""

    key: str
    """A unique key."""
    path: Path
    """Folder of the data space."""
    manifest: Manifest
    """Manifest of one version, reduced to the shard's segments."""
    deleted: Int[Array, " n"]
    """Deleted rows of these segments."""


def split_segments(reader: DiskReader, count: int) -> list[ShardSpec]:
    """Divide a store into `count` shards of similar size; some are empty if it has fewer segments.

    Args:
        reader: The store.
        count: Number of shards.
    """
    groups: list[list[Segment]] = [[] for _ in range(count)]
    for segment in sorted(reader.segments, key=lambda s: -s.count):
        min(groups, key=lambda group: sum(s.count for s in group)).append(segment)
    deleted = read_deleted_ids(reader.path, reader.manifest)
    specs = []
    for group in groups:
        own_deleted = [np.empty(0, np.int64), *(np.intersect1d(s.ids, deleted) for s in group)]
        manifest = replace(reader.manifest, segments=[s.name for s in group])
        specs.append(ShardSpec(uuid4().hex, reader.path, manifest, np.concatenate(own_deleted)))
    return specs


class Partial(NamedTuple):
    """A shard's share of the rows that were requested."""

    indices: Int[Array, " n"]
    """Indices of its rows in the request."""
    values: Any


def _vectors(reader: DiskReader, ids: Int[Array, " m"]) -> Partial:
    indices = np.flatnonzero(reader.contains(ids))
    return Partial(indices, reader.vectors(ids[indices]))


def _vector_blocks(reader: DiskReader, ids: Int[Array, " m"], blocks: int) -> list[Array]:
    return np.array_split(reader.vectors(ids), blocks)


def _rows(reader: DiskReader, ids: Int[Array, " m"], columns: Sequence[str]) -> Partial:
    indices = np.flatnonzero(reader.contains(ids))
    return Partial(indices, reader.rows(ids[indices], columns))


METHODS: dict[str, Callable[..., Any]] = {
    "search": DiskReader.search,
    "ids": DiskReader.ids,
    "count": DiskReader.count,
    "find": DiskReader.find,
    "fields": lambda reader: reader.fields,
    "vectors": _vectors,
    "vector_blocks": _vector_blocks,
    "rows": _rows,
    "load_lsa": DiskReader.load_lsa,
}


class Shard:
    """The actor's class."""

    def __init__(self) -> None:
        self._readers: OrderedDict[Any, DiskReader] = OrderedDict()

    def call(
        self,
        spec: ShardSpec,
        reader_filter: Filter | None,
        method: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call one of `METHODS` on the rows of a shard that pass the filter; no others leave it."""
        return METHODS[method](self._open(spec, reader_filter), *args, **kwargs)

    def _open(self, spec: ShardSpec, reader_filter: Filter | None) -> DiskReader:
        key = spec.key, reader_filter
        if key not in self._readers:
            reader = DiskReader.open_shard(spec.path, spec.manifest, spec.deleted)
            self._readers[key] = reader if reader_filter is None else reader.filter(reader_filter)
        self._readers.move_to_end(key)
        while len(self._readers) > MAX_OPEN:
            self._readers.popitem(last=False)
        return self._readers[key]
