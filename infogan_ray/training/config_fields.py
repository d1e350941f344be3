"""Replaces and checks the fields of a configuration, which is a dataclass of values and sections."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from infogan_ray import UserError

REMOVED = ("ray",)
"""Top-level fields of earlier versions. Saved configurations may have them. They have no effect."""


def replace_fields(section: Any, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    """A copy of a configuration with nested values replaced. Raises UserError for unknown fields and wrong types."""
    hints = typing.get_type_hints(type(section))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        key = str(key).replace("-", "_")
        if not prefix and key in REMOVED:
            continue
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"valid are {', '.join(hints)}"
            raise UserError(f"{source}: unknown field '{prefix}{key}'; {hint}")
        current = getattr(section, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{source}: '{prefix}{key}' is {value!r}; it must be fields and values")
            changes[key] = replace_fields(current, value, source, f"{prefix}{key}.")
        else:
            changes[key] = _typed(value, hints[key], f"{source}: {prefix}{key}")
    if changes.get("epochs") is not None and "steps" not in changes:
        changes["steps"] = None  # these epochs replace the steps of a preset
    if changes.get("steps") is not None and "epochs" not in changes and hasattr(section, "epochs"):
        changes["epochs"] = None
    return dataclasses.replace(section, **changes)


def _typed(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is Literal:
            origin = str
        if option is types.NoneType and value is None:
            return None
        if origin is float and isinstance(value, str):
            try:
                return float(value)  # YAML 1.1 reads 2e-4 as text
            except ValueError:
                continue
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(origin, type) and isinstance(value, origin) and (origin is bool or not isinstance(value, bool)):
            return value
    names = " or ".join("nothing" if o is types.NoneType else getattr(o, "__name__", str(o)) for o in options)
    raise UserError(f"{where} is {value!r}; it must be {names}")


def check_at_least_one(name: str, value: int | None, optional: bool = False) -> None:
    """Raises UserError for a value below 1."""
    if value is None and optional:
        return
    if value is None or value < 1:
        raise UserError(f"{name} is {value}; it must be at least 1")


def check_one_of(name: str, value: Any, valid: tuple[Any, ...]) -> None:
    """Raises UserError, with the valid values, for a value that is not in ``valid``."""
    if value not in valid:
        raise UserError(not_one_of(name, str(value), [str(choice) for choice in valid if choice is not None]))


def not_one_of(name: str, value: str, valid: Sequence[str]) -> str:
    """The error message for a value that is not valid, with the most similar valid value."""
    close = difflib.get_close_matches(value, valid, n=1, cutoff=0.75)  # do not suggest cpu for gpu
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"{name} is '{value}'{hint}; valid are {', '.join(valid)}"
