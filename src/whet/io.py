"""Atomic writes, an exclusive writer lock, readable disk errors, standard JSON, progress bars.

Nothing here depends on the rest of whet except its errors. Locks are those of the kernel, through
`filelock`, and end with the process that has them. On Windows, folders cannot be synced or locked
(a file `.lock` in them is), and files that are open cannot be replaced or removed: replacing waits
for readers. A Python without `fcntl` on another system locks `.lock` by its existence.
"""

import errno
import io
import json
import math
import os
import re
import shutil
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import SpaceError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
BLOCK_BYTES = 2**20
LOCK_FILE = ".lock"  # where folders cannot be locked
REPLACE_S = 5.0  # how long Windows waits for readers of a file that is replaced
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
        replace_file(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def replace_file(new: Path, path: Path) -> None:
    """Rename `new` to `path`, replacing it as a whole.

    Windows does not replace a file that is open. Readers have `meta.json` open for a moment only,
    so there it is tried again for 5 seconds.
    """
    until = time.monotonic() + REPLACE_S
    while True:
        try:
            os.replace(new, path)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > until:
                raise
            time.sleep(0.01)


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

    def __init__(self, folder: Path) -> None:
        """Lock `folder`.

        Raises:
            BlockingIOError: If it is locked already.
            OSError: If it cannot be opened, or its file system has no locks.
        """
        self._descriptor: int | None = None
        self._soft: Any = None
        if _has_native_locks():
            windows = sys.platform == "win32"
            self._descriptor = (
                os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
                if windows
                else os.open(folder, os.O_RDONLY)
            )
            try:
                lock_exclusive(self._descriptor)
            except BaseException:
                os.close(self._descriptor)
                raise
        else:
            self._soft = _lock_softly(folder / LOCK_FILE)
        self._held = True
        _write_locks.add(self)

    def check(self) -> None:
        """Raise SpaceError if the lock was released, or belongs to the parent of this process."""
        if not self._held:
            raise SpaceError("the right to write was not inherited by this fork: open it again")

    def release(self) -> None:
        """End the right to write, even if a child process still has the file open."""
        if not self._held:
            return
        _write_locks.discard(self)
        self._held = False
        if self._soft is not None:
            self._soft.release()
        if self._descriptor is not None:
            try:
                _filelock().unlock_descriptor(self._descriptor)
            finally:
                os.close(self._descriptor)

    def forget(self) -> None:
        """In a forked child: close the lock of the parent, which is not affected."""
        self._held = False
        if self._descriptor is not None:
            os.close(self._descriptor)


_write_locks: set[WriteLock] = set()


def _forget_locks_of_parent() -> None:
    """In a forked child: close the locks of the parent, which would otherwise outlive it."""
    for lock in list(_write_locks):
        lock.forget()
    _write_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks_of_parent)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[WriteLock]:
    """Hold the exclusive right to write in `folder`; it ends with the block or the process.

    Raises:
        SpaceError: If another process holds it, or the file system has no locks.
    """
    try:
        lock = WriteLock(folder)
    except OSError as error:
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
    try:
        yield lock
    finally:
        lock.release()


def _filelock() -> Any:
    """The library, which warns when it is imported where Python has no `fcntl`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import filelock
    return filelock


def _has_native_locks() -> bool:
    """Whether this Python can lock files so that the system unlocks them when the process ends."""
    return sys.platform == "win32" or bool(_filelock().has_fcntl)


def _lock_softly(path: Path) -> Any:
    """Lock by the existence of a file with the number of this process, broken once that has ended.

    Raises:
        BlockingIOError: If another process has it.
    """
    library = _filelock()
    lock = library.SoftFileLock(path, timeout=0)
    try:
        lock.acquire()
    except library.Timeout as error:
        raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process") from error
    return lock


def lock_exclusive(descriptor: int) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError if anyone else has locked it."""
    if not _filelock().lock_descriptor(descriptor, blocking=False):
        raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process")


def lock_shared(descriptor: int) -> None:
    """Lock an open file against exclusive locks until it is closed.

    Without `fcntl` (Windows), or on a file system without locks, the file is not locked.

    Raises:
        BlockingIOError: If it is locked exclusively.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def remove_unless_open(folder: Path, file: str) -> bool:
    """Remove `folder` unless a process has locked its `file` with `lock_shared`.

    On Windows, being open protects a file; what remains of the folder then is removed the next time.

    Returns:
        Whether it was removed.
    """
    try:
        lock = os.open(folder / file, os.O_RDONLY)
    except FileNotFoundError:  # never completed, or partly removed before
        return remove_folder(folder)
    try:
        if _has_flock():
            lock_exclusive(lock)
            (folder / file).unlink()  # nobody can open it from here on
            return remove_folder(folder)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    try:
        (folder / file).unlink()
    except PermissionError:  # it is open
        return False
    return remove_folder(folder)


def remove_folder(folder: Path) -> bool:
    """Remove a folder with all that it contains; on Windows, except files that are in use.

    Returns:
        Whether all of it was removed.
    """
    shutil.rmtree(folder, ignore_errors=sys.platform == "win32")
    return not folder.exists()


def _has_flock() -> bool:
    return sys.platform != "win32" and bool(_filelock().has_fcntl)


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
