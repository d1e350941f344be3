"""Names that users give to codes, for example "slant" for uniform0. They are in ``names.json`` beside the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from infogan_ray import UserError
from infogan_ray.models.priors.registry import KINDS
from infogan_ray.storage.file_system import Storage

NAMES = "names.json"
MAX_LENGTH = 40
CODE_NAME = re.compile(rf"({'|'.join(KINDS)})\d+")


def check_names(names: Mapping[str, Any], codes: Iterable[str]) -> dict[str, str]:
    """The valid names by code. An empty name removes a name. Raises UserError for an invalid or repeated name."""
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
        if len(name) > MAX_LENGTH or not name.isprintable() or re.search("[=,|`<>]", name):
            raise UserError(
                f"the name of {code} is {name[:60]!r}; give at most {MAX_LENGTH} letters, without = , | ` < >, "
                "for example slant"
            )
        if CODE_NAME.fullmatch(name.lower()) and name != code:
            raise UserError(f"the name of {code} is '{name}', which is reserved for codes; give another")
        duplicate = next((other for other, used in found.items() if used.lower() == name.lower()), None)
        if duplicate:
            raise UserError(f"the name of {code} is '{name}', but {duplicate} has the same name; give another")
        if name != code:
            found[code] = name
    return found


def parse_names(content: bytes, codes: Iterable[str], path: str) -> dict[str, str]:
    """The names in the content of ``names.json``. Raises UserError, with the path, for invalid content."""
    try:
        names = json.loads(content)
        if not isinstance(names, dict):
            raise UserError("it is not a JSON object")
        return check_names(names, codes)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_names(folder: Storage, codes: Iterable[str]) -> dict[str, str]:
    """The names stored in a folder. Empty without ``names.json``. Raises UserError for an invalid file."""
    try:
        return parse_names(folder.read(NAMES), codes, f"{folder}/{NAMES}")
    except FileNotFoundError:
        return {}


def resolve(word: str, codes: Iterable[str], names: Mapping[str, str]) -> str:
    """The code with this name, either its own or one from a user. Raises UserError, with all valid names."""
    known = list(codes)
    if word in known:
        return word
    for code, name in names.items():
        if name.lower() == word.lower():
            return code
    valid = ", ".join(f"{code} ({names[code]})" if code in names else code for code in known)
    raise UserError(f"code '{word}' does not exist; this model has {valid}")
