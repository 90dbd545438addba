"""Filters: a small closed grammar over the fields of documents.

    filter = Compare(field, op, value) | In(field, values)
           | And(filters) | Or(filters) | Not(filter)
    op     = "==" | "<" | "<=" | ">" | ">=" | "startswith" | "contains"
    value  = str | int | float | bool

In text, as `parse` reads it: `set == "github" and not (year < 2010 or lang in ["c", "py"])`,
`path.startswith("src/")`, `"test" in path`. A field is a key of a document's `meta`, or `id`. The
logic is two-valued: a document without the field, or with a value of another kind, fails every
comparison and passes its negation. A text that spells a number, as cells of a CSV do, also compares
as that number. Strings are compared by code point, but points in time in ISO 8601 as moments:
`2024-06-01T12:00:00Z` equals `2024-06-01T14:00:00+02:00`, and one without an offset counts as UTC.
"""

import ast
import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from whet.data.values import comparable_time
from whet.io import ast_lock
from whet.maths.arrays import Array

Value = str | int | float | bool
OPERATORS = {"==": np.equal, "<": np.less, "<=": np.less_equal}
OPERATORS |= {">": np.greater, ">=": np.greater_equal}
TEXT_OPERATORS = ("startswith", "contains")
LONGEST = 256  # characters of a string that can be filtered by
SHOWN = 80  # characters of a filter in messages


@dataclass(frozen=True, slots=True)
class Compare:
    """Compares the value of a field with a constant."""

    field: str
    op: str
    value: Value
    kinds: tuple[str, ...] = dataclasses.field(init=False, repr=False)
    """Distinguishes filters whose values compare equal, such as True and 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", (kind(self.value),))
        if self.op not in (*OPERATORS, *TEXT_OPERATORS):
            names = ", ".join((*OPERATORS, *TEXT_OPERATORS))
            raise ValueError(f"op is {self.op!r}: expected one of {names}")
        _check(self.value)
        if self.op in TEXT_OPERATORS and not isinstance(self.value, str):
            raise ValueError(
                f"a filter looks for {self.value!r} in the texts of {self.field!r}: expected a text "
                "in quotes"
            )


@dataclass(frozen=True, slots=True)
class In:
    """The value of a field is one of several."""

    field: str
    values: tuple[Value, ...]
    kinds: tuple[str, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "kinds", tuple(kind(value) for value in self.values))
        for value in self.values:
            _check(value)


@dataclass(frozen=True, slots=True)
class And:
    """All of several filters pass."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of several filters passes."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """A filter does not pass."""

    filter: "Filter"


Filter = Compare | In | And | Or | Not


@runtime_checkable
class Table(Protocol):
    """Rows that a filter is applied to."""

    def __len__(self) -> int: ...

    def compare(self, field: str, op: str, values: tuple[Value, ...]) -> Bool[Array, " n"]:
        """Mask of the rows whose value in `field` compares by `op` with any of `values`."""
        ...


def matches(filter: Filter, table: Table) -> Bool[Array, " n"]:
    """Mask of the rows of `table` that pass."""
    match filter:
        case Compare(field, op, value):
            return table.compare(field, op, (value,))
        case In(field, values):
            return table.compare(field, "==", values)
        case And(filters):
            mask = np.ones(len(table), bool)
            for part in filters:
                mask &= matches(part, table)
            return mask
        case Or(filters):
            mask = np.zeros(len(table), bool)
            for part in filters:
                mask |= matches(part, table)
            return mask
        case Not(inner):
            return ~matches(inner, table)
    raise AssertionError(filter)


def both(first: Filter | None, second: Filter | None) -> Filter | None:
    """The conjunction of two filters; None passes everything."""
    if first is None or second is None:
        return second if first is None else first
    return And((first, second))


def comparisons(filter: Filter) -> list[Compare | In]:
    """The comparisons that a filter consists of.

    Raises:
        ValueError: If it contains anything else, such as a string.
    """
    match filter:
        case Compare() | In():
            return [filter]
        case And(filters) | Or(filters):
            return [leaf for part in filters for leaf in comparisons(part)]
        case Not(inner):
            return comparisons(inner)
    raise ValueError(
        f"filter is {filter!r}: expected Compare, In, And, Or or Not; `parse` reads a string"
    )


def check_fields(filter: Filter, fields: Mapping[str, set[str]]) -> None:
    """Check that rows have the fields of `filter`, with values of the same kind.

    Args:
        filter: The filter to check.
        fields: The kinds of value (see `kind`) that rows have in each field.

    Raises:
        ValueError: If no row has the field, or a value of that kind in it.
    """
    for leaf in comparisons(filter):
        if leaf.field not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ValueError(
                f"the filter's field {leaf.field!r} is in no document: fields are {known}"
            )
        for value in leaf.values if isinstance(leaf, In) else (leaf.value,):
            if kind(value) not in fields[leaf.field]:
                kinds = " and ".join(sorted(fields[leaf.field]))
                advice = f': write it in quotes, as "{value}"' if kinds == "text" else ""
                raise ValueError(
                    f"the filter compares field {leaf.field!r} with {value!r}, but it holds {kinds}"
                    + advice
                )


