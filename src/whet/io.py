"""Atomic writes, an exclusive writer lock, readable disk errors, standard JSON, progress bars."""

import errno
import fcntl
import json
import math
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import SpaceError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
BLOCK = 2**20  # bytes read at a time
_parsing = threading.Lock()


def load(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read the array in an `.npy` file, or map it.

    A lock serializes this: NumPy parses the header with `ast`, which fails at random in CPython
    3.11 when threads do so at once (SystemError, "AST constructor recursion depth mismatch").
    """
    with _parsing:
        stored: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return stored


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file, or a flat folder, aside; replace `path` by it once it is complete and synced.

    Yields the path to write to. After an error `path` is unchanged. Missing parent folders are
    created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    if new.is_dir():  # left by a writer that was killed
        shutil.rmtree(new)
    try:
        yield new
        for file in new.iterdir() if new.is_dir() else ():
            sync(file)
        sync(new)
        os.replace(new, path)
    except BaseException:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_write(path) as new:
        new.write_text(json.dumps(value, indent=1), "utf-8")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path, length: int | None = None) -> int:
    """CRC-32 of a file, or of its first `length` bytes."""
    left, value = path.stat().st_size if length is None else length, 0
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(BLOCK, left))):
            value = zlib.crc32(piece, value)
            left -= len(piece)
    return value


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the exclusive right to write in `folder`; it ends with the process at the latest.

    Raises:
        SpaceError: If another process holds it.
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
    """Turn the errors of a full or read-only disk into a SpaceError about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise SpaceError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}): nothing was changed"
        ) from error


def as_json(value: Any) -> str:
    """`value` on one line of standard JSON: NaN and infinities become null, other types strings.

    >>> as_json({"loss": float("nan"), "n": 3})
    '{"loss": null, "n": 3}'
    """
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def progress_bar(label: str, total: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Draw a progress bar on stderr if `show`; yields a function that advances it."""
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(n: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=n, rate=f"{speed:,.1f}/s" if speed else "")

        yield advance
