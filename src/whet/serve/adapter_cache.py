"""Cache of LoRA adapters in memory, so that the same selection is not trained twice.

The id of an adapter is a hash of everything that determines it: the model, what is trained and how,
the build and version of the data space, and the documents in order, repeats included. An adapter
belongs to the key that asked for it: no other key can use it or learn that it exists.
"""

import hashlib
import io
import json
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from whet.adapt.adapters import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAdapter:
    """An adapter and its origin."""

    id: str
    owner: str
    """Id of the key that asked for it."""
    space_name: str
    build_id: str
    """Build of the data space; its row numbers are meaningless in another build."""
    version: str
    adapter_name: str
    """What was trained."""
    rows: tuple[int, ...]
    """Rows of the documents of its steps, in order."""
    created: int
    """Unix time in seconds."""
    adapter: Adapter = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.nbytes for tensor in self.adapter.weights.values())

    def to_zip(self) -> bytes:
        """PEFT's two files, zipped, in a folder that is named by the adapter's id."""
        archive = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            self.adapter.save_pretrained(folder)
            with zipfile.ZipFile(archive, "w") as file:
                for path in sorted(Path(folder).iterdir()):
                    file.write(path, f"{self.id}/{path.name}")
        return archive.getvalue()


def adapter_id(owner: str, adapter: str, model: str, space: str, rows: Sequence[int]) -> str:
    """`ad_` and 128 bits of a hash of everything that determines an adapter."""
    identity = json.dumps([owner, adapter, model, space, list(rows)])
    return f"ad_{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


class AdapterCache:
    """Holds adapters up to a total size, of which each owner has an equal share. Thread-safe.

    An owner's least recently used adapters make room for new ones of the same owner, so that no
    owner can empty another's share or learn of it.
    """

    def __init__(
        self, capacity: int, owners: int = 1, on_remove: Callable[[str], None] = lambda name: None
    ) -> None:
        """`capacity` is in bytes, for all of the `owners` together.

        `on_remove` is called with the id of an adapter that is no longer cached.
        """
        self._on_remove = on_remove
        self.capacity, self.num_bytes = capacity, 0
        self.share = capacity // max(1, owners)
        self._adapters: OrderedDict[tuple[str, str], CachedAdapter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._adapters)

    def get(self, owner: str, name: str) -> CachedAdapter | None:
        """The owner's adapter with the id `name`, which becomes the most recently used."""
        with self._lock:
            if (cached := self._adapters.get((owner, name))) is not None:
                self._adapters.move_to_end((owner, name))
            return cached

    def put(self, cached: CachedAdapter) -> bool:
        """Add an adapter; False if it alone is larger than its owner's share."""
        with self._lock:
            if cached.num_bytes > self.share:
                return False
            self._pop((cached.owner, cached.id))  # the same adapter
            own = [item for item in self._adapters.values() if item.owner == cached.owner]
            used = sum(item.num_bytes for item in own) + cached.num_bytes
            for item in own:
                if used <= self.share:
                    break
                used -= item.num_bytes
                self._remove((item.owner, item.id))
            self._adapters[cached.owner, cached.id] = cached
            self.num_bytes += cached.num_bytes
            return True

    def delete(self, owner: str, name: str) -> bool:
        """Delete the owner's adapter with the id `name`; False if it does not exist."""
        with self._lock:
            return self._remove((owner, name))

    def list_for(self, owner: str) -> list[CachedAdapter]:
        """The owner's adapters, the most recently used first."""
        with self._lock:
            return [cached for cached in reversed(self._adapters.values()) if cached.owner == owner]

    def evict_stale(self, space_name: str, build_id: str, rows: set[int]) -> None:
        """Keep only those adapters of a data space that were trained on `rows` of this build."""
        with self._lock:
            for key, cached in list(self._adapters.items()):
                current = cached.build_id == build_id and rows.issuperset(cached.rows)
                if cached.space_name == space_name and not current:
                    self._remove(key)

    def _remove(self, key: tuple[str, str]) -> bool:
        cached = self._pop(key)
        if cached is not None:
            self._on_remove(cached.id)
        return cached is not None

    def _pop(self, key: tuple[str, str]) -> CachedAdapter | None:
        cached = self._adapters.pop(key, None)
        self.num_bytes -= cached.num_bytes if cached else 0
        return cached
