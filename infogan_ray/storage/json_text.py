"""Writes JSON that every reader accepts: Python's own has NaN and Infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON (RFC 8259). A number that is not finite is undefined, which becomes null."""
    return json.dumps(_defined(value), indent=indent, allow_nan=False)


def is_defined(value: Any) -> bool:
    """False for None, and for a number that is not finite."""
    return math.isfinite(value) if isinstance(value, float) else value is not None


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if is_defined(value) else None
    if isinstance(value, dict):
        return {name: _defined(each) for name, each in value.items()}
    return [_defined(each) for each in value] if isinstance(value, (list, tuple)) else value
