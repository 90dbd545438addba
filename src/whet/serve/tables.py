"""TOML files as the fields of dataclasses: configuration and keys are read alike."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any


def read_table(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ValueError: If it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def entries(kind: type, table: Any, source: str) -> dict[str, Any]:
    """The values of a table as arguments of `kind`; lists of text become tuples.

    What the field's default does not tell the type of (none, or no default) is not checked here.

    Raises:
        ValueError: If it is no table, sets what is no field, or a value has not its default's type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{source} is {table!r}: expected a table")
    known = {entry.name: entry.default for entry in fields(kind)}
    for name in table:
        if name not in known:
            raise ValueError(f"{source} sets {name!r}: expected {', '.join(known)}")
    return {name: _like(known[name], value, name) for name, value in table.items()}


def _like(default: Any, value: Any, name: str) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is {value!r}: expected a list of texts")
        return tuple(value)
    if isinstance(default, str | bool | int | float):
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in kinds:
            raise ValueError(f"{name} is {value!r}: expected {kinds[-1].__name__}")
    return value
