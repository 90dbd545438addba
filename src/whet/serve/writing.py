"""Adding and deleting documents, as far as a key may.

Whoever may not read everything adds only ids that begin with a label of their own and a colon: else
an id that is taken would tell of a document that they may not read.
"""

import json
from collections.abc import Sequence

import pyarrow as pa

from whet.data.documents import Document
from whet.serve.answers import Written
from whet.serve.auth import Key
from whet.serve.errors import APIError
from whet.serve.requests import NewDocument
from whet.serve.space_registry import Catalogue
from whet.space.space import DataSpace
from whet.space.store.protocol import SCHEMA
from whet.space.store.writer import DiskWriter


def add(catalogue: Catalogue, name: str, key: Key, documents: Sequence[NewDocument]) -> Written:
    """Add the documents that are not there yet, all or none.

    Raises:
        ValueError: If the embedder makes no vector of a text.
        APIError: 400 for a label where there are none, or an id that comes twice or is not the
            key's; 403 for another's label; 409 for an id that is there with another text, or while
            another process writes.
    """
    with catalogue.writing(name) as space:
        new = [_document(space, key, given) for given in documents]
        if len({document.id for document in new}) < len(new):
            raise APIError(400, "an id comes twice", param="documents")
        there = _there(space, [document.id for document in new])
        for document in new:
            if there.get(document.id, document).text != document.text:
                raise APIError(
                    409, f"id {document.id!r} is there with another text: delete it first",
                    param="documents", code="id_taken",
                )  # fmt: skip
        added = [document for document in new if document.id not in there]
        if added:
            _write(space, added)
    return Written(
        data_space=name, version=catalogue.version(name), added=len(added), known=len(there)
    )


def delete(catalogue: Catalogue, name: str, key: Key, ids: Sequence[str]) -> Written:
    """Delete documents, all or none; an id that the key cannot see is none to delete.

    Raises:
        APIError: 403 for a document that the key may read, but not write; 409 while another process
            writes.
    """
    with catalogue.writing(name) as space:
        view = catalogue.view(name, key)
        seen = _there(view.space, ids)
        for document in seen.values():
            if not key.reads_all and view.label(document) not in key.labels:
                raise APIError(
                    403, f"this key may not delete {document.id!r}: it is of another label",
                    param="ids",
                )  # fmt: skip
        if seen:
            space.delete(ids=list(seen))
    return Written(data_space=name, version=catalogue.version(name), deleted=len(seen))


def _write(space: DataSpace, documents: Sequence[Document]) -> None:
    """All or none, whatever a killed writer or `whet index` has left unfinished."""
    vectors = space.embedder.encode([document.text for document in documents])
    rows = [
        {"id": document.id, "text": document.text, "meta": json.dumps(document.meta)}
        for document in documents
    ]
    with DiskWriter(space.path) as writer:
        writer.add(pa.Table.from_pylist(rows, SCHEMA), vectors)


def _document(space: DataSpace, key: Key, given: NewDocument) -> Document:
    labels = space.manifest.labels
    if labels is None:
        if given.label is not None or not key.reads_all:
            raise APIError(403, "this data space has no labels", param="label")
        return Document(given.id, given.text, given.meta)
    if not key.reads_all and given.label not in key.labels:
        raise APIError(403, f"this key may not write label {given.label!r}", param="label")
    if not key.reads_all and not given.id.startswith(f"{given.label}:"):
        raise APIError(
            400, f"id is {given.id!r}: expected it to begin with `{given.label}:`", param="id"
        )
    if labels.field in given.meta:
        raise APIError(400, f"meta holds {labels.field!r}: say it as label", param="meta")
    label = {} if given.label is None else {labels.field: given.label}
    return Document(given.id, given.text, given.meta | label)


def _there(space: DataSpace, ids: Sequence[str]) -> dict[str, Document]:
    """Those of the ids that can be seen, with their documents."""
    rows = [row for row in space.store.find(list(dict.fromkeys(ids))).tolist() if row >= 0]
    return {document.id: document for document in space.documents(rows)}
