"""Locks of files and folders, and the removal of files that others may have open.

Locks are those of the kernel, through `filelock`, and end with the process that has them. On
Windows, folders cannot be locked (a file `.lock` in them is), and files that are open cannot be
removed. A Python without `fcntl` on another system locks `.lock` by its existence.
"""

import errno
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whet.errors import SpaceError

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
LOCK_FILE = ".lock"  # where folders cannot be locked


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
