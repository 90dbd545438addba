"""Memory-mapped files whose bytes are compared with their checksums before they are first used.

Parsers of mapped files (Arrow, NumPy, Faiss) trust what they read: a flipped bit in an offset ends
the process by a signal, and one in a text is an answer that nobody wrote. A file therefore has one
checksum or one for each of its blocks; a block is read once by each process that needs it. A mapped
file is not held open, so the number of files is not limited by `ulimit -n`.
"""

import ctypes
import mmap
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy.typing import NDArray

from whet.errors import SpaceError
from whet.io import npy_header
from whet.maths.arrays import Array
from whet.space.store.manifest import DAMAGED

READ_BYTES = 2**22  # read at a time when checksums are computed


class Checksums(NamedTuple):
    """CRC-32 of the blocks of a file; the last one ends with the file."""

    ends: Sequence[int]
    crc32: Sequence[int]


class CheckedFile:
    """A mapped file. Thread-safe, and usable after a fork or after the file was removed."""

    def __init__(self, path: Path, checksums: Checksums | None = None) -> None:
        """Map `path`; without checksums, its contents are trusted.

        Raises:
            SpaceError: If it cannot be read, or has another size than when it was written.
        """
        self.path = path
        self.buffer = self.map()
        """The contents; see `check`."""
        self._ends = np.array(checksums.ends if checksums else [len(self.buffer)], np.int64)
        self._crc32 = checksums.crc32 if checksums else []
        self._checked = np.full(len(self._ends), checksums is None)
        if self._ends[-1] != len(self.buffer):
            raise SpaceError(
                f"{path} is broken: it has {len(self.buffer)} bytes, but {self._ends[-1]} were "
                "written; restore it, or open the rest with partial"
            )

    def map(self) -> Any:
        """Another map of the file; requires that it was not removed."""
        try:
            file = pa.memory_map(str(self.path))
            buffer = file.read_buffer()
            file.close()  # closes the file, not the map
            return buffer
        except FileNotFoundError as error:
            raise SpaceError(
                f"{self.path} is missing: restore it, or open the rest with partial"
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error) from error

    def check(self, blocks: Int[Array, " n"] | None = None) -> None:
        """Compare the given blocks, or all, with their checksums, unless that was done before.

        Raises:
            SpaceError: If one differs.
        """
        numbers = np.arange(len(self._ends)) if blocks is None else np.unique(blocks)
        for number in numbers[~self._checked[numbers]].tolist():
            start = int(self._ends[number - 1]) if number else 0
            content = memoryview(self.buffer)[start : int(self._ends[number])]
            if zlib.crc32(content) != self._crc32[number]:
                raise SpaceError(
                    f"{self.path} is broken at byte {start:,} to {self._ends[number]:,}: {DAMAGED}"
                )
            self._checked[number] = True

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._ends)

    def block_of(self, offsets: Int[Array, " n"]) -> Int[Array, " n"]:
        """The block that contains each byte."""
        return np.searchsorted(self._ends, offsets, side="right")

    def array(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array in this `.npy` file, without checking its contents.

        Raises:
            SpaceError: If it is of another type or shape.
        """
        stored = map_array(self.path, self.buffer)
        if (stored.dtype, stored.shape) != (np.dtype(dtype), shape):
            raise SpaceError(
                f"{self.path} holds {stored.dtype} of shape {stored.shape}: expected {dtype} of "
                f"shape {shape}"
            )
        return stored


def map_array(path: Path, buffer: Any) -> NDArray[Any]:
    """The array of the `.npy` file at `path`, which is mapped to `buffer`.

    Raises:
        SpaceError: If its header is damaged.
    """
    try:
        shape, fortran_order, dtype, offset = npy_header(memoryview(buffer)[:4096])
        count = int(np.prod(shape))
        flat = np.frombuffer(buffer, dtype, count, offset)
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, EOFError, OverflowError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> SpaceError:
    """The error about a file that cannot be parsed."""
    reason = str(error).partition("\n")[0]
    return SpaceError(f"{path} cannot be read: {reason}")


def checksums_of(path: Path, ends: Sequence[int]) -> tuple[int, Checksums]:
    """CRC-32 of a file and of its blocks, which end at `ends`, in one pass."""
    whole, crc32, start = 0, [], 0
    with path.open("rb") as file:
        for end in ends:
            value = 0
            while start < end and (content := file.read(min(READ_BYTES, end - start))):
                value, whole = zlib.crc32(content, value), zlib.crc32(content, whole)
                start += len(content)
            crc32.append(value)
    return whole, Checksums([int(end) for end in ends], crc32)


def advise(buffer: Any, advice: str) -> None:
    """Tell the system how a mapped buffer will be used; on Windows, nothing is done."""
    number = getattr(mmap, advice, None)
    if number is not None and buffer.size:
        _libc().madvise(ctypes.c_void_p(buffer.address), ctypes.c_size_t(buffer.size), number)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
