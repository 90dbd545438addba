"""Packed files (.gz, .bz2, .xz, .zst), unpacked as they are read, up to a limit."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, cast

from whet.errors import SourceError

ENDINGS = {"gz": "gz", "gzip": "gz", "bz2": "bz2", "xz": "xz", "zst": "zst", "zstd": "zst"}
PACKED_OTHERWISE = ("lz4", "zip", "br", "7z", "rar", "lzma", "z", "tar", "tgz", "tbz", "txz")
MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
WINDOW_LOG = 27  # of zstd: Arrow decompresses windows of up to 2**27 bytes
BLOCK = 2**20
UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)

Lines = Iterator[bytes | SourceError]


def split_ending(name: str) -> tuple[str, str]:
    """A file's name without the ending of its packing, and the packing; empty if it is not packed.

    >>> split_ending("guide.md.gz"), split_ending("guide.md")
    (('guide.md', 'gz'), ('guide.md', ''))
    """
    stem, _, ending = name.rpartition(".")
    packing = ENDINGS.get(ending.lower(), "")
    return (stem, packing) if packing and stem and not stem.endswith("/") else (name, "")


def packing_of(start: bytes) -> str:
    """The packing of a file that begins so; empty if it is not packed."""
    return next((packing for magic, packing in MAGIC.items() if start.startswith(magic)), "")


def unpacked(file: io.BufferedIOBase, packing: str) -> Any:
    """The content of a packed file; the file itself without a packing."""
    if packing == "gz":
        return gzip.open(file)
    if packing == "bz2":
        return bz2.BZ2File(file)
    if packing == "xz":
        return lzma.LZMAFile(cast(Any, file))
    if packing == "zst":
        import pyarrow as pa

        return io.BufferedReader(cast(Any, pa.CompressedInputStream(file, "zstd")))
    return file


def read_lines(
    file: io.BufferedIOBase, path: str, packing: str, max_bytes: int, encoding: str | None = None
) -> Lines:
    """Lines; an error in place of the rest if one is longer than `max_bytes`, or unpacking fails.

    Lines in another `encoding` than UTF-8 are recoded.
    """
    number = 0
    try:
        stream = unpacked(file, packing)
        for line in (
            _recoded_lines(stream, max_bytes, encoding)
            if encoding
            else _plain_lines(stream, max_bytes)
        ):
            if len(line) > max_bytes:
                yield SourceError(
                    f"{path}, line {number + 1}: is longer than the limit of {max_bytes:,} bytes: "
                    "raise --max-file-mb, or leave the file out"
                )
                return
            number += 1
            yield line
    except UnicodeDecodeError as error:
        yield SourceError(f"{path}: after line {number}: not {encoding} ({error.reason})")
    except UNPACKING_ERRORS as error:
        if not packing:
            raise
        yield SourceError(_reason(path, packing, error, f"line {number}"))


def _plain_lines(stream: Any, max_bytes: int) -> Iterator[bytes]:
    """Lines; of one that is longer than `max_bytes` its beginning."""
    while line := stream.readline(max_bytes + 1):
        yield line


def _recoded_lines(stream: Any, max_bytes: int, encoding: str) -> Iterator[bytes]:
    """Lines of a text in another encoding, in UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, end = "", False
    while not end:
        block = stream.read(BLOCK)
        end = not block
        *lines, rest = (rest + decoder.decode(block, end)).split("\n")
        for line in lines:
            yield f"{line}\n".encode()
        if len(rest) > max_bytes:
            break
    if rest:
        yield rest.encode()


def read_content(
    file: io.BufferedIOBase, path: str, packing: str, max_bytes: int
) -> bytes | SourceError:
    """All bytes of a file, unpacked; an error if there are more than `max_bytes`."""
    blocks: list[bytes] = []
    size = 0
    try:
        stream = unpacked(file, packing)
        while block := stream.read(min(BLOCK, max_bytes + 1 - size)):
            blocks.append(block)
            size += len(block)
            if size > max_bytes:
                what = f"unpacks ({packing}) to more" if packing else "is larger"
                return SourceError(
                    f"{path}: {what} than the limit of {max_bytes:,} bytes: raise --max-file-mb, or "
                    "leave the file out"
                )
    except UNPACKING_ERRORS as error:
        if not packing:
            raise
        return SourceError(_reason(path, packing, error, f"byte {size:,}"))
    return b"".join(blocks)


def _reason(path: str, packing: str, error: Exception, place: str) -> str:
    if "too much memory" in str(error):  # zstd's message about a long window
        return (
            f"{path}: its zstd window is larger than {2**WINDOW_LOG // 2**20} MiB, as of `zstd "
            "--long`: unpack it with `zstd -d --long=31`, then index that, or pack it without "
            "--long"
        )
    return f"{path}: truncated or corrupt {packing} after {place} ({error})"
