"""A folder with all cached adapters in PEFT's format, for engines that load them by name.

Each adapter is in a folder that is named by its id, as vLLM's filesystem resolver expects it
(`VLLM_LORA_RESOLVER_CACHE_DIR`). It appears complete, and disappears with the cached adapter.
"""

import logging
import re
import shutil
from pathlib import Path

from whet.io import atomic_write
from whet.serve.adapter_cache import CachedAdapter

log = logging.getLogger("whet.serve")
_ID = re.compile(r"ad_[0-9a-f]{32}(\.new)?")


class AdapterFolder:
    """The adapters of one running server; those of an earlier run are removed."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError if `folder` cannot be created or emptied."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.clear()

    def clear(self) -> None:
        """Remove all adapters, and nothing else."""
        for path in self._folder.iterdir():
            if _ID.fullmatch(path.name):
                shutil.rmtree(path)

    def write(self, cached: CachedAdapter) -> None:
        """Write an adapter, unless it is there: equal ids mean equal adapters.

        A failure is logged; the server itself does not need the files.
        """
        place = self._folder / cached.id
        if place.exists():
            return
        try:
            with atomic_write(place) as new:
                cached.adapter.save_pretrained(new)
        except OSError as error:
            log.error("adapter not written", extra={"adapter": cached.id, "reason": str(error)})

    def remove(self, name: str) -> None:
        """Remove the adapter with the id `name`, if it is there."""
        shutil.rmtree(self._folder / name, ignore_errors=True)
