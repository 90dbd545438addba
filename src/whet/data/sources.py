"""Where documents come from: JSON, CSV, Parquet, folders, files, stdin, Hugging Face data sets.

A source yields its records one at a time, and an error in place of a record that cannot be read,
so that the caller decides whether to go on.
"""

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from whet.data.tables import Record, Records, csv_rows, parquet_rows
from whet.data.walk import FileOptions, LeftOut, walk
from whet.errors import SourceError, require

LINES = "jsonl|ndjson|jsonlines|jl|ldjson"
SEPARATORS = {"csv": ",", "tsv": "\t", "tab": "\t"}
PARQUET = ("parquet", "parq", "pq")
FORMATS = rf"{LINES}|json|{'|'.join(SEPARATORS)}|{'|'.join(PARQUET)}"
ENDING = re.compile(rf"\.({FORMATS})(?:\.(gz|gzip|zst|zstd|bz2|xz|lz4|zip|br|7z))?$", re.IGNORECASE)
MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
STDIN = "-"
WINDOW_LOG = 27  # of zstd: Arrow decompresses windows of up to 2**27 bytes


def records(source: str, text_field: str, options: FileOptions | None = None) -> Records:
    """The records of `source`; a file of another format is one record with the field `text_field`.

    What a folder leaves out by rule is a `LeftOut` in its place.

    Raises:
        SourceError: If there is no such file or folder.
    """
    path = Path(source)
    if source == STDIN:
        return _json_lines(sys.stdin.buffer, "stdin", "stdin")
    if source.startswith("hf:"):
        return _dataset(source.removeprefix("hf:"))
    if path.is_dir():
        return _folder(path, text_field, options or FileOptions())
    if not path.exists():
        raise SourceError(f"{path} does not exist: expected a file, a folder or `hf:owner/name`")
    return file_records(path, path.name, text_field)


def _folder(folder: Path, text_field: str, options: FileOptions) -> Records:
    for file in walk(folder, options):
        if file.problem is not None:
            yield file.problem
        else:
            yield from file_records(file.location, file.path, text_field, in_folder=True)


def file_records(path: Path, name: str, text_field: str, *, in_folder: bool = False) -> Records:
    """The records of a file; with `in_folder`, an empty or binary file is `LeftOut`."""
    ending = ENDING.search(name)
    format, packing = (part and part.lower() for part in ending.groups()) if ending else ("", None)
    try:
        with path.open("rb") as file:
            if format:
                yield from _formatted(file, name, path, text_field, format, packing, in_folder)
                return
            start = file.read(8192)
            file.seek(0)
            if start.startswith(b"PAR1"):
                yield from parquet_rows(file, name, str(path), text_field)
            elif _is_json_lines(file, text_field):
                yield from _json_lines(file, name, str(path))
            elif in_folder and (_is_binary(start) or start.startswith(tuple(MAGIC))):
                yield LeftOut(name, "binary" if start else "empty")
            else:
                yield from _whole_file(file.read(), name, str(path), text_field)
    except OSError as error:
        yield SourceError(f"{path}: cannot be read: {error.strerror}")


def _formatted(
    file: IO[bytes], name: str, path: Path, text_field: str, format: str, packing: str | None,
    in_folder: bool,
) -> Records:  # fmt: skip
    """The records of a file whose ending names its format."""
    where = str(path)
    packing = {"gzip": "gz", "zstd": "zst"}.get(packing or "", packing)
    if packing not in (None, "gz", "zst") or (packing and format in PARQUET):
        yield SourceError(
            f"{where}: `.{format}.{packing}` is not a format that whet reads: unpack it, or pack "
            "JSON lines, JSON or CSV as .gz or .zst"
        )
    elif format in PARQUET:
        yield from parquet_rows(file, name, where, text_field)
    elif format == "json":
        content = _content(file, where, packing)
        if isinstance(content, SourceError):
            yield content
        elif in_folder and _is_binary(content[:1]):
            yield LeftOut(name, "binary" if content else "empty")
        else:
            yield from _json_file(content, name, where)
    elif format in SEPARATORS:
        errors: list[SourceError] = []
        lines = _until_error(_lines(file, where, packing), errors)
        yield from csv_rows(lines, name, where, SEPARATORS[format], text_field)
        yield from errors
    else:
        yield from _json_lines(file, name, where, packing)


def _is_binary(start: bytes) -> bool:
    """Whether a file that begins so is empty or, by Git's rule, binary."""
    return not start or b"\0" in start


def _is_json_lines(file: IO[bytes], text_field: str) -> bool:
    """Whether a file of another ending holds JSON lines: two objects, or one with a text."""
    found: list[dict[str, Any]] = []
    try:
        if file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
            file.seek(0)
            while len(found) < 2 and (line := file.readline()):
                if text := line.decode("utf-8-sig").strip():
                    found.append(json.loads(text))
                    if not isinstance(found[-1], dict):
                        return False
    except (ValueError, RecursionError):
        return bool(found) and text_field in found[0]
    finally:
        file.seek(0)
    return len(found) == 2 or any(text_field in fields for fields in found)


