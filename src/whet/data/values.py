"""Metadata as JSON: values of NumPy, pandas and Arrow, points in time, and the depth of nesting.

Metadata is stored as JSON. A value that JSON lacks becomes the nearest one that it has: a NumPy
number a number, what is missing (NaN, NaT, NA) null, a point in time its text in ISO 8601 (UTC if
it has a time zone).
"""

import base64
import datetime
import decimal
import json
import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

MAX_DEPTH = 64  # levels of lists and objects in metadata
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d)?(?:[.,](\d+))?\s?([Zz]|[+-]\d\d(?::?\d\d)?)?"
)
"""A date and a time of day in ISO 8601, with seconds, fraction and offset where there are any."""
TIME_PREFIX = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d"  # all texts that `TIME` matches begin so


def plain(value: Any) -> Any:
    """The JSON value that `value` becomes in metadata.

    >>> import numpy as np
    >>> plain({"year": np.int64(2010), "score": float("nan"), "tags": ("a", "b")})
    {'year': 2010, 'score': None, 'tags': ['a', 'b']}

    Numbers, booleans and texts of NumPy, pandas and Arrow become Python's. NaN, NaT, NA and
    infinities become None; dates and times ISO 8601; durations seconds; decimals numbers; bytes
    their text in UTF-8, or otherwise base64; sets, tuples and arrays lists; other objects `str`.

    Raises:
        ValueError: If lists and objects are nested more than 64 deep.
    """
    return _plain(value, 0)


def _plain(value: Any, depth: int) -> Any:
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, Mapping | list | tuple | AbstractSet):
        if depth == MAX_DEPTH:
            raise ValueError(
                f"metadata is nested more than {MAX_DEPTH} deep: flatten it, or leave it out"
            )
        if isinstance(value, Mapping):
            return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
        items = sorted(value, key=repr) if isinstance(value, AbstractSet) else value
        return [_plain(item, depth + 1) for item in items]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return _text(bytes(value))
    if isinstance(value, str):
        return str.__str__(value)
    if is_missing(value):
        return None
    if isinstance(value, bool | int):
        return int(value)  # such as an IntEnum
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return _iso(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return _decimal(value)
    return _other(value, depth)


def _other(value: Any, depth: int) -> Any:
    """A scalar or an array of NumPy, torch or Arrow, or another object as its `str`."""
    if hasattr(value, "as_py"):
        return _plain(value.as_py(), depth)
    dtype = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "")
    if kind == "M":  # points in time; `tolist` makes integers of nanoseconds
        import numpy as np

        texts = np.datetime_as_string(value, unit="auto", timezone="naive").tolist()
        return _plain(texts, depth)
    if kind == "m":
        import numpy as np

        return _plain((np.asarray(value) / np.timedelta64(1, "s")).tolist(), depth)
    if dtype is not None and hasattr(value, "tolist"):
        converted = value.tolist()
        return str(value) if type(converted) is type(value) else _plain(converted, depth)
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether `value` stands for a missing one: None, NaN, NaT or NA.

    >>> is_missing(float("nan")), is_missing("")
    (True, False)
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        unequal = value != value  # NaN and NaT differ from themselves
    except (TypeError, ValueError):
        return False
    if not isinstance(unequal, bool) and getattr(unequal, "shape", None) != ():
        return False
    return bool(unequal)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    converted = None if isinstance(key, tuple) else plain(key)
    return str(key) if isinstance(converted, list | dict) else _spelled(key, converted)


def _spelled(key: Any, converted: Any) -> str:
    """A key of another kind as `json.dumps` spells it, such as `1`, `true` or `null`."""
    if isinstance(key, tuple):
        return str(key)
    return converted if isinstance(converted, str) else json.dumps(converted)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return base64.b64encode(content).decode("ascii")


def _decimal(value: decimal.Decimal) -> int | float | str:
    if value == value.to_integral_value() and abs(value) < 2**63:
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else str(value)


def _iso(value: Any) -> str:
    """ISO 8601; a point in time with a time zone is in UTC and ends in `Z`."""
    if not isinstance(value, datetime.datetime) or value.utcoffset() is None:
        text: str = value.isoformat()
        return text
    try:
        text = value.astimezone(datetime.UTC).isoformat()
    except OverflowError:  # at the ends of the years 1 and 9999
        return str(value.isoformat())
    return text.removesuffix("+00:00") + "Z"


def comparable_time(text: str) -> str | None:
    """The spelling by which filters compare a point in time; None for any other text.

    Spellings of one moment become equal, and their order by code point is that of the moments. A
    point in time without an offset counts as UTC.

    >>> comparable_time("2024-06-01T14:00:00+02:00"), comparable_time("2024-06-01 12:00:00.50Z")
    ('2024-06-01T12:00:00', '2024-06-01T12:00:00.5')
    """
    match = TIME.fullmatch(text)
    if match is None:
        return None
    day, minutes, seconds, fraction, offset = match.groups()
    try:
        moment = datetime.datetime.fromisoformat(
            f"{day}T{minutes}{seconds or ':00'}{(offset or 'Z').upper()}"
        ).astimezone(datetime.UTC)
    except (ValueError, OverflowError):  # such as a 13th month
        return None
    digits = (fraction or "").rstrip("0")
    return moment.strftime("%Y-%m-%dT%H:%M:%S").zfill(19) + (f".{digits}" if digits else "")


def read_meta(text: str) -> dict[str, Any]:
    """Parse stored metadata. What is nested more than 64 deep becomes its JSON text.

    >>> read_meta('{"year": 2010}')
    {'year': 2010}
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        fields: dict[str, Any] = json.loads(text)
        return fields
    try:
        fields = json.loads(text)
    except RecursionError:
        return {"meta": text}
    return {key: _flattened(value, 1) for key, value in fields.items()}


def _flattened(value: Any, depth: int) -> Any:
    if not isinstance(value, dict | list):
        return value
    if depth == MAX_DEPTH:
        return json.dumps(value)
    if isinstance(value, dict):
        return {key: _flattened(item, depth + 1) for key, item in value.items()}
    return [_flattened(item, depth + 1) for item in value]
