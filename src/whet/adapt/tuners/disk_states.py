"""Hidden states of texts on disk, so that another process need not compute them again.

A text is one file: its states in float16, then their CRC-32. Files are in a folder that is named by
the model's fingerprint and the layer, so those of another model or layer are never read.
"""

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LOGGER = logging.getLogger(__name__)
DTYPE = np.dtype("<f2")
CHECKSUM = 4  # bytes
FREED = (
    0.9  # of the limit is left after old files were removed, so that not every write removes some
)
ABANDONED_S = 3600.0  # after which a temporary file belongs to no writer


class DiskStates:
    """The states of texts in a folder, the most recently used ones up to a size.

    A file that is damaged is ignored and removed. When the disk cannot be written, one warning is
    logged, and nothing more is stored. Several processes may share a folder.
    """

    def __init__(self, folder: Path, name: str, max_bytes: int) -> None:
        """Nothing is read or created yet.

        Args:
            folder: Where the files of all models are; `max_bytes` is for all of them.
            name: What the states depend on, other than the text: the model and the layer.
            max_bytes: Size beyond which the least recently used files are removed.
        """
        self._root, self._folder, self._max_bytes = folder, folder / name, max_bytes
        self._size: int | None = None  # of all files; None until it was measured
        self._writable = True

    def read(self, text: bytes, tokens: int) -> Float[Tensor, "t d"] | None:
        """The states of a text of `tokens` tokens, as float32; None if they are not stored."""
        path = self._path(text)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        states, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        row = tokens * DTYPE.itemsize
        if zlib.crc32(states).to_bytes(CHECKSUM, "little") != checksum or len(states) % row:
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        array = np.frombuffer(states, DTYPE).reshape(tokens, -1)
        return torch.from_numpy(array.astype(np.float32))

    def write(self, text: bytes, states: Float[Tensor, "t d"]) -> None:
        """Store the states of a text, whose numbers must be within the range of float16."""
        content = states.float().cpu().numpy().astype(DTYPE).tobytes()
        content += zlib.crc32(content).to_bytes(CHECKSUM, "little")
        if not self._writable or len(content) > self._max_bytes:
            return
        path = self._path(text)
        temporary = path.with_name(f"{uuid4().hex}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                raise
            self._make_room(len(content))
        except OSError as error:
            self._writable = False
            reason = error.strerror or str(error)
            LOGGER.warning("hidden states are no longer stored in %s: %s", self._folder, reason)

    def _make_room(self, added: int) -> None:
        """Remove the least recently used files if all are larger than the limit."""
        if self._size is None:
            self._size = sum(size for _, size, _ in self._files())
        else:
            self._size += added
        if self._size <= self._max_bytes:
            return
        files = sorted(self._files())  # another process may have removed some
        self._size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size <= FREED * self._max_bytes:
                break
            with suppress(OSError):
                path.unlink()
            self._size -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its size and its path."""
        for path in self._root.glob("*/*"):
            with suppress(OSError):
                status = path.stat()
                if path.suffix == ".new" and status.st_mtime < time.time() - ABANDONED_S:
                    path.unlink()
                    continue
                yield status.st_mtime, status.st_size, path

    def _path(self, text: bytes) -> Path:
        return self._folder / hashlib.sha256(text).hexdigest()[:32]