def _whole_file(content: bytes, name: str, where: str, text_field: str) -> Records:
    """One document, or the records of a JSON array of objects that is not called JSON."""
    packing = next((p for magic, p in MAGIC.items() if content.startswith(magic)), None)
    if packing:
        yield SourceError(
            f"{where}: is packed ({packing}): unpack it, or call it `.jsonl.{packing}`"
        )
        return
    if not content:
        yield SourceError(f"{where}: is empty: expected a text")
        return
    text = _utf8(content, where)
    if isinstance(text, SourceError):
        yield text
    elif re.match(r"\s*\[\s*\{", text) and _has_texts(text, text_field):
        yield from _json_file(content, name, where)
    else:
        yield Record(name, where, {text_field: text})


def _has_texts(text: str, text_field: str) -> bool:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return any(isinstance(fields, dict) and text_field in fields for fields in rows)


def _json_lines(file: IO[bytes], name: str, path: str, packing: str | None = None) -> Records:
    return _json_records(_lines(file, path, packing), name, path)


def _json_records(lines: Iterable[bytes | SourceError], name: str, path: str) -> Records:
    for number, line in enumerate(lines, start=1):
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


def _json_file(content: bytes, name: str, where: str) -> Records:
    """The records of an array of objects, of one object, or of JSON lines in a `.json` file."""
    text = _utf8(content, where)
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
            yield from _json_records(io.BytesIO(content), name, where)
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
            f"{where}: holds no object: expected one, an array of them, or one per line"
        )


def _content(file: IO[bytes], where: str, packing: str | None) -> bytes | SourceError:
    """All bytes of a file, unpacked."""
    errors: list[SourceError] = []
    content = b"".join(_until_error(_lines(file, where, packing), errors))
    return errors[0] if errors else content


def _until_error(
    lines: Iterable[bytes | SourceError], errors: list[SourceError]
) -> Iterator[bytes]:
    """The lines up to the first error, which is appended to `errors`."""
    for line in lines:
        if isinstance(line, SourceError):
            errors.append(line)
            return
        yield line


def _lines(file: IO[bytes], path: str, packing: str | None) -> Iterator[bytes | SourceError]:
    """Lines; an error in place of the rest if a compressed file is truncated."""
    number = 0
    try:
        for number, line in enumerate(_unpacked(file, packing), start=1):  # noqa: B007
            yield line
    except (EOFError, zlib.error, OSError) as error:
        if packing is None:
            raise
        if "too much memory" in str(error):  # zstd's message about a long window
            yield SourceError(
                f"{path}: its zstd window is larger than {2**WINDOW_LOG // 2**20} MiB, as of `zstd "
                "--long`: unpack it with `zstd -d --long=31`, then index that, or pack it without "
                "--long"
            )
        else:
            yield SourceError(
                f"{path}: truncated or corrupt {packing} after line {number} ({error})"
            )


def _unpacked(file: IO[bytes], packing: str | None) -> Iterable[bytes]:
    if packing == "gz":
        return gzip.open(file)
    if packing == "zst":
        import pyarrow as pa

        return io.BufferedReader(cast(Any, pa.CompressedInputStream(file, "zstd")))
    return file


def _dataset(spec: str) -> Records:
    """The records of a data set, `NAME`, `NAME:SPLIT`, `NAME@CONFIG` or `NAME@CONFIG:SPLIT`."""
    datasets = require("datasets", "data")
    name, config, split = _parse_dataset(spec)
    if not name:
        yield SourceError("hf: names no data set: expected `hf:owner/name@config:split`")
        return
    where, number = f"hf:{name}" + (f"@{config}" if config else ""), 0
    try:
        rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
        for number, fields in enumerate(rows, start=1):
            yield Record(f"{name}:{number}", f"{where}, row {number}", fields)
    except Exception as error:  # `datasets` raises errors of its own, of Arrow, and of the network
        after = f" after row {number}" if number else ""
        reason = _dataset_reason(name, error)
        yield SourceError(f"{where}: cannot be read as a data set{after}: {reason}")


def _parse_dataset(spec: str) -> tuple[str, str | None, str]:
    """Name, configuration and split. The name of an existing folder may contain `@` and `:`."""
    if Path(spec).is_dir() and spec:
        return spec, None, ""
    rest, _, split = spec.rpartition(":") if ":" in spec else (spec, "", "")
    if Path(rest).is_dir() and rest:
        return rest, None, split
    name, _, config = rest.rpartition("@") if "@" in rest else (rest, "", "")
    return name, config or None, split


def _dataset_reason(name: str, error: Exception) -> str:
    """Why a data set cannot be read, on one line; names its configurations if one is missing."""
    message = str(error)
    listed = re.search(r"(?:available configs|Available|available)[^\[]*(\[[^\]]*\])", message)
    if listed and ("onfig" in message):
        configs = listed.group(1)
        return f"choose a configuration with `hf:{name}@CONFIG`: it has {configs}"
    return " ".join(message.split())[:300] or type(error).__name__


def _utf8(line: bytes, where: str) -> str | SourceError:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return SourceError(f"{where}: byte {error.start} is not UTF-8")
