"""Finds the first difference between two JSON values."""

from __future__ import annotations

from typing import Any


def difference(old: Any, new: Any, path: str = "") -> str:
    """A sentence about the first difference between two JSON values; empty if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            where = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                return f"{where} is {'new' if key not in old else 'missing'}"
            if found := difference(old[key], new[key], where):
                return found
        return ""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{path} has {len(new)} entries, and had {len(old)}"
        for number, pair in enumerate(zip(old, new, strict=True)):
            if found := difference(*pair, f"{path}[{number}]"):
                return found
        return ""
    return "" if old == new else f"{path} is {new!r}, and was {old!r}"
