"""Translation of filters to Milvus's expression language.

Milvus Lite and Milvus servers disagree about comparisons with missing values and their negations.
Negations are therefore pushed down to the comparisons, and each comparison states explicitly
whether rows without the field pass. Texts and field names are encoded in hexadecimal, which
preserves their order, so that none can be mistaken for a part of an expression.
"""

import sys
from collections.abc import Sequence

from whet.data.filters import (
    TEXT_OPERATORS,
    And,
    Compare,
    Filter,
    In,
    Not,
    Or,
    Value,
    as_comparable,
    kind,
)

ALL, NONE = "(row >= 0)", "(row < 0)"
NEGATED = {"==": "!=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
INT_LIMIT = 2**63  # Milvus's integers have 64 bits


def hex_encode(text: str) -> str:
    """Encode a text so that encoded texts compare by code point, as texts do."""
    return text.encode("utf-8", "surrogatepass").hex()


def field_key(field: str, kind: str) -> str:
    """Key, within the JSON column, of a field's values of one kind."""
    return f"{kind}_{hex_encode(field)}"


def field_path(field: str, kind: str) -> str:
    """Path of the same values in an expression."""
    return f'fields["{field_key(field, kind)}"]'


def literal(value: Value) -> str:
    """A value as an expression writes it.

    Raises:
        ValueError: If it is infinite, or larger than any real.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{hex_encode(value)}"'
    if abs(value) > sys.float_info.max:
        raise ValueError(f"a filter compares with {value}, but Milvus requires finite numbers")
    return repr(value if isinstance(value, float) or abs(value) < INT_LIMIT else float(value))


def expression(where: Filter, negate: bool = False) -> str:
    """The expression of a filter, or of its negation."""
    match where:
        case Compare(field, op, value):
            return _comparison(field, op, value, negate)
        case In(field, values):
            return _join([Compare(field, "==", value) for value in values], "or", negate)
        case And(filters):
            return _join(filters, "and", negate)
        case Or(filters):
            return _join(filters, "or", negate)
        case Not(inner):
            return expression(inner, not negate)
    raise AssertionError(where)


def _join(filters: Sequence[Filter], operator: str, negate: bool) -> str:
    if negate:  # De Morgan
        operator = "and" if operator == "or" else "or"
    parts = [expression(part, negate) for part in filters]
    if not parts:
        return NONE if operator == "or" else ALL
    return f"({f' {operator} '.join(parts)})"


def _comparison(field: str, op: str, value: Value, negate: bool) -> str:
    if op in TEXT_OPERATORS:
        return _text_part(field, op, str(value), negate)
    operator = NEGATED[op] if negate else op
    if field == "id":
        if kind(value) != "text":
            return ALL if negate else NONE
        return f"(name {operator} {literal(value)})"
    path, value = field_path(field, kind(value)), as_comparable(field, value)
    if negate:
        return f"((not (exists {path})) or ({path} {operator} {literal(value)}))"
    return f"((exists {path}) and ({path} {operator} {literal(value)}))"


def _text_part(field: str, op: str, part: str, negate: bool) -> str:
    """Whether a text starts with `part`, by the hexadecimal form of both.

    Raises:
        ValueError: If it is to contain `part`, which its hexadecimal form does not show.
    """
    if op == "contains":
        raise ValueError(
            f"a filter looks for {part!r} within texts, which a copy in Milvus cannot: use "
            f'`{field}.startswith("…")` or ==, or the data space on disk'
        )
    path = "name" if field == "id" else field_path(field, "text")
    found = f'{path} like "{hex_encode(part)}%"'
    if field != "id":
        found = f"(exists {path}) and ({found})"
    return f"(not ({found}))" if negate else f"({found})"
