"""The records of a file: JSON, CSV, Parquet, packed or not, or one document of another format.

A file yields its records one at a time, and an error in place of a record that cannot be read, so
that the caller decides whether to go on.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whet.data.formats.convert import UNREADABLE, convert, ending_of, is_converted
from whet.data.formats.encodings import SAMPLE, is_binary, marked_encoding, table_encoding
from whet.data.formats.packing import (
    PACKED_OTHERWISE,
    UNPACKING_ERRORS,
    Lines,
    packing_of,
    read_content,
    read_lines,
    split_ending,
    unpacked,
)
from whet.data.tables import Record, Records, csv_rows, parquet_rows
from whet.data.walk import FileOptions, LeftOut
from whet.errors import SourceError

LINES = "jsonl|ndjson|jsonlines|jl|ldjson"
SEPARATORS = {"csv": ",", "tsv": "\t", "tab": "\t"}
PARQUET = ("parquet", "parq", "pq")
FORMATS = rf"{LINES}|json|{'|'.join(SEPARATORS)}|{'|'.join(PARQUET)}"
RECORDS = re.compile(rf"\.({FORMATS})$", re.IGNORECASE)
OTHER_PACKING = re.compile(rf"\.({FORMATS})\.({'|'.join(PACKED_OTHERWISE)})$", re.IGNORECASE)
RTF = b"{\\rtf"
START = 8192  # bytes by which a file without a known ending is recognized


def file_records(
    path: Path, name: str, text_field: str, options: FileOptions, *, in_folder: bool = False
) -> Records:
    """The records of a file.

    Args:
        path: The file.
        name: Its name, of which the ids of its records are made.
        text_field: Name of the field that holds the text.
        options: Its limits.
        in_folder: Whether it was found in a folder: then it is `LeftOut` if it is empty or binary,
            and its records have a `path`.
    """
    file = _File(path, name, text_field, options.max_bytes, in_folder)
    try:
        for record in file.records():
            if in_folder and isinstance(record, Record):
                record = replace(record, path=name)
            yield record
    except OSError as error:
        yield SourceError(f"{path}: cannot be read: {error.strerror or error}")


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is read as records."""

    path: Path
    name: str
    text_field: str
    max_bytes: int
    in_folder: bool

    @property
    def where(self) -> str:
        """The file, for error messages."""
        return str(self.path)

    def records(self) -> Records:
        """The records by the ending of the name, otherwise by the content."""
        inner, packing = split_ending(self.name)
        ending = RECORDS.search(inner)
        if refused := OTHER_PACKING.search(self.name):
            yield SourceError(
                f"{self.where}: `{refused[0]}` is not a format that whet reads: unpack it, or pack "
                "it as .gz, .bz2, .xz or .zst"
            )
            return
        with self.path.open("rb") as file:
            if ending:
                yield from self._formatted(file, ending[1].lower(), packing)
            elif packing:
                yield from self._packed(file, inner, packing)
            else:
                yield from self._recognized(file)

    def _formatted(self, file: io.BufferedIOBase, format: str, packing: str) -> Records:
        """The records of a file whose ending names their format."""
        if format in PARQUET:
            if not packing:
                yield from parquet_rows(file, self.name, self.where, self.text_field)
            else:
                yield from self._of(
                    self._content(file, packing),
                    lambda c: parquet_rows(io.BytesIO(c), self.name, self.where, self.text_field),
                )
        elif format == "json":
            yield from self._of(self._content(file, packing), self._json)
        elif format in SEPARATORS:
            errors: list[SourceError] = []
            lines = _until_error(self._lines(file, packing, table_encoding), errors)
            yield from csv_rows(lines, self.name, self.where, SEPARATORS[format], self.text_field)
            yield from errors
        else:
            yield from json_records(self._lines(file, packing), self.name, self.where)

    def _packed(self, file: io.BufferedIOBase, inner: str, packing: str) -> Records:
        """A packed file of another format, or of JSON lines under another name."""
        content = self._content(file, packing)
        if isinstance(content, bytes) and _is_json_lines(io.BytesIO(content), self.text_field):
            yield from json_records(io.BytesIO(content), self.name, self.where)
        else:
            yield from self._of(content, lambda content: self._whole(content, inner))

    def _recognized(self, file: io.BufferedIOBase) -> Records:
        """The records of a file whose ending names no format of records."""
        start = file.read(START)
        file.seek(0)
        if start.startswith(b"PAR1"):
            yield from parquet_rows(file, self.name, self.where, self.text_field)
        elif _is_json_lines(file, self.text_field):
            yield from json_records(self._lines(file, ""), self.name, self.where)
        elif self.in_folder and self._is_left_out(start):
            yield LeftOut(self.name, self._left_out_reason(start))
        else:
            yield from self._of(
                self._content(file, ""), lambda content: self._whole(content, self.name)
            )

    def _of(self, content: bytes | SourceError, read: Callable[[bytes], Records]) -> Records:
        """The records that `read` finds in `content`; of an error the error."""
        if isinstance(content, SourceError):
            yield content
        elif self.in_folder and not content:
            yield LeftOut(self.name, "empty")
        else:
            yield from read(content)

    def _is_left_out(self, start: bytes) -> bool:
        other = not start or is_binary(start) or start.startswith(RTF) or bool(packing_of(start))
        return other and not is_converted(start, self.name)

    def _left_out_reason(self, start: bytes) -> str:
        ending = ending_of(self.name)
        if start and ending in UNREADABLE:
            return f"whet does not read .{ending}: save it as .docx, .pdf or .csv"
        return "binary" if start else "empty"

    def _whole(self, content: bytes, inner: str) -> Records:
        """One document, or the records of a JSON array of objects that is not called JSON."""
        if packing := packing_of(content):
            yield SourceError(
                f"{self.where}: is packed ({packing}): unpack it, or call it `.jsonl.{packing}`"
            )
        elif not content:
            yield SourceError(f"{self.where}: is empty: expected a text")
        elif self.in_folder and is_binary(content[:START]) and not is_converted(content, inner):
            yield LeftOut(self.name, "binary")
        elif re.match(rb"\s*\[\s*\{", content[:START]) and _has_texts(content, self.text_field):
            yield from self._json(content)
        else:
            converted = convert(content, inner, self.where, self.max_bytes)
            if isinstance(converted, SourceError):
                yield converted
            else:
                fields = {self.text_field: converted.text} | converted.meta
                yield Record(self.name, self.where, fields, converted.sections)

    def _json(self, content: bytes) -> Records:
        if self.in_folder and is_binary(content[:START]):
            yield LeftOut(self.name, "binary")
        else:
            yield from _json_file(content, self.name, self.where)

    def _content(self, file: io.BufferedIOBase, packing: str) -> bytes | SourceError:
        size = self.path.stat().st_size
        if size > self.max_bytes:
            return SourceError(
                f"{self.where}: has {size:,} bytes, more than the limit of {self.max_bytes:,}: raise "
                "--max-file-mb, or leave the file out"
            )
        return read_content(file, self.where, packing, self.max_bytes)

    def _lines(
        self,
        file: io.BufferedIOBase,
        packing: str,
        find: Callable[[bytes], str | None] = marked_encoding,
    ) -> Lines:
        """Lines in UTF-8, recoded from the encoding that `find` finds in the beginning."""
        with self.path.open("rb") as beginning:
            try:
                encoding = find(unpacked(beginning, packing).read(SAMPLE))
            except UNPACKING_ERRORS:
                encoding = None  # the lines report it
        return read_lines(file, self.where, packing, self.max_bytes, encoding)


def _is_json_lines(file: io.BufferedIOBase, text_field: str) -> bool:
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


def _has_texts(text: bytes, text_field: str) -> bool:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return any(isinstance(fields, dict) and text_field in fields for fields in rows)


def json_records(lines: Iterable[bytes | SourceError], name: str, path: str) -> Records:
    """The records of lines of JSON, up to an error in place of a line."""
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
            yield from json_records(io.BytesIO(content), name, where)
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


def _until_error(
    lines: Iterable[bytes | SourceError], errors: list[SourceError]
) -> Iterator[bytes]:
    """The lines up to the first error, which is appended to `errors`."""
    for line in lines:
        if isinstance(line, SourceError):
            errors.append(line)
            return
        yield line


def _utf8(content: bytes, where: str) -> str | SourceError:
    try:
        return content.decode(marked_encoding(content) or "utf-8-sig")
    except UnicodeDecodeError as error:
        return SourceError(f"{where}: byte {error.start} is not UTF-8")
