"""Documents and how they are read from files, folders, data sets and Python objects.

Files of a folder that are left out by rule (hidden, ignored by Git, empty, binary) are passed to
`on_left_out`. Every other problem is a `SourceError` that names the file and the line.
`read_documents` raises the first one; `iter_documents` yields it in place of the record, so that
the caller can go on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whet.data.chunking import Chunker, get_chunker
from whet.data.formats.sections import Section, passage_meta
from whet.data.messages import MESSAGES, holds_conversation, passage_messages, read_conversation
from whet.data.sources import records
from whet.data.tables import Record, Records, has_text, table_rows
from whet.data.values import is_missing, plain
from whet.data.walk import FileOptions, LeftOut
from whet.errors import SourceError

SHOWN = 40  # characters of a text that an error message shows


@dataclass(frozen=True, slots=True)
class Document:
    """A text with an id and metadata.

    >>> Document("d1", "Bees dance to point at flowers.", {"year": 2020}).meta["year"]
    2020
    """

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    """Further fields, which filters can use; must be JSON to be stored."""
    sections: tuple[Section, ...] = field(default=(), repr=False, compare=False)
    """Where its headings, pages or definitions begin, for cutting it; not stored."""


DocumentLike = Document | SourceError | str | Mapping[str, Any]
"""A document, its text, or a mapping such as a JSON record; or the error of one that cannot be
read, from a source that can go on."""


def to_documents(
    items: Iterable[DocumentLike] | Any,
    first: int = 0,
    *,
    text_field: str = "text",
    chunks: str = "whole",
) -> Iterator[Document | SourceError]:
    """Convert Python objects to documents; an item without an id gets its number as id.

    An id that is missing (None, NaN, NaT, NA) or empty counts as none.

    >>> [document.id for document in to_documents(["a b", {"id": "x", "text": "c"}])]
    ['0', 'x']

    Args:
        items: Texts, mappings (`text_field`, `id`, metadata) or documents; or a table of pandas,
            Arrow or Polars, whose rows become the documents.
        first: Number of the first item.
        text_field: Key of a mapping that holds the text.
        chunks: See `read_documents`.

    Raises:
        ValueError: If `chunks` is not a chunking rule, or an item is of another kind.
    """
    split = get_chunker(chunks)
    rows = table_rows(items)
    if rows is not None:
        return _chunked(_from_table(rows, first, text_field), split)
    return _chunked(
        (to_document(item, i, text_field) for i, item in enumerate(items, first)), split
    )


def to_document(item: Any, number: int, text_field: str = "text") -> Document | SourceError:
    """Convert a text, a mapping or a document; an item without an id gets `number` as id.

    Raises:
        ValueError: If the item is of another kind.
    """
    if isinstance(item, SourceError):
        return item
    if isinstance(item, Document):
        return _with_json_metadata(item, number)
    if hasattr(item, "as_py"):  # a scalar of Arrow
        item = item.as_py()
    if isinstance(item, str):
        item = {text_field: item}
    if not isinstance(item, Mapping):
        raise ValueError(
            f"document {number} is {item!r}: expected a text, a mapping with a text, or a Document"
        )
    return _from_record(Record(str(number), f"document {number}", dict(item)), text_field)


def reject_str(texts: Any, name: str) -> None:
    """Reject a single string where a list is expected: Python would iterate over its characters.

    Raises:
        ValueError: If `texts` is a string.
    """
    if isinstance(texts, str):
        shown = repr(texts if len(texts) <= SHOWN else texts[:SHOWN] + "…")
        raise ValueError(f"{name} is {shown}: expected a list of them, as [{shown}]")


def encoding_error(document: Document) -> str | None:
    """Description of the first unpaired surrogate in the document, which UTF-8 cannot encode."""
    meta = json.dumps(document.meta, ensure_ascii=False, default=str)
    for part, text in (("text", document.text), ("id", document.id), ("metadata", meta)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"its {part} has an unpaired surrogate at position {error.start}"
    return None


def read_documents(
    source: str | Path, *, text_field: str = "text", chunks: str = "whole"
) -> Iterator[Document]:
    """Read the documents of `source` in order, one at a time.

    `source` is one of:

    - a file of records, `.jsonl`, `.json`, `.csv`, `.tsv` (also packed as `.gz` or `.zst`) or
      `.parquet`; JSON lines and Parquet are recognized under other names, too;
    - any other file: one document;
    - a folder of such files, sorted and recursive; ids are paths relative to it;
    - `-`: JSON lines from stdin;
    - `hf:owner/name`, `hf:owner/name@config:split` or `hf:./folder`: a Hugging Face data set,
      streamed (split `train` by default).

    A record without an `id` is named after its file and line. Fields other than `id` and
    `text_field` become `meta`.

    Args:
        source: Where to read.
        text_field: Field of a record that holds the text.
        chunks: `whole`, `passages:N` (words), `tokens:N` or `paragraph:N` (characters): see
            `whet.data.chunking`. The chunks of document `id` are named `id#0`, `id#1`, …; their
            `meta` has `parent` and `span` in addition. With `passages:N`, a text that need not be
            cut stays the document `id`.

    Raises:
        SourceError: While iterating, if there is nothing to read or a record cannot be read.
        ValueError: If `chunks` is not a chunking rule.
    """
    return map(_raise_error, iter_documents(source, text_field=text_field, chunks=chunks))


def iter_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    chunks: str = "whole",
    files: FileOptions | None = None,
    on_left_out: Callable[[LeftOut], None] | None = None,
) -> Iterator[Document | SourceError]:
    """Like `read_documents`, but yields the error of each record or file that cannot be read.

    Args:
        source: Where to read.
        text_field: See `read_documents`.
        chunks: See `read_documents`.
        files: Which files of a folder are read.
        on_left_out: Called with each file or folder that is left out by rule.

    Raises:
        SourceError: While iterating, if there is nothing to read, or none of it can be read.
        ValueError: If `chunks` is not a chunking rule.
    """
    return _read(str(source), text_field, get_chunker(chunks), files, on_left_out)


def _raise_error(item: Document | SourceError) -> Document:
    if isinstance(item, SourceError):
        raise item
    return item


def _read(
    source: str,
    text_field: str,
    split: Chunker | None,
    files: FileOptions | None,
    on_left_out: Callable[[LeftOut], None] | None,
) -> Iterator[Document | SourceError]:
    first_error: SourceError | None = None
    count = 0
    for item in from_records(records(source, text_field, files), text_field, split):
        if isinstance(item, LeftOut):
            if on_left_out:
                on_left_out(item)
            continue
        if isinstance(item, SourceError):
            first_error = first_error or item
        else:
            count += 1
        yield item
    if not count:
        reason = f" ({first_error})" if first_error else ""
        raise SourceError(f"{source} holds no documents{reason}: expected at least one text")


def from_records(
    found: Records, text_field: str, split: Chunker | None
) -> Iterator[Document | SourceError]:
    """The documents of records, cut by `split`; errors stay in their places."""
    items = (
        _from_record(record, text_field) if isinstance(record, Record) else record
        for record in found
    )
    return _chunked(items, split)


def _chunked(
    items: Iterable[Document | SourceError], split: Chunker | None
) -> Iterator[Document | SourceError]:
    for item in items:
        if split is None or isinstance(item, SourceError):
            yield item
            continue
        spans = split.cut(item.text, item.sections)
        if len(spans) <= 1 and split.keeps_short_texts:
            meta = passage_meta(item.sections, 0, len(item.text)) | item.meta
            yield replace(item, meta=meta)
            continue
        for number, (start, stop) in enumerate(spans):
            meta = item.meta | passage_meta(item.sections, start, stop)
            if MESSAGES in item.meta and item.sections:
                meta[MESSAGES] = passage_messages(item.meta[MESSAGES], item.text, start, stop)
            meta |= {"parent": item.id, "span": [start, stop]}
            yield Document(f"{item.id}#{number}", item.text[start:stop], meta)


def _from_record(record: Record, text_field: str) -> Document | SourceError:
    fields, sections = record.fields, record.sections
    if text_field not in fields:
        conversation = read_conversation(fields) if holds_conversation(fields) else None
        if isinstance(conversation, str):
            return SourceError(f"{record.where}: {conversation}")
        if conversation is None:
            present = ", ".join(repr(name) for name in fields) or "no fields"
            return SourceError(
                f"{record.where}: no field {text_field!r}, only {present}: name the one that holds "
                "the text (text_field, --text-field)"
            )
        fields = {name: value for name, value in fields.items() if name not in conversation.used}
        fields |= {text_field: conversation.text, MESSAGES: conversation.messages}
        sections = conversation.sections
    text = fields[text_field]
    if reason := _text_error(text, text_field):
        return SourceError(f"{record.where}: {reason}")
    rest = {key: value for key, value in fields.items() if key not in (text_field, "id", "meta")}
    meta = fields.get("meta")
    if not is_missing(meta):
        rest = {**meta, **rest} if isinstance(meta, dict) else {"meta": meta, **rest}
    if record.path:
        rest.setdefault("path", record.path)
    try:
        return Document(_id(fields.get("id"), record.name), str(text), plain(rest), sections)
    except ValueError as error:
        return SourceError(f"{record.where}: {error}")


def _text_error(text: Any, text_field: str) -> str | None:
    """Why a value cannot be a document's text."""
    if not isinstance(text, str):
        kind = "null" if is_missing(text) else type(text).__name__
        return f"field {text_field!r} holds {kind}, expected a string"
    if not text:
        return f"field {text_field!r} is an empty text"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"unpaired surrogate at position {error.start}"
    return None


def _from_table(
    rows: Iterable[dict[str, Any] | str], first: int, text_field: str
) -> Iterator[Document | SourceError]:
    """The documents of a table's rows; one error if the table has no column `text_field`."""
    for number, fields in enumerate(rows, first):
        if isinstance(fields, str):
            yield SourceError(f"row {number} of the table: {fields}")
            continue
        yield _from_record(Record(str(number), f"row {number} of the table", fields), text_field)
        if not has_text(fields, text_field):
            return


def _with_json_metadata(document: Document, number: int) -> Document | SourceError:
    try:
        return Document(
            _id(document.id, str(number)), document.text, plain(document.meta), document.sections
        )
    except ValueError as error:
        return SourceError(f"document {document.id!r}: {error}")


def _id(value: Any, default: str) -> str:
    """The id of a document; `default` if it is missing or empty."""
    value = plain(value)
    return default if value is None or value == "" else str(value)
