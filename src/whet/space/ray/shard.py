"""A shard of a data space: some of its segments, opened wherever the folder can be read.

A shard keeps nothing of its own. Each question says of which part of which version it is, so one
that was killed answers again as soon as it is back, and no question meets rows of another version.
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
from whet.embed.lsa import LSA
from whet.maths.arrays import Array
from whet.space.store.manifest import Manifest
from whet.space.store.reader import DiskReader, deleted_ids
from whet.space.store.staging import EMBEDDER_FOLDER

KEPT = 8  # opened at once; the one not asked for longest is closed


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a shard needs to open its segments."""

    key: str
    """Its own, and no other's."""
    path: Path
    manifest: Manifest
    """Of one version, with the shard's own segments."""
    deleted: Int[Array, " n"]
    """The shard's rows that cannot be seen."""


def parts(segments: DiskReader, count: int) -> list[Part]:
    """An opened store in `count` parts of about as many rows; some are empty if it has fewer
    segments."""
    own: list[list[Any]] = [[] for _ in range(count)]
    for segment in sorted(segments.segments, key=lambda s: -s.count):
        min(own, key=lambda some: sum(s.count for s in some)).append(segment)
    deleted = deleted_ids(segments.path, segments.manifest)
    made = []
    for some in own:
        here = [np.empty(0, np.int64), *(np.intersect1d(s.ids, deleted) for s in some)]
        manifest = replace(segments.manifest, segments=[s.name for s in some])
        made.append(Part(uuid4().hex, segments.path, manifest, np.concatenate(here)))
    return made


class Held(NamedTuple):
    """What a shard has of the rows that were asked for."""

    places: Int[Array, " n"]
    """Of those rows among all that were asked for."""
    values: Any


def _vectors(segments: DiskReader, ids: Int[Array, " m"]) -> Held:
    places = np.flatnonzero(segments.holds(ids))
    return Held(places, segments.vectors(ids[places]))


def _cut_vectors(segments: DiskReader, ids: Int[Array, " m"], parts: int) -> list[Array]:
    return np.array_split(segments.vectors(ids), parts)


def _rows(segments: DiskReader, ids: Int[Array, " m"], columns: Sequence[str]) -> Held:
    places = np.flatnonzero(segments.holds(ids))
    return Held(places, segments.rows(ids[places], columns))


def _lsa(segments: DiskReader) -> LSA:
    return LSA.load(segments.path / EMBEDDER_FOLDER)


QUESTIONS: dict[str, Callable[..., Any]] = {
    "search": DiskReader.search,
    "ids": DiskReader.ids,
    "count": DiskReader.count,
    "find": DiskReader.find,
    "fields": lambda segments: segments.fields,
    "vectors": _vectors,
    "cut vectors": _cut_vectors,
    "rows": _rows,
    "lsa": _lsa,
}


class Shard:
    """What an actor runs."""

    def __init__(self) -> None:
        self._opened: OrderedDict[Any, DiskReader] = OrderedDict()

    def ask(
        self, part: Part, bound: Filter | None, question: str, *asked: Any, **named: Any
    ) -> Any:
        """The answer of the part's rows that pass `bound`: nothing of others leaves the shard."""
        return QUESTIONS[question](self._open(part, bound), *asked, **named)

    def _open(self, part: Part, bound: Filter | None) -> DiskReader:
        key = part.key, bound
        if key not in self._opened:
            whole = DiskReader.shard(part.path, part.manifest, part.deleted)
            self._opened[key] = whole if bound is None else whole.filter(bound)
        self._opened.move_to_end(key)
        while len(self._opened) > KEPT:
            self._opened.popitem(last=False)
        return self._opened[key]
