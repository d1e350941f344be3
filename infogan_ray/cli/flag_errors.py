"""Rewrites errors of the flag parser tyro in our form: field, value, valid choices, next step."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tyro

from infogan_ray.training.config_fields import not_one_of

KINDS = {int: "a whole number", float: "a number"}
QUOTED = r"""(['"])(.*?)\1"""
UNKNOWN = re.compile(r"Unrecognized options:\s*(.*)")
VALUE = re.compile(r"Error parsing (?:-\w/)?(--\S+): (.+)")
GIVEN = re.compile(rf"(?:base 10: |to float: |from \[){QUOTED}")
CHOICE = re.compile(rf"invalid choice {QUOTED} for argument '?(?:-\w/)?([^\s']+)'?\. Expected one of \((.+)\)")
NO_VALUE = re.compile(r"Missing value for argument '(?:-\w/)?([^']+)'")
MISSING = re.compile(r"Missing from ")
NUMBER = re.compile(r"-\.?\d.*")


@contextlib.contextmanager
def without_terminal() -> Iterator[None]:
    """Inside the block, the parser does not break lines and prints nothing on stdout."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def in_one_line(text: str, kind: type, prefixes: bool, more: Iterable[str] = ()) -> str:
    """The parser's error box as one line. A message of an unknown form is returned unchanged.

    ``kind`` is the dataclass of the flags. With ``prefixes``, a flag's name starts with its section's name.
    ``more``: valid flags that ``kind`` does not have.
    """
    message = _first_part(text)
    flags = dict(_flags(kind, prefixes))
    if match := UNKNOWN.match(message):
        return _unknown(match[1].split(", "), [*flags, *more])
    if match := VALUE.match(message):
        given = GIVEN.search(match[2])
        valid = [KINDS[k] for k in KINDS if k in (hint := flags.get(match[1]), *typing.get_args(hint))]
        if given and valid:
            return f"{match[1]} is '{given[2]}'; it must be {valid[0]}"
        if typing.get_origin(flags.get(match[1])) is dict:
            return f"{match[1]} takes pairs of a name and a number, for example {match[1]} uniform0 0.1 uniform1 1"
        return f"{match[1]}: {match[2]}"
    if match := CHOICE.search(message):
        choices = [choice.strip("'\" ") for choice in match[4].split(",") if choice.strip()]
        return not_one_of(match[3], match[2], choices)
    if match := NO_VALUE.match(message):
        return f"{match[1]} needs a value" if match[1].startswith("-") else f"'{match[1]}' is missing"
    if MISSING.match(message):
        required = [f"'{field.name}'" for field in dataclasses.fields(kind) if _has_no_default(field)]
        missing = required[-message.count("(required)") :]
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
    return re.sub(r"^Error parsing \w+: ", "", message)


def _first_part(text: str) -> str:
    """The text below the box's title, up to the next horizontal line of the box. The box may be ASCII."""
    lines: list[str] = []
    for line in text.splitlines()[1:]:
        line = line.strip("│ ")
        if line.strip("─-╰╯"):
            lines.append(line)
        elif line and lines:
            break
    return " ".join(lines)


def _flags(kind: type, prefixes: bool, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (flag, type); for a boolean flag also its --no- form."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint), prefixes, f"{prefix}{name}." if prefixes else "")
        elif tyro.conf.Positional not in typing.get_args(hint):
            yield f"--{prefix}{name}", hint
            if hint is bool:
                yield f"--{prefix}no-{name}", hint


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _unknown(words: Sequence[str], flags: Sequence[str]) -> str:
    unknown = [word.partition("=")[0] for word in words if word.startswith("-") and not NUMBER.fullmatch(word)]
    if not unknown:
        return f"unexpected argument '{' '.join(words)}'"
    if unknown[0] in flags:
        return f"{unknown[0]} takes no value"
    similar = _similar(unknown[0].lstrip("-").replace("_", "-").lower(), flags)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    return f"there is no flag {unknown[0]}{hint}"


def _similar(name: str, flags: Sequence[str]) -> list[str]:
    """Up to four flags with the same part or the same start of the name, or else with a similar spelling."""
    if len(name) < 2:
        return []
    last = {flag: flag[2:].rpartition(".")[2] for flag in flags}
    off = name.startswith("no-") or ".no-" in name
    alike = [flag for flag in flags if last[flag].startswith("no-") == off]
    near = [flag for flag in alike if name in (last[flag], flag[2:].partition(".")[0])]
    near += [flag for flag in alike if flag[2:].startswith(name) or last[flag].startswith(f"{name}-")]
    if not near:
        section, dot, rest = name.removeprefix("no-").partition(".")
        turned = f"{section}.no-{rest}" if dot and name.startswith("no-") else name
        near = difflib.get_close_matches(f"--{turned}", alike, n=1, cutoff=0.75)
    if not near:
        ends = difflib.get_close_matches(name, [last[flag] for flag in alike], n=1, cutoff=0.75)
        near = [flag for flag in alike if last[flag] in ends]
    return list(dict.fromkeys(near))[:4]
