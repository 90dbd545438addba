"""Which documents are known already: in a data space, or earlier in the same addition.

Documents are the same if their id, text and metadata are equal. One of equal id and text replaces
other metadata; one of equal id and another text is refused.
"""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from whet.maths.arrays import Array
from whet.space.store.reader import DiskReader
from whet.space.store.segments.records import as_strings, hash_strings


@dataclass(frozen=True, slots=True, eq=False)
class StoredDocuments:
    """How documents compare with those of the same ids in a data space."""

    rows: Int[Array, " n"]
    """Rows of the stored documents; -1 where the id is new."""
    other_text: Bool[Array, " n"]
    """Whether the stored text is another."""
    updated: Bool[Array, " n"]
    """Whether the stored text is equal, but the metadata is another."""


def compare_stored(stored: DiskReader, documents: pa.RecordBatch) -> StoredDocuments:
    """Compare documents with those of the same ids in `stored`.

    Of several with one id, the most similar counts: of equal text, then of equal metadata.
    """
    found, columns = stored.find_all(as_strings(documents["id"])), ["text", "meta"]
    rows = np.full(len(found), -1, np.int64)
    other_text, updated = np.zeros(len(found), bool), np.zeros(len(found), bool)
    lines = [i for i, same_id in enumerate(found) for _ in same_id]
    stored_rows = np.array([row for same_id in found for row in same_id], np.int64)
    pairs = zip(
        lines,
        stored_rows.tolist(),
        stored.rows(stored_rows, columns).to_pylist(),
        documents.select(columns).take(pa.array(lines, pa.int64())).to_pylist(),
        strict=True,
    )
    for i, row, old, new in pairs:
        another = old["text"] != new["text"]
        changed = not another and sorted_json(old["meta"]) != sorted_json(new["meta"])
        if rows[i] < 0 or (another, changed) < (other_text[i], updated[i]):
            rows[i], other_text[i], updated[i] = row, another, changed
    return StoredDocuments(rows, other_text, updated)


def sorted_json(meta: str) -> str:
    """Metadata (JSON) with its keys in order, so that equal metadata are equal texts."""
    return json.dumps(json.loads(meta), sort_keys=True)


class SeenIds:
    """The ids seen so far with their texts and metadata, as hashes: 16 bytes per document."""

    def __init__(self) -> None:
        self._ids, self._texts = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._recent: dict[int, int] = {}

    def check(self, id: str, text: str, meta: str) -> bool | None:
        """Whether `id` was seen with this text and metadata (JSON) before.

        None if it is new, and then it is added.
        """
        content = f"{text}\0{sorted_json(meta)}"
        id_hash, text_hash = (int(value) for value in hash_strings([id, content]))
        seen = self._recent.get(id_hash)
        if seen is None:
            position = int(np.searchsorted(self._ids, np.uint64(id_hash)))
            if position < len(self._ids) and int(self._ids[position]) == id_hash:
                seen = int(self._texts[position])
        if seen is not None:
            return seen == text_hash
        self._recent[id_hash] = text_hash
        if len(self._recent) >= 65_536:
            self._merge()
        return None

    def _merge(self) -> None:
        count = len(self._recent)
        ids = np.concatenate([self._ids, np.fromiter(self._recent, np.uint64, count)])
        texts = np.fromiter(self._recent.values(), np.uint64, count)
        order = np.argsort(ids, kind="stable")
        self._ids, self._texts = ids[order], np.concatenate([self._texts, texts])[order]
        self._recent = {}
