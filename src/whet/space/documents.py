"""Texts in: JSON lines, Parquet, folders and Hugging Face data sets, read one document at a time.

Nothing is skipped in silence but what a folder holds that is no text: hidden, empty and binary
files. Any other trouble is a `SourceError` that names the file and the line.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from whet.errors import SourceError, optional

RECORDS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the data space."""

    id: str
    text: str
    meta: dict[str, Any]
    """What else its source says of it; must be JSON to be stored."""


def read_documents(source: str | Path, *, text_field: str = "text") -> Iterator[Document]:
    """The documents of `source`, in its own order, holding one at a time.

    `source` is a file of records (`.jsonl`, `.jsonl.gz`, `.parquet`), any other single file (one
    document), a folder of either kind (sorted, recursive; an id is the path within it), or
    `hf:owner/name`, `hf:owner/name:split`, `hf:./folder` for a Hugging Face data set (split `train`
    unless named). A record without an `id` is called by its file and line; its fields other than
    `id` and `text_field` become `meta`.

    Raises:
        SourceError: While iterating: nothing to read, or a record or file that is not as above.
    """
    count = 0
    for document in _read(str(source), text_field):
        count += 1
        yield document
    if not count:
        raise SourceError(f"{source} holds no documents: expected at least one text")


def _read(source: str, text_field: str) -> Iterator[Document]:
    path = Path(source)
    if source.startswith("hf:"):
        return _dataset(source.removeprefix("hf:"), text_field)
    if path.is_dir():
        return _folder(path, text_field)
    if not path.exists():
        raise SourceError(f"{path} does not exist: expected a file, a folder or `hf:owner/name`")
    return _file(path, path.name, text_field)


def _folder(folder: Path, text_field: str) -> Iterator[Document]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        if path.name.endswith(RECORDS) or not _no_text(path):
            yield from _file(path, name.as_posix(), text_field)


def _no_text(path: Path) -> bool:
    """Whether a file is empty or binary, by Git's rule: a zero byte near its beginning."""
    with _opened(path) as file:
        start = file.read(8192)
    return not start or b"\0" in start


def _file(path: Path, name: str, text_field: str) -> Iterator[Document]:
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines(path, name, text_field)
    if name.endswith(".parquet"):
        return _parquet(path, name, text_field)
    return iter([_plain(path, name)])


def _plain(path: Path, name: str) -> Document:
    with _opened(path) as file:
        text = _utf8(file.read(), str(path))
    if not text:
        raise SourceError(f"{path} is empty: expected a text")
    return Document(name, text, {})


def _json_lines(path: Path, name: str, text_field: str) -> Iterator[Document]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        text = _utf8(line, where)
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise SourceError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise SourceError(f"{where}: holds a {type(record).__name__}, expected an object")
        yield _document(record, text_field, f"{name}:{number}", where)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with _opened(path) as raw:
        file: Iterable[bytes] = gzip.open(raw) if path.name.endswith(".gz") else raw
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{path}: not whole gzip after line {number} ({error})") from error


def _parquet(path: Path, name: str, text_field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(path) as file:
        try:
            parquet = pq.ParquetFile(file)
            fields = parquet.schema_arrow.names
            if text_field not in fields:
                raise SourceError(_no_field(str(path), text_field, fields))
            row = 0
            for batch in parquet.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    row += 1
                    yield _document(record, text_field, f"{name}:{row}", f"{path}, row {row}")
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise SourceError(f"{path} cannot be read as Parquet: {reason}") from error


def _dataset(spec: str, text_field: str) -> Iterator[Document]:
    datasets = optional("datasets", "data")
    name, _, split = spec.partition(":")
    try:
        rows = iter(datasets.load_dataset(name, split=split or "train", streaming=True))
        for number, record in enumerate(rows, start=1):
            where = f"hf:{name}, row {number}"
            yield _document(record, text_field, f"{name}:{number}", where)
    except (OSError, ValueError, ImportError) as error:  # what `datasets` raises for a bad name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"data set {name} cannot be read: {reason}") from error


def _document(record: dict[str, Any], text_field: str, name: str, where: str) -> Document:
    if text_field not in record:
        raise SourceError(_no_field(where, text_field, list(record)))
    text = record[text_field]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise SourceError(f"{where}: field {text_field!r} holds {kind}, expected a string")
    if not text:
        raise SourceError(f"{where}: field {text_field!r} is an empty text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{where}: character {error.start} is half of a surrogate pair"
        ) from error
    rest = {key: value for key, value in record.items() if key not in (text_field, "id", "meta")}
    meta = record.get("meta")
    if meta is not None:
        rest = {**meta, **rest} if isinstance(meta, dict) else {"meta": meta, **rest}
    return Document(name if record.get("id") is None else str(record["id"]), text, rest)


def _no_field(where: str, text_field: str, fields: list[str]) -> str:
    there = ", ".join(repr(field) for field in fields) or "no fields"
    return f"{where}: no field {text_field!r}, only {there}: name the one that holds the text"


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from error


def _utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: byte {error.start} is not UTF-8") from error
