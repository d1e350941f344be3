"""What the parser of flags refuses, in the form of all our messages: field, value, what is valid, what to do next."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import tyro

KINDS = {int: "a whole number", float: "a number"}
UNKNOWN = re.compile(r"Unrecognized options: (.+)")
VALUE = re.compile(r"Error parsing (?:-\w/)?(--\S+): (.+)")
GIVEN = re.compile(r"(?:base 10: |to float: |from \[)'(.*?)'")
NO_VALUE = re.compile(r"Missing value for argument '(?:-\w/)?([^']+)'")
MISSING = re.compile(r"Missing from ")


def in_one_line(text: str, kind: type, prefixes: bool, more: Iterable[str] = ()) -> str:
    """From the parser's box; what it says in other forms than those known here stays as it is.

    ``kind`` is the dataclass that was to be filled; where ``prefixes`` is true, flags have their section's name before
    theirs. ``more`` are flags that were taken out before.
    """
    message = _first_part(text)
    flags = dict(_flags(kind, prefixes))
    if match := UNKNOWN.match(message):
        return _unknown(match[1].split(", "), [*flags, *more])
    if match := VALUE.match(message):
        given = GIVEN.search(match[2])
        valid = [KINDS[k] for k in KINDS if k in (hint := flags.get(match[1]), *typing.get_args(hint))]
        if given and valid:
            return f"{match[1]} is '{given[1]}'; it must be {valid[0]}"
        return f"{match[1]}: {match[2]}"
    if match := NO_VALUE.match(message):
        return f"{match[1]} needs a value" if match[1].startswith("-") else f"{match[1]} is missing"
    if MISSING.match(message):
        required = [field.name for field in dataclasses.fields(kind) if _has_no_default(field)]
        missing = required[-message.count("(required)") :]
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
    return re.sub(r"^Error parsing \w+: ", "", message)


def _first_part(text: str) -> str:
    """What is said under the box's title, up to a rule across it. Where no UTF-8 is written the frame is one rule."""
    lines: list[str] = []
    for line in text.splitlines()[1:]:
        line = line.strip("│ ")
        if line.strip("─-╰╯"):
            lines.append(line)
        elif line and lines:
            break
    return " ".join(lines)


def _flags(kind: type, prefixes: bool, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """With their types."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint), prefixes, f"{prefix}{name}." if prefixes else "")
        elif tyro.conf.Positional not in typing.get_args(hint):
            yield f"--{prefix}{name}", hint


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _unknown(words: list[str], flags: list[str]) -> str:
    unknown = [word.partition("=")[0] for word in words if word.startswith("-")]
    if not unknown:
        return f"nothing is expected where {' '.join(words)} stands"
    name = unknown[0].lstrip("-").replace("_", "-")
    last = {flag: flag[2:].rpartition(".")[2] for flag in flags}
    near = [flag for flag in flags if name in (last[flag], flag[2:].partition(".")[0])]
    near += difflib.get_close_matches(f"--{name}", flags, n=1, cutoff=0.75)
    near += [flag for flag in flags if flag[2:].startswith(name) or last[flag].startswith(f"{name}-")]
    near = list(dict.fromkeys(near))[:4]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no flag {unknown[0]}{hint}"