def kind(value: Value) -> str:
    """`truth`, `number` or `text`: only values of the same kind can be compared."""
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, int | float) else "text"


def as_comparable(field: str, value: Value) -> Value:
    """The form in which filters compare a value of `field`: a point in time in one spelling."""
    if field == "id" or not isinstance(value, str):
        return value
    return comparable_time(value) or value


def parse(text: str) -> Filter:
    """Parse the text form of a filter.

    >>> parse("year >= 2010")
    Compare(field='year', op='>=', value=2010)

    Raises:
        ValueError: If `text` does not follow the grammar; the message names the part.
    """
    try:
        expression = _parse_expression(text.strip())
        if not text.isascii():
            _restore_names(expression, text.strip())
        return _filter(expression)
    except (SyntaxError, RecursionError, MemoryError, UnicodeEncodeError) as error:
        raise ValueError(
            f"filter {_short(text)!r} cannot be read ({getattr(error, 'msg', error)}): expected "
            "comparisons by ==, !=, <, <=, >, >=, in [...] or startswith, joined by and, or and not, as "
            '`set == "github" and year >= 2010`'
        ) from error


def _restore_names(expression: ast.expr, text: str) -> None:
    """Give names the characters that were written: Python parses `ﬁ` as `fi`, another field."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            node.id = ast.get_source_segment(text, node) or node.id


def _short(text: str) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _parse_expression(text: str) -> ast.expr:
    """Parse Python; tries again if another library parses at the same time (see `ast_lock`)."""
    for _ in range(9):
        with ast_lock, suppress(SystemError):
            return ast.parse(text, mode="eval").body
    with ast_lock:
        return ast.parse(text, mode="eval").body


def as_filter(where: Filter | str | None) -> Filter | None:
    """Convert the text form of a filter; filters and None are returned as they are.

    Raises:
        ValueError: If `where` is of another type, or a text that does not follow the grammar.
    """
    if where is None or isinstance(where, Filter):
        return where
    if isinstance(where, str):
        return parse(where)
    raise ValueError(f"where is {where!r}: expected a text such as `year >= 2010`, or a filter")


def _filter(node: ast.expr) -> Filter:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return And(tuple(_filter(part) for part in parts))
        case ast.BoolOp(op=ast.Or(), values=parts):
            return Or(tuple(_filter(part) for part in parts))
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return Not(_filter(inner))
        case ast.Call(func=ast.Attribute(value=left, attr="startswith"), args=[value], keywords=[]):
            return Compare(_field(left), "startswith", _value(value))
        case ast.Compare(
            left=ast.Constant(value=str(part)), ops=[ast.In() | ast.NotIn() as op],
            comparators=[ast.Name() as right],
        ):  # fmt: skip
            found = Compare(_field(right), "contains", part)
            return found if isinstance(op, ast.In) else Not(found)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _comparison(_field(left), op, right)
    raise ValueError(
        f"filter contains `{_short(ast.unparse(node))}`: expected `field == value` and the like"
    )


def _comparison(field: str, op: ast.cmpop, right: ast.expr) -> Filter:
    match op, right:
        case ast.In(), ast.List(elts=parts) | ast.Tuple(elts=parts):
            return In(field, tuple(_value(part) for part in parts))
        case ast.NotIn(), ast.List(elts=parts) | ast.Tuple(elts=parts):
            return Not(In(field, tuple(_value(part) for part in parts)))
        case ast.NotEq(), _:
            return Not(Compare(field, "==", _value(right)))
        case ((ast.Eq() | ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()), _):
            signs = {ast.Eq: "==", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
            return Compare(field, signs[type(op)], _value(right))
    raise ValueError(
        f"filter compares `{field}` in a way it cannot: expected ==, !=, <, <=, >, >= with one value, "
        'or in [...]; parts of a text by `"part" in field` or `field.startswith("part")`'
    )


def _field(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str(name)):
            return name
    raise ValueError(
        f"filter contains `{_short(ast.unparse(node))}`: expected a field's name on the left"
    )


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=str() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    raise ValueError(
        f"filter contains `{_short(ast.unparse(node))}`: expected a text in quotes, a number, True or "
        "False"
    )


def _check(value: Any) -> None:
    if not isinstance(value, str | int | float):
        raise ValueError(f"a filter's value is {value!r}: expected a text, a number or a truth")
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"a filter's text is {_short(value)!r}, with an unpaired surrogate")
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"a filter's text has {len(value)} characters: at most {LONGEST} compare")
    if isinstance(value, float) and value != value:
        raise ValueError("a filter's value is nan: expected a number")
