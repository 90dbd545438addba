"""From a document's own id to its row, and which texts are the same: 24 bytes a row, on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int, UInt64

from whet.errors import SpaceError
from whet.io import load
from whet.maths.arrays import Array


def hash_strings(strings: Sequence[str]) -> UInt64[Array, " n"]:
    """64 bits of BLAKE2 of each."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in strings)
    return np.frombuffer(digests, "<u8")


def write_id_index(path: Path, names: UInt64[Array, " n"], texts: UInt64[Array, " n"]) -> None:
    """Of all rows of a segment, in their order: the hashes of ids and of texts."""
    order = np.argsort(names, kind="stable")
    np.save(path, np.stack([names[order], order.astype(np.uint64), texts[order]]))


class IdIndex:
    """What `write_id_index` wrote, memory-mapped."""

    def __init__(self, path: Path) -> None:
        try:
            self._stored = load(path, mapped=True)
        except (OSError, ValueError, EOFError) as error:
            raise SpaceError(f"{path} cannot be read: {error}") from error

    def places(self, wanted: UInt64[Array, " m"]) -> list[Int[Array, " _"]]:
        """For each hash of an id, every place it may be at: its id must still be compared."""
        names, places = self._stored[0], self._stored[1]
        first = np.searchsorted(names, wanted, side="left")
        last = np.searchsorted(names, wanted, side="right")
        return [places[a:b].astype(np.int64) for a, b in zip(first, last, strict=True)]

    def texts(self) -> UInt64[Array, " n"]:
        """The hash of each row's text, in row order."""
        found = np.empty(self._stored.shape[1], np.uint64)
        found[self._stored[1].astype(np.int64)] = self._stored[2]
        return cast(Array, found)
