"""What people write — TOML files, KEY=VALUE — as the fields of dataclasses."""

import tomllib
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ValueError: If it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def parsed(line: str, source: str) -> dict[str, Any]:
    """What one line of TOML sets; a bare word, as shells pass them, is a text.

    Raises:
        ValueError: If the line sets nothing.
    """
    key, equals, value = line.partition("=")
    if not equals:
        raise ValueError(f"{source} has {line!r}, which sets nothing: expected KEY=VALUE")
    try:
        return tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        try:
            return tomllib.loads(f"{key} = {_quoted(value.strip())}")
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{source} has {line!r}: expected KEY=VALUE ({error})") from error


def arguments(kind: type, table: Any, source: str) -> dict[str, Any]:
    """The values of `table` as arguments of the dataclass `kind`: numbers, texts, lists of them.

    A whole number serves as a number, a list becomes a tuple. Fields of other types are left as
    they are.

    Raises:
        ValueError: If it is no table, or sets what is no field, or a value is not of its type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{source} is {table!r}: expected a table")
    known = [field.name for field in fields(kind)]
    for name in table:
        if name not in known:
            raise ValueError(f"{source} sets {name!r}: expected {', '.join(known)}")
    hints = get_type_hints(kind)
    return {name: _as(hints[name], value, name) for name, value in table.items()}


def _as(hint: Any, value: Any, name: str) -> Any:
    if NoneType in get_args(hint):
        [hint] = [one for one in get_args(hint) if one is not NoneType]
    inner = get_args(hint)
    if hint in NAMES:
        return _one(hint, value, f"{name} is {value!r}", NAMES[hint])
    if inner[1:] == (...,):
        told, expected = f"{name} is {value!r}", f"a list, each of it {NAMES[inner[0]]}"
        if not isinstance(value, list):
            raise ValueError(f"{told}: expected {expected}")
        return tuple(_one(inner[0], item, told, expected) for item in value)
    return value


def _one(kind: type, value: Any, told: str, expected: str) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"{told}: expected {expected}")


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
