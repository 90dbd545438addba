"""Atomic writes, readable disk errors, standard JSON, progress bars.

Nothing here depends on the rest of whet except its errors and locks. On Windows, folders cannot be
synced, and files that are open cannot be replaced: replacing waits for readers.
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
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import SpaceError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
BLOCK_BYTES = 2**20
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


def count_of(number: int, noun: str) -> str:
    """A number with its unit, such as `1,234 documents`.

    >>> count_of(1, "document")
    '1 document'
    """
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


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
def progress_bar(
    label: str, total: int | None, *, show: bool, transient: bool = False
) -> Iterator[Callable[..., None]]:
    """Draw a progress bar on stderr if `show`, and erase it at the end if `transient`.

    Yields a function that advances it by a number, and shows a text instead of the speed if that is
    given; `total=…` changes the total.
    """
    if not show:
        yield lambda *_, **__: None
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
    with Progress(*columns, console=Console(stderr=True), transient=transient) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(n: int, text: str = "", total: int | None = None) -> None:
            speed = progress.tasks[0].speed
            text = text or (f"{speed:,.1f}/s" if speed else "")
            progress.update(task, advance=n, rate=text, total=total)

        yield advance
