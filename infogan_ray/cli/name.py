"""infogan name: gives codes names, such as slant for uniform0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import Model, parse
from infogan_ray.cli.output import print_result, warn
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.load_model import load
from infogan_ray.training.publish import name_codes


@dataclass
class Name:
    model: Model
    """Model folder, run (STORAGE/NAME) or checkpoint."""
    names: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="CODE=NAME")] = field(default_factory=list)
    """CODE=NAME, for example uniform0=slant. CODE= removes the name. Without any, print the current names."""


def name(arguments: list[str]) -> int:
    given = parse(
        Name,
        "name",
        arguments,
        "Give codes names, which flags, pictures and the model card then use.",
        [
            "name first-model uniform0=slant uniform1=width",
            "sample first-model --set slant=1 -o slanted.png",
        ],
    )
    pairs = dict(word.partition("=")[::2] for word in given.names)
    wrong = next((word for word in given.names if "=" not in word), None)
    if wrong is not None:
        raise UserError(f"names is '{wrong}'; write CODE=NAME, for example uniform0=slant")
    model = load(given.model, warn)
    names = name_codes(open_storage(given.model), pairs) if pairs else model.names
    for code in model.codes:
        print_result(f"{code} {names[code]}" if code in names else code)
    return DONE
