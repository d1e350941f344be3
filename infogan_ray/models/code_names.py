"""Names that people give to codes, such as "slant" for uniform0: ``names.json`` beside the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from infogan_ray import UserError
from infogan_ray.models.priors.registry import KINDS
from infogan_ray.storage.file_system import Storage

NAMES = "names.json"
LONGEST = 40
OURS = re.compile(rf"({'|'.join(KINDS)})\d+")


def check_names(names: Mapping[str, Any], codes: Iterable[str]) -> dict[str, str]:
    """The names that are given, by code; an empty one takes a name away. Raises UserError, in one line."""
    known = list(codes)
    found: dict[str, str] = {}
    for code, name in names.items():
        if code not in known:
            raise UserError(f"code '{code}' does not exist; this model has {', '.join(known)}")
        if not isinstance(name, str):
            raise UserError(f"the name of {code} is {name!r}; it must be text")
        name = " ".join(name.split())
        if not name:
            continue
        if len(name) > LONGEST or not name.isprintable() or re.search("[=,|`<>]", name):
            raise UserError(
                f"the name of {code} is {name[:60]!r}; give at most {LONGEST} letters, without = , | ` < >, "
                "for example slant"
            )
        if OURS.fullmatch(name.lower()) and name != code:
            raise UserError(f"the name of {code} is '{name}', which is how codes are called here; give another")
        same = next((other for other, taken in found.items() if taken.lower() == name.lower()), None)
        if same:
            raise UserError(f"the name of {code} is '{name}', and so is that of {same}; give another")
        if name != code:
            found[code] = name
    return found


def parse_names(content: bytes, codes: Iterable[str], where: str) -> dict[str, str]:
    """Raises UserError, with ``where`` it was read, for what is no such file."""
    try:
        names = json.loads(content)
        if not isinstance(names, dict):
            raise UserError("it is no JSON object")
        return check_names(names, codes)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def read_names(folder: Storage, codes: Iterable[str]) -> dict[str, str]:
    """The names kept in a folder, none if there are none. Raises UserError for a broken file."""
    try:
        return parse_names(folder.read(NAMES), codes, f"{folder}/{NAMES}")
    except FileNotFoundError:
        return {}


def resolve(word: str, codes: Iterable[str], names: Mapping[str, str]) -> str:
    """The code that is meant by its own name or by the one it was given. Raises UserError, naming all."""
    known = list(codes)
    if word in known:
        return word
    for code, name in names.items():
        if name.lower() == word.lower():
            return code
    valid = ", ".join(f"{code} ({names[code]})" if code in names else code for code in known)
    raise UserError(f"code '{word}' does not exist; this model has {valid}")
