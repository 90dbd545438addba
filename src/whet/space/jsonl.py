"""JSON as others read it too: what Python alone takes for a number, NaN and infinities, is null."""

import json
import math
from typing import Any


def as_json(value: Any) -> str:
    """One line; what JSON does not know is written as its text."""
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
