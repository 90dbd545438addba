"""Hashes of a segment's document ids and texts: 24 bytes per row, on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int, UInt64

from whet.errors import SpaceError
from whet.io import load_npy
from whet.maths.arrays import Array


def hash_strings(strings: Sequence[str]) -> UInt64[Array, " n"]:
    """The first 64 bits of each string's BLAKE2 digest."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in strings)
    return np.frombuffer(digests, "<u8")


def write_id_index(
    path: Path, id_hashes: UInt64[Array, " n"], text_hashes: UInt64[Array, " n"]
) -> None:
    """Write the index of all rows of a segment, whose hashes are given in row order."""
    order = np.argsort(id_hashes, kind="stable")
    np.save(path, np.stack([id_hashes[order], order.astype(np.uint64), text_hashes[order]]))


class IdIndex:
    """Memory-mapped index from document ids to positions in the segment."""

    def __init__(self, path: Path) -> None:
        """Open what `write_id_index` wrote."""
        try:
            self._columns = load_npy(path, mapped=True)
        except (OSError, ValueError, EOFError) as error:
            raise SpaceError(f"{path} cannot be read: {error}") from error

    def candidates(self, id_hashes: UInt64[Array, " m"]) -> list[Int[Array, " _"]]:
        """Positions of the rows with each hash; compare their ids, since hashes may collide."""
        hashes, positions = self._columns[0], self._columns[1]
        first = np.searchsorted(hashes, id_hashes, side="left")
        last = np.searchsorted(hashes, id_hashes, side="right")
        return [positions[a:b].astype(np.int64) for a, b in zip(first, last, strict=True)]

    def text_hashes(self) -> UInt64[Array, " n"]:
        """The hash of each row's text, in row order."""
        hashes = np.empty(self._columns.shape[1], np.uint64)
        hashes[self._columns[1].astype(np.int64)] = self._columns[2]
        return cast(Array, hashes)
