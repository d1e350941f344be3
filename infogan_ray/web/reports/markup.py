"""Text and numbers as HTML. Every text is escaped."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

from infogan_ray.storage.visible_text import printable

MISSING = "—"


def escape(value: Any) -> str:
    """Text for an element or a quoted attribute. Characters that UTF-8 or XML cannot hold become escapes."""
    return html.escape("\n".join(map(printable, str(value).split("\n"))), quote=True)


def truncate(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number. Booleans are not numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_value(value: Any) -> str:
    """A value as text, not escaped: four significant digits, thousands separators, a dash for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10_000 else _plain(f"{value:.4g}")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def format_tick(value: float) -> str:
    """A number on an axis: 16.7k, 1.5M, 0.25, 5e-5."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{_plain(f'{value / size:.3g}')}{unit}"
    return _plain(f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}")


def short_labels(paths: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """The last part of each path if it is unique, otherwise the whole path."""
    last = {path: path.rpartition(".")[2] for path in paths}
    names = [*last.values(), *taken]
    return {path: short if names.count(short) == 1 else path for path, short in last.items()}


def _plain(text: str) -> str:
    """2e-05 as 2e-5."""
    return re.sub(r"e([+-])0*(\d)", lambda found: f"e{found[1].replace('+', '')}{found[2]}", text)
