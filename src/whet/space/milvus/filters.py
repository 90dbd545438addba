"""Filters in Milvus's language.

Milvus Lite and servers differ in what a comparison with a missing value gives, and in what a
negation makes of it. So negations are pushed to the leaves, and each leaf says for itself what it
makes of a row without the field. Texts and names of fields are spelled in hexadecimal, which keeps
their order, so that none can be taken for a part of an expression.
"""

from whet.data.filters import And, Compare, Filter, In, Not, Or, Value, kind

ALL, NONE = "(row >= 0)", "(row < 0)"
OPPOSITE = {"==": "!=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
LARGEST = 2**63  # of Milvus's whole numbers


def spelled(text: str) -> str:
    """Texts that compare as these do, by code point."""
    return text.encode("utf-8", "surrogatepass").hex()


def key(field: str, kind: str) -> str:
    """What holds a field's values of one kind, within the JSON column."""
    return f"{kind}_{spelled(field)}"


def column(field: str, kind: str) -> str:
    """The same, as a filter names it."""
    return f'fields["{key(field, kind)}"]'


def literal(value: Value) -> str:
    """A value as a filter spells it.

    Raises:
        ValueError: If it is infinite.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{spelled(value)}"'
    if abs(value) == float("inf"):
        raise ValueError(f"a filter compares with {value}: Milvus knows finite numbers only")
    return repr(value if isinstance(value, float) or abs(value) < LARGEST else float(value))


def expression(filter: Filter, opposite: bool = False) -> str:
    """What passes `filter`, or what fails it."""
    match filter:
        case Compare(field, op, value):
            return _compared(field, op, value, opposite)
        case In(field, values):
            leaves: list[Filter] = [Compare(field, "==", value) for value in values]
            return _joined(leaves, any_passes=True, opposite=opposite)
        case And(filters):
            return _joined(filters, any_passes=False, opposite=opposite)
        case Or(filters):
            return _joined(filters, any_passes=True, opposite=opposite)
        case Not(inner):
            return expression(inner, not opposite)
    raise AssertionError(filter)


def _joined(filters: "list[Filter] | tuple[Filter, ...]", any_passes: bool, opposite: bool) -> str:
    any_passes = any_passes is not opposite  # De Morgan
    parts = [expression(part, opposite) for part in filters]
    if not parts:
        return NONE if any_passes else ALL
    return f"({(' or ' if any_passes else ' and ').join(parts)})"


def _compared(field: str, op: str, value: Value, opposite: bool) -> str:
    sign = OPPOSITE[op] if opposite else op
    if field == "id":
        if kind(value) != "text":
            return ALL if opposite else NONE
        return f"(name {sign} {literal(value)})"
    have = column(field, kind(value))
    if opposite:
        return f"((not (exists {have})) or ({have} {sign} {literal(value)}))"
    return f"((exists {have}) and ({have} {sign} {literal(value)}))"
