"""Where documents come from: JSON, CSV, Parquet, folders, files, stdin, Hugging Face data sets.

A source yields its records one at a time, and an error in place of a record that cannot be read,
so that the caller decides whether to go on.
"""

import re
import sys
from pathlib import Path
from typing import Any, cast

from whet.data.formats.packing import read_lines
from whet.data.records import file_records, json_records
from whet.data.tables import Record, Records
from whet.data.walk import FileOptions, walk
from whet.errors import SourceError, require
from whet.hub import is_cut_off

STDIN = "-"


def records(source: str, text_field: str, options: FileOptions | None = None) -> Records:
    """The records of `source`; a file of another format is one record with the field `text_field`.

    What a folder leaves out by rule is a `LeftOut` in its place.

    Raises:
        SourceError: If there is no such file or folder.
    """
    path, options = Path(source), options or FileOptions()
    if source == STDIN:
        lines = read_lines(cast(Any, sys.stdin.buffer), "stdin", "", options.max_bytes)
        return json_records(lines, "stdin", "stdin")
    if source.startswith("hf:"):
        return _dataset(source.removeprefix("hf:"))
    if path.is_dir():
        return _folder(path, text_field, options)
    if not path.exists():
        raise SourceError(f"{path} does not exist: expected a file, a folder or `hf:owner/name`")
    return file_records(path, path.name, text_field, options)


def _folder(folder: Path, text_field: str, options: FileOptions) -> Records:
    for file in walk(folder, options):
        if file.problem is not None:
            yield file.problem
        else:
            yield from file_records(file.location, file.path, text_field, options, in_folder=True)


def _dataset(spec: str) -> Records:
    """The records of a data set, `NAME`, `NAME:SPLIT`, `NAME@CONFIG` or `NAME@CONFIG:SPLIT`."""
    datasets = require("datasets", "data")
    name, config, split = _parse_dataset(spec)
    if not name:
        yield SourceError("hf: names no data set: expected `hf:owner/name@config:split`")
        return
    where, number = f"hf:{name}" + (f"@{config}" if config else ""), 0
    if is_cut_off(name):
        yield SourceError(
            f"{where}: the Hugging Face hub cannot be reached: connect to the network"
        )
        return
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
