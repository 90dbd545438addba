"""Texts in: whatever a source holds, read one document at a time.

Nothing is skipped in silence but what a folder holds that is no text: hidden, empty and binary
files. Any other trouble is a `SourceError` that names the file and the line, or, for a caller who
would rather go on, that error in the record's place.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.data.chunking import Spans, chunker
from whet.data.sources import Record, records
from whet.errors import SourceError

SHOWN = 40  # characters of a text that a message shows


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the data space."""

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    """What else its source says of it; must be JSON to be stored."""


def as_document(item: Any, number: int) -> Document | SourceError:
    """What Python code gives as a document: one, its text, or a mapping, as a record of JSON is.

    One without an id is called by `number`.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(item, Document | SourceError):
        return item
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping):
        raise ValueError(
            f"document {number} is {item!r}: expected a text, a mapping with a text, or a Document"
        )
    return _document(Record(str(number), f"document {number}", dict(item)), "text")


def refuse_one(texts: Any, name: str) -> None:
    """Refuse one text in the place of several, which Python would take letter by letter.

    Raises:
        ValueError: If `texts` is a text.
    """
    if isinstance(texts, str):
        shown = repr(texts if len(texts) <= SHOWN else texts[:SHOWN] + "…")
        raise ValueError(f"{name} is {shown}: expected a list of them, as [{shown}]")


def broken(document: Document) -> str | None:
    """What of it cannot be written to a file, if anything."""
    meta = json.dumps(document.meta, ensure_ascii=False, default=str)
    for part, text in (("text", document.text), ("id", document.id), ("metadata", meta)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"character {error.start} of its {part} is half of a surrogate pair"
    return None


def read_documents(
    source: str | Path, *, text_field: str = "text", chunks: str = "whole"
) -> Iterator[Document]:
    """The documents of `source`, in its own order, holding one at a time.

    `source` is a file of records (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`, `.csv`, `.tsv`,
    `.json` that holds an array of objects, one, or one a line), any other single file (one
    document), a folder of either kind (sorted, recursive; an id is the path within it), `-` for
    JSON lines from stdin, or `hf:owner/name`, `hf:owner/name:split`, `hf:./folder` for a Hugging
    Face data set, streamed (split `train` unless named). A record without an `id` is called by its
    file and line; its fields other than `id` and `text_field` become `meta`.

    Args:
        source: Where to read.
        text_field: Field of a record that holds the text.
        chunks: `whole`, `tokens:N` or `paragraph:N` (characters): see `whet.data.chunking`. A chunk
            of document `id` is called `id#0`, `id#1`, …; its `meta` gains `parent` and `span`.

    Raises:
        SourceError: While iterating: nothing to read, or a record or file that is not as above.
        ValueError: If `chunks` is no rule.
    """
    return map(_raised, try_documents(source, text_field=text_field, chunks=chunks))


def try_documents(
    source: str | Path, *, text_field: str = "text", chunks: str = "whole"
) -> Iterator[Document | SourceError]:
    """As `read_documents`, with an error in the place of each record or file that cannot be read.

    Raises:
        SourceError: While iterating: if there is nothing to read, or nothing of it can be read.
        ValueError: If `chunks` is no rule.
    """
    return _read(str(source), text_field, chunker(chunks))


def _raised(made: Document | SourceError) -> Document:
    if isinstance(made, SourceError):
        raise made
    return made


def _read(
    source: str, text_field: str, split: Callable[[str], Spans] | None
) -> Iterator[Document | SourceError]:
    first: SourceError | None = None
    count = 0
    for record in records(source, text_field):
        made = _document(record, text_field) if isinstance(record, Record) else record
        if isinstance(made, SourceError):
            first = first or made
            yield made
            continue
        for document in [made] if split is None else _chunks(made, split(made.text)):
            count += 1
            yield document
    if not count:
        why = f" ({first})" if first else ""
        raise SourceError(f"{source} holds no documents{why}: expected at least one text")


def _chunks(document: Document, spans: Spans) -> Iterator[Document]:
    for number, (start, stop) in enumerate(spans):
        place = {"parent": document.id, "span": [start, stop]}
        text = document.text[start:stop]
        yield Document(f"{document.id}#{number}", text, document.meta | place)


def _document(record: Record, text_field: str) -> Document | SourceError:
    fields = record.fields
    if text_field not in fields:
        there = ", ".join(repr(field) for field in fields) or "no fields"
        return SourceError(
            f"{record.where}: no field {text_field!r}, only {there}: name the one that holds the "
            "text"
        )
    text = fields[text_field]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return SourceError(f"{record.where}: field {text_field!r} holds {kind}, expected a string")
    if not text:
        return SourceError(f"{record.where}: field {text_field!r} is an empty text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return SourceError(f"{record.where}: character {error.start} is half of a surrogate pair")
    rest = {key: value for key, value in fields.items() if key not in (text_field, "id", "meta")}
    meta = fields.get("meta")
    if meta is not None:
        rest = {**meta, **rest} if isinstance(meta, dict) else {"meta": meta, **rest}
    name = record.name if fields.get("id") is None else str(fields["id"])
    return Document(name, text, rest)
