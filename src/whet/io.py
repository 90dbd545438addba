"""Files that are whole or not there, one writer at a time, and what a full disk says."""

import errno
import fcntl
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import SpaceError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
PIECE = 2**20  # bytes read at a time
_parsing = threading.Lock()


def load(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array in an `.npy` file.

    One at a time: NumPy parses the header with `ast`, which fails at random in CPython 3.11 when
    threads do so at once (SystemError, "AST constructor recursion depth mismatch").
    """
    with _parsing:
        stored: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return stored


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A new file, or flat folder, that takes the place of `path`: all or nothing, and for good.

    Parents that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    if new.is_dir():  # of a writer that was killed
        shutil.rmtree(new)
    try:
        yield new
    except BaseException:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
        raise
    for file in new.iterdir() if new.is_dir() else ():
        sync(file)
    sync(new)
    os.replace(new, path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as new:
        new.write_text(json.dumps(value, indent=1), "utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path, length: int | None = None) -> int:
    """CRC-32 of a file, or of its first `length` bytes."""
    left, value = path.stat().st_size if length is None else length, 0
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(PIECE, left))):
            value = zlib.crc32(piece, value)
            left -= len(piece)
    return value


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """The sole right to write in `folder`, until left or until the process dies.

    Raises:
        SpaceError: If another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpaceError(f"{folder} is being written by another process: wait") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise SpaceError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}): nothing was changed"
        ) from error
