"""Atomic writes, an exclusive writer lock, readable disk errors, standard JSON, progress bars.

Nothing here depends on the rest of whet but its errors. On Windows, files are locked by `msvcrt`,
and folders cannot be synced; everything else is the same.
"""

import errno
import importlib
import io
import json
import math
import os
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import SpaceError

if sys.platform == "win32":
    import msvcrt

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # reading needs no locks
    fcntl = None

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
BLOCK_BYTES = 2**20
ast_lock = threading.RLock()
"""Held while `ast` parses: in CPython 3.11 that fails at random when several threads do so at once
(SystemError, "AST constructor recursion depth mismatch")."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"
    "\ud800-\udfff]"
)
"""C0 and C1 controls, bidirectional marks, line separators, and unpaired surrogates."""


def load_npy(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Load the array in an `.npy` file, or memory-map it; raises ValueError if it is damaged.

    Headers are parsed by one thread at a time: NumPy uses `ast`, which in CPython 3.11 fails at
    random when several threads do so (SystemError, "AST constructor recursion depth mismatch").
    """
    with ast_lock:
        try:
            mode: Any = "r" if mapped else None
            array: NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise
        except Exception as error:  # a damaged header may fail anywhere in Python's parser
            raise ValueError(f"its header is damaged: {error!r}") from error
    return array


def npy_header(content: bytes | memoryview) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, column order, type and length of the header with which an `.npy` file begins.

    Raises:
        ValueError: If the header is damaged, or the array contains Python objects.
    """
    file = io.BytesIO(content)
    with ast_lock:
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = read(file)
        except ValueError:
            raise
        except Exception as error:  # a damaged header may fail anywhere in Python's parser
            raise ValueError(f"its header is damaged: {error!r}") from error
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"it holds {dtype} of shape {shape}")
    return shape, fortran_order, dtype, file.tell()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file, or a folder without subfolders, that replaces `path` as a whole and durably.

    Yields the temporary path to write to. It is synced and renamed when the block ends, and removed
    when the block raises. Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    if temporary.is_dir():  # left by a writer that was killed
        shutil.rmtree(temporary)
    try:
        yield temporary
        for file in temporary.iterdir() if temporary.is_dir() else ():
            fsync(file)
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), "utf-8")


def fsync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if sys.platform == "win32":
        if path.is_dir():  # Windows cannot open it
            return
        descriptor = os.open(path, os.O_RDWR)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path, length: int | None = None) -> int:
    """CRC-32 of a file, or of its first `length` bytes."""
    remaining, value = path.stat().st_size if length is None else length, 0
    with path.open("rb") as file:
        while remaining > 0 and (block := file.read(min(BLOCK_BYTES, remaining))):
            value = zlib.crc32(block, value)
            remaining -= len(block)
    return value


class WriteLock:
    """The exclusive right to write in a folder. Forked children do not have it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _write_locks.add(self)

    def check(self) -> None:
        """Raise SpaceError if the lock was released, or belongs to the parent of this process."""
        if self._descriptor is None:
            raise SpaceError("the right to write was not inherited by this fork: open it again")

    def release(self) -> None:
        """End the right to write, even if a child process still has the file open."""
        descriptor = self.forget()
        if descriptor is not None:
            try:
                _unlock(descriptor)
            finally:
                os.close(descriptor)

    def forget(self) -> int | None:
        """Stop using the open file, and return it."""
        _write_locks.discard(self)
        descriptor, self._descriptor = self._descriptor, None
        return descriptor


_write_locks: set[WriteLock] = set()


def _close_locks_of_parent() -> None:
    """In a forked child: close the locks of the parent, which would otherwise outlive it."""
    for lock in list(_write_locks):
        descriptor = lock.forget()
        if descriptor is not None:
            os.close(descriptor)  # the parent's lock is not affected


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks_of_parent)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[WriteLock]:
    """Hold the exclusive right to write in `folder`; it ends with the block or the process.

    Raises:
        SpaceError: If another process holds it, or the file system has no locks.
    """
    if sys.platform == "win32":
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    else:
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock_exclusive(descriptor)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise SpaceError(
                f"{folder} is being written by another process: retry when that has ended"
            ) from error
        if error.errno not in NO_LOCKS:
            raise
        raise SpaceError(
            f"{folder} cannot be locked for writing ({os.strerror(error.errno)}): its file system "
            "has no file locks (flock). Write on a local disk and copy the folder here, or mount "
            "the file system with locks; reading works without them"
        ) from error
    lock = WriteLock(descriptor)
    try:
        yield lock
    finally:
        lock.release()


def lock_exclusive(descriptor: int) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError if anyone else has locked it."""
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
    elif fcntl is None:
        raise OSError(errno.ENOSYS, "this Python has no fcntl")
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_shared(descriptor: int) -> None:
    """Lock an open file against exclusive locks until it is closed.

    On Windows, being open is enough: such a file cannot be removed. Where there are no file locks,
    nothing can be written either, and the file is not locked.

    Raises:
        BlockingIOError: If it is locked exclusively.
    """
    if sys.platform == "win32" or fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    elif fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turn the error of a full, read-only or protected disk into a SpaceError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise SpaceError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}): nothing was changed"
        ) from error


def printable(text: str) -> str:
    """`text` for a terminal: control characters and reordering marks as escapes, such as `\\x1b`.

    Texts and names come from documents, which could otherwise rewrite the screen, set the window's
    title or the clipboard, or show a text in another order. Line breaks and tabs remain.

    >>> printable("bees\\x1b[2J\\r dance")
    'bees\\\\x1b[2J\\\\r dance'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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
