"""Configuration: the fields of dataclasses as TOML tables, `KEY=VALUE` lines and options.

A configuration is a frozen keyword-only dataclass. The docstring under a field is its help text on
the command line, in JSON schemas and in the reference of the TOML files.
"""

import ast
import inspect
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])

RENAMED = {
    "alpha": "stop_alpha",
    "candidates": "retriever",
    "sign": "metric",
    "effort": "probe_fraction",
    "mode": "adapter",
    "method": "adapter",
    "adaptation": "adapter",
    "rank": "r",
    "targets": "target_modules",
    "optimiser": "optimizer",
    "kind": "name",
    "clip": "max_grad_norm",
    "texts_per_update": "batch_size",
    "reuse": "gradient_reuse",
    "carry": "persist_optimizer",
    "score_at": "eval_steps",
    "keep": "return_adapter",
    "waiting": "max_queue_size",
    "niceness": "background_niceness",
    "compiled": "torch_compile",
    "deadline_ms": "deadline_s",
    "lambda": "lam",
    "return": "include",
    "timing_ms": "seconds",
    "methods": "adapters",
    "queue": "max_queue_size",
    "body_kib": "max_body_kib",
    "body_s": "body_timeout_s",
    "refresh_s": "reload_interval_s",
    "drain_s": "shutdown_timeout_s",
    "page": "ui",
    "keys": "api_keys",
}
"""Old names of fields and their present names: an error about an unknown name gives the new one."""


class Renamed:
    """Class attribute in place of an old name: using it is an error that gives the present name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__}.{self._old} is now called {self._name}")


def renamed_keywords(**renamed: str) -> Callable[[F], F]:
    """Decorator: a call with one of these old keyword names is an error that gives the new one.

    >>> @renamed_keywords(mode="adapter")
    ... def train(*, adapter="lora"): ...
    >>> train(mode="full")
    Traceback (most recent call last):
    TypeError: 'mode' is now called 'adapter'
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs.keys() & renamed.keys():
                raise TypeError(f"{name!r} is now called {renamed[name]!r}")
            return function(*args, **kwargs)

        return cast(F, checked)

    return decorate


EXPECTED = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One field of a configuration."""

    name: str
    type: Any
    """The annotation, without None."""
    default: Any
    """`dataclasses.MISSING` if the field is required."""
    help: str
    choices: tuple[str, ...]
    """The strings of a `Literal`, in order; empty for any other type."""


@cache
def config_fields(kind: type) -> tuple[ConfigField, ...]:
    """The fields of the dataclass `kind`, each with the docstring under it.

    >>> from whet.select.config import SelectionConfig
    >>> [field.name for field in config_fields(SelectionConfig)][:3]
    ['selector', 'n', 'k']
    """
    hints, docs = get_type_hints(kind), _field_docs(kind)
    result = []
    for field in fields(kind):
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        members = [type_ for type_ in _members(hints[field.name]) if type_ is not NoneType]
        choices = tuple(c for m in members if get_origin(m) is Literal for c in get_args(m))
        hint = members[0] if len(members) == 1 else Union[tuple(members)]  # noqa: UP007
        result.append(ConfigField(field.name, hint, default, docs.get(field.name, ""), choices))
    return tuple(result)


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        ValueError: If the file is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def parse_override(line: str, source: str) -> dict[str, Any]:
    """The table that one `KEY=VALUE` line sets; an unquoted word is a string.

    >>> parse_override("adapter=lora", "--set")
    {'adapter': 'lora'}

    Raises:
        ValueError: If the line is not an assignment.
    """
    key, equals, value = line.partition("=")
    if not equals:
        raise ValueError(f"{source}: {line!r} is not an assignment: expected KEY=VALUE")
    try:
        return tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        word = value.strip().replace("\\", "\\\\").replace('"', '\\"')
        try:
            return tomllib.loads(f'{key} = "{word}"')
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{source}: {line!r}: expected KEY=VALUE ({error})") from error


def parse_fields(kind: type, table: Any, source: str) -> dict[str, Any]:
    """The values of `table` converted to the types of the fields of the dataclass `kind`.

    An integer is accepted as a number and a list becomes a tuple. Values of other types than
    strings, numbers, booleans and lists of them are passed on unchanged.

    Raises:
        ValueError: If `table` is not a mapping, has an unknown key, or a value has the wrong type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{source} is {table!r}: expected a table")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in table:
        if name not in names:
            raise ValueError(f"{source}: {unknown_name(name, names)}")
    return {name: _converted(hints[name], value, name) for name, value in table.items()}


def from_table(kind: type[C], table: Any, source: str) -> C:
    """The configuration `kind` with the values of `table`; see `parse_fields`."""
    return kind(**parse_fields(kind, table, source))


def unknown_name(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """Message about a name that is not in `valid`: its new name, the most similar names, or all.

    >>> unknown_name("alpha", ["lam", "stop_alpha"])
    "'alpha' is now called 'stop_alpha'"
    """
    if RENAMED.get(name) in valid:
        return f"{name!r} is now called {RENAMED[name]!r}"
    expected = ", ".join(get_close_matches(name, valid, cutoff=0.65) or valid)
    return f"unknown name {name!r}: expected {expected}"


def check_choice(value: Any, allowed: tuple[str, ...], name: str) -> None:
    """Check that `value` is one of `allowed`.

    Raises:
        ValueError: If it is not; the message calls the value `name`.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected {' or '.join(allowed)}")


def check_choices(config: Any) -> None:
    """Check that every field typed as a `Literal` holds one of its strings.

    Raises:
        ValueError: If one does not.
    """
    for field in config_fields(config.__class__):
        if field.choices and get_origin(field.type) is Literal:
            value = getattr(config, field.name)
            if value is not None or field.default is not None:
                check_choice(value, field.choices, field.name)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _converted(hint: Any, value: Any, name: str) -> Any:
    members = _members(hint)
    if value is None and NoneType in members:
        return None
    expected = []
    for member in members:
        if get_origin(member) is Literal:
            if value in get_args(member):
                return value
            expected += list(get_args(member))
        elif member in EXPECTED:
            if type(value) is member:
                return value
            if member is float and type(value) is int:
                return float(value)
            expected.append(EXPECTED[member])
        elif get_origin(member) is tuple:
            item = get_args(member)[0]
            if isinstance(value, list | tuple):
                return tuple(_converted(item, each, name) for each in value)
            expected.append(f"a list in brackets, each item {EXPECTED.get(item, 'a table')}")
        elif member is not NoneType:
            return value
    raise ValueError(f"{name} is {value!r}: expected {' or '.join(expected)}")


def _field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field, as one line."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[node.target.id] = " ".join(after.value.value.split())
    return docs
