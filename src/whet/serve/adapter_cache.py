"""Adapters kept in memory, so that the same selection is not trained twice.

An adapter is named by what determines it: model, what is trained and how, the data space as it was
built, its version, and the documents in order, repeats included. It belongs to the key that asked
for it: no other key can see it, use it, or find out by a hit that it exists.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from whet.adapt.adapters import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An adapter and where it comes from."""

    id: str
    owner: str
    """Id of the key that asked for it."""
    space: str
    built: str
    """Which building of the data space: its rows mean nothing in another."""
    version: str
    method: str
    rows: tuple[int, ...]
    """Rows of the documents of its steps, in order."""
    created: int
    adapter: Adapter = field(repr=False)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.adapter.weights.values())


def adapter_id(owner: str, model: str, how: str, version: str, rows: Sequence[int]) -> str:
    """`ad_` and 128 bits of a hash of everything that an adapter depends on."""
    told = json.dumps([owner, model, how, version, list(rows)])
    return f"ad_{hashlib.sha256(told.encode()).hexdigest()[:32]}"


class Adapters:
    """At most so many bytes of adapters; those not used for longest go first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.bytes = capacity, 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, owner: str, name: str) -> Kept | None:
        """The owner's adapter of that name, which counts as used now."""
        with self._turn:
            if (kept := self._kept.get((owner, name))) is not None:
                self._kept.move_to_end((owner, name))
            return kept

    def put(self, kept: Kept) -> bool:
        """Keep an adapter; False if it alone is larger than the capacity."""
        with self._turn:
            if kept.bytes > self.capacity:
                return False
            self._drop((kept.owner, kept.id))
            self._kept[kept.owner, kept.id] = kept
            self.bytes += kept.bytes
            while self.bytes > self.capacity:
                self._drop(next(iter(self._kept)))
            return True

    def drop(self, owner: str, name: str) -> bool:
        """Whether there was such an adapter."""
        with self._turn:
            return self._drop((owner, name))

    def of(self, owner: str) -> list[Kept]:
        """The owner's adapters, the latest used first."""
        with self._turn:
            return [kept for kept in reversed(self._kept.values()) if kept.owner == owner]

    def keep_only(self, space: str, built: str, rows: set[int]) -> None:
        """Drop every adapter of a data space but those trained on these rows of this building."""
        with self._turn:
            for place, kept in list(self._kept.items()):
                same = kept.built == built and rows.issuperset(kept.rows)
                if kept.space == space and not same:
                    self._drop(place)

    def _drop(self, place: tuple[str, str]) -> bool:
        kept = self._kept.pop(place, None)
        self.bytes -= kept.bytes if kept else 0
        return kept is not None
