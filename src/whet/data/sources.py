"""Sources of records: JSON, CSV, Parquet, folders, single files, stdin, Hugging Face data sets.

Records are read one at a time. A `SourceError` is yielded in place of each one that cannot be read,
so that the caller decides whether to go on.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from whet.errors import SourceError, require

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
STDIN = "-"
MAX_FIELD = 2**31 - 1  # characters of a CSV field; the default limit is 131,072


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source."""

    name: str
    """Id of the document if the record has none."""
    where: str
    """File and line, for error messages."""
    fields: dict[str, Any]


Records = Iterator[Record | SourceError]


def records(source: str, text_field: str) -> Records:
    """The records of `source`; a file of plain text is one record with the field `text_field`.

    Raises:
        SourceError: If there is no such file or folder.
    """
    path = Path(source)
    if source == STDIN:
        return _json_lines(sys.stdin.buffer, "stdin", "stdin")
    if source.startswith("hf:"):
        return _dataset(source.removeprefix("hf:"))
    if path.is_dir():
        return _folder(path, text_field)
    if not path.exists():
        raise SourceError(f"{path} does not exist: expected a file, a folder or `hf:owner/name`")
    return _file(path, path.name, text_field)


def _folder(folder: Path, text_field: str) -> Records:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts) and path.is_file():
            yield from _file(path, name.as_posix(), text_field, skip_binary=True)


def _file(path: Path, name: str, text_field: str, *, skip_binary: bool = False) -> Records:
    """The records of a file; with `skip_binary`, none of an empty or binary file."""
    try:
        with path.open("rb") as file:
            if name.endswith(LINES):
                yield from _json_lines(file, name, str(path))
            elif name.endswith(".json"):
                if not (skip_binary and _is_binary(file.read(1))):
                    yield from _json_file(file, name, str(path))
            elif name.endswith(tuple(SEPARATORS)):
                separator = SEPARATORS[path.suffix]
                yield from _table(file, name, str(path), separator, text_field)
            elif name.endswith(".parquet"):
                yield from _parquet(file, name, str(path), text_field)
            else:
                start = file.read(8192)
                if not (skip_binary and _is_binary(start)):
                    yield _plain(start + file.read(), name, str(path), text_field)
    except OSError as error:
        yield SourceError(f"{path}: cannot be read: {error.strerror}")


def _is_binary(start: bytes) -> bool:
    """Whether a file that starts with these bytes is empty or, by Git's rule, binary."""
    return not start or b"\0" in start


def _plain(content: bytes, name: str, where: str, text_field: str) -> Record | SourceError:
    if not content:
        return SourceError(f"{where}: is empty: expected a text")
    text = _utf8(content, where)
    return text if isinstance(text, SourceError) else Record(name, where, {text_field: text})


def _json_lines(file: IO[bytes], name: str, path: str) -> Records:
    for number, line in _lines(file, path):
        where = f"{path}, line {number}"
        if isinstance(line, SourceError):
            yield line
            return
        text = _utf8(line, where)
        if isinstance(text, SourceError):
            yield text
        elif text.strip():
            yield _json(text, f"{name}:{number}", where)


def _json(text: str, name: str, where: str) -> Record | SourceError:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return SourceError(f"{where}: not valid JSON ({error})")
    return _record(fields, name, where)


def _record(fields: Any, name: str, where: str) -> Record | SourceError:
    if not isinstance(fields, dict):
        return SourceError(f"{where}: holds a {type(fields).__name__}, expected an object")
    return Record(name, where, fields)


def _json_file(file: IO[bytes], name: str, where: str) -> Records:
    """The records of an array of objects, of one object, or of JSON lines named `.json`."""
    file.seek(0)
    text = _utf8(file.read(), where)
    if isinstance(text, SourceError):
        yield text
        return
    if not text.strip():
        yield SourceError(f"{where}: is empty, expected records")
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = text.strip().split("\n")
        if len(lines) > 1 and isinstance(_json(lines[0], name, where), Record):
            file.seek(0)
            yield from _json_lines(file, name, where)
        else:
            yield SourceError(f"{where}: not valid JSON ({error})")
        return
    if isinstance(rows, dict):
        yield Record(name, where, rows)
    elif isinstance(rows, list) and any(isinstance(fields, dict) for fields in rows):
        for number, fields in enumerate(rows, start=1):
            yield _record(fields, f"{name}:{number}", f"{where}, record {number}")
    else:
        yield SourceError(
            f"{where}: holds no object: expected one, an array of them, or a line each"
        )


def _table(file: IO[bytes], name: str, where: str, separator: str, text_field: str) -> Records:
    """The rows of a CSV file whose first line names the fields; quotes may contain newlines."""
    lines = (line.decode("utf-8-sig") for line in file)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    row, fields = 0, list[str]()
    csv.field_size_limit(MAX_FIELD)
    try:
        for row, cells in enumerate(filter(None, rows)):
            place = f"{where}, row {row}"
            if not row:
                fields = cells
                if text_field not in fields:
                    yield Record(name, where, dict.fromkeys(fields))  # one error for all rows
                    return
            elif len(cells) != len(fields):
                yield SourceError(
                    f"{place}: {len(cells)} fields, expected {len(fields)} as in the first line"
                )
            else:
                yield Record(f"{name}:{row}", place, dict(zip(fields, cells, strict=True)))
    except UnicodeDecodeError as error:
        yield SourceError(f"{where}: byte {error.start} of a line after row {row} is not UTF-8")
    except csv.Error as error:
        yield SourceError(f"{where}: cannot be read after row {row}: {error}")


def _lines(file: IO[bytes], path: str) -> Iterator[tuple[int, bytes | SourceError]]:
    """Numbered lines; an error in place of the rest if a compressed file is truncated."""
    kind = path.rpartition(".")[2]
    number = 0
    try:
        for number, line in enumerate(_unpacked(file, kind), start=1):
            yield number, line
    except (EOFError, zlib.error, OSError) as error:
        if kind not in ("gz", "zst"):
            raise
        yield (
            number,
            SourceError(f"{path}: truncated or corrupt {kind} after line {number} ({error})"),
        )


def _unpacked(file: IO[bytes], kind: str) -> Iterable[bytes]:
    if kind == "gz":
        return gzip.open(file)
    if kind == "zst":
        import pyarrow as pa

        return io.BufferedReader(cast(Any, pa.CompressedInputStream(file, "zstd")))
    return file


def _parquet(file: IO[bytes], name: str, path: str, text_field: str) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        parquet = pq.ParquetFile(file)
        if text_field not in parquet.schema_arrow.names:
            yield Record(
                name, path, dict.fromkeys(parquet.schema_arrow.names)
            )  # one error for all rows
            return
        for batch in parquet.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                row += 1
                yield Record(f"{name}:{row}", f"{path}, row {row}", fields)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        yield SourceError(f"{path}: cannot be read as Parquet after row {row}: {reason}")


def _dataset(spec: str) -> Records:
    datasets = require("datasets", "data")
    name, _, split = spec.partition(":")
    try:
        rows = iter(datasets.load_dataset(name, split=split or "train", streaming=True))
        for number, fields in enumerate(rows, start=1):
            yield Record(f"{name}:{number}", f"hf:{name}, row {number}", fields)
    except (OSError, ValueError, ImportError) as error:  # raised by `datasets` for an invalid name
        reason = str(error).partition("\n")[0] or type(error).__name__
        yield SourceError(f"hf:{name}: cannot be read as a data set: {reason}")


def _utf8(line: bytes, where: str) -> str | SourceError:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return SourceError(f"{where}: byte {error.start} is not UTF-8")
