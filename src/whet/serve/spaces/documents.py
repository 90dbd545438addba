"""Documents that clients add and delete, cut into passages as `whet index` does it.

A key that may not read everything can add only ids that begin with one of its labels and a colon:
otherwise the answer "id is taken" would reveal documents that it may not read.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from whet.data.documents import Document
from whet.errors import SpaceError
from whet.serve.access.auth import APIKey
from whet.serve.errors import APIError
from whet.serve.schemas.spaces import DocumentsChanged, NewDocument
from whet.serve.spaces.registry import SpaceRegistry, readable_part
from whet.space.indexing.addition import Addition
from whet.space.passages import parent
from whet.space.space import DataSpace
from whet.space.store.protocol import SCHEMA
from whet.space.store.reader import DiskReader, find_with_passages
from whet.space.store.sealing import Batch
from whet.space.store.segments.vectors import to_float16
from whet.space.store.writer import DiskWriter


def add_documents(
    spaces: SpaceRegistry, name: str, key: APIKey, documents: Sequence[NewDocument]
) -> DocumentsChanged:
    """Add the documents that do not exist yet, all or none.

    Raises:
        ValueError: If the embedder cannot embed a text.
        APIError: 400 for a duplicate id or an id that the key may not use; 403 for a label that it
            may not write; 409 for an id that exists with another text, or while another process
            writes.
    """
    with spaces.writing(name) as space:
        new = [_to_document(space, key, document) for document in documents]
        if len({document.id for document in new}) < len(new):
            raise APIError(400, "two documents have the same id", param="documents")
        passages = {document.id: _cut(space, document) for document in new}
        ids = [passage.id for cut in passages.values() for passage in cut]
        if len(set(ids)) < len(ids):
            raise APIError(400, "a document has the id of another one's passage", param="documents")
        readable = readable_part(space, key)  # what the key cannot read must not change the answer
        existing = _existing(readable, [*passages, *ids]) if readable else {}
        for document in new:
            _check_id_is_free(document, passages[document.id], existing)
        added = [document.id for document in new if document.id not in existing]
        if added:
            _write(space, [passage for id in added for passage in passages[id]])
    return DocumentsChanged(
        data_space=name, version=spaces.version(name), added=len(added),
        existing=len(new) - len(added),
    )  # fmt: skip


def delete_documents(
    spaces: SpaceRegistry, name: str, key: APIKey, ids: Sequence[str]
) -> DocumentsChanged:
    """Delete documents, all or none; ids that the key cannot see are ignored.

    Raises:
        APIError: 403 for a document that the key may read but not write; 409 while another process
            writes.
    """
    with spaces.writing(name):
        view = spaces.view(name, key)
        visible = _existing(view.space, ids)
        for document in (document for found in visible.values() for document in found):
            if not key.can_read_all and view.label(document) not in key.labels:
                raise APIError(
                    403, f"this key may not delete {document.id!r}: its label is not one of the "
                    "key's", param="ids",
                )  # fmt: skip
        if visible:
            _delete(view.space, ids)
    return DocumentsChanged(data_space=name, version=spaces.version(name), deleted=len(visible))


def _cut(space: DataSpace, document: Document) -> list[Document]:
    """The passages of a document, by the rule of the data space; itself if it need not be cut."""
    addition = Addition(docs=[document]).for_space(space.manifest, space.path)
    passages = [item for item in addition.documents(0) if isinstance(item, Document)]
    return passages or [document]


def _check_id_is_free(
    new: Document, passages: Sequence[Document], existing: Mapping[object, Sequence[Document]]
) -> None:
    """Raises APIError, 409, if an id is that of a document with another text."""
    stored = existing.get(new.id, ())
    texts = {new.text, _joined(passages)}
    others = {document.id for found in existing.values() for document in found}
    others -= {document.id for document in stored}
    taken = [new.id] if stored and _joined(stored) not in texts else []
    taken += [passage.id for passage in passages if passage.id in others]
    if taken:
        raise APIError(
            409, f"id {taken[0]!r} exists with another text: delete it first",
            param="documents", code="id_taken",
        )  # fmt: skip


def _joined(passages: Sequence[Document]) -> str:
    in_order = sorted(passages, key=lambda passage: passage.meta.get("span", ()))
    return "".join(passage.text for passage in in_order)


def _write(space: DataSpace, documents: Sequence[Document]) -> None:
    """Write all documents or none, whatever an interrupted writer or `whet index` left behind.

    An id may exist already on a document that the writing key cannot read: then both exist, each
    for the keys that can read it.
    """
    vectors = space.embedder.encode([document.text for document in documents])
    rows = pa.Table.from_pylist(
        [
            {"id": document.id, "text": document.text, "meta": json.dumps(document.meta)}
            for document in documents
        ],
        SCHEMA,
    )
    with DiskWriter(space.path) as writer:
        if (space.store.find([document.id for document in documents]) < 0).all():
            writer.add(rows, vectors)
            return
        first, end = writer.manifest.next, writer.manifest.next + len(rows)
        [records] = rows.combine_chunks().to_batches()
        stored = to_float16(vectors, writer.manifest.normalized)
        batch = Batch(np.arange(first, end), records, stored)
        writer.commit(lambda: iter([batch]), next=end)


def _delete(space: DataSpace, ids: Sequence[str]) -> None:
    """Delete the documents of `space` that have one of the ids, and no others with the same id."""
    with DiskWriter(space.path) as writer:
        if space.manifest.version != writer.manifest.version:
            raise SpaceError(f"{space.path} has changed: retry")
        writer.delete(ids=find_with_passages(_store(space), ids))


def _to_document(space: DataSpace, key: APIKey, new: NewDocument) -> Document:
    labels = space.manifest.labels
    if labels is None:
        if new.label is not None or not key.can_read_all:
            raise APIError(403, "this data space has no labels", param="label")
        return Document(new.id, new.text, new.meta)
    if not key.can_read_all and new.label not in key.labels:
        raise APIError(403, f"this key may not write label {new.label!r}", param="label")
    if not key.can_read_all and not new.id.startswith(f"{new.label}:"):
        raise APIError(
            400, f"id is {new.id!r}: expected an id that begins with `{new.label}:`", param="id"
        )
    if labels.field in new.meta:
        raise APIError(
            400, f"meta must not contain the label field {labels.field!r}: use the parameter "
            "`label`", param="meta",
        )  # fmt: skip
    label = {} if new.label is None else {labels.field: new.label}
    return Document(new.id, new.text, new.meta | label)


def _existing(space: DataSpace, ids: Sequence[str]) -> dict[object, list[Document]]:
    """The documents of `space` that have one of the ids, or the passages cut from them, by that id."""
    rows = find_with_passages(_store(space), list(dict.fromkeys(ids)))
    found: dict[object, list[Document]] = {}
    for document in space.documents(rows):
        found.setdefault(parent(document), []).append(document)
    return found


def _store(space: DataSpace) -> DiskReader:
    assert isinstance(space.store, DiskReader)  # a server writes to folders only
    return space.store
