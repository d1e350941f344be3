"""infogan traverse: makes one picture per code that shows its effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import Model, parse
from infogan_ray.cli.output import print_result, warn
from infogan_ray.cli.output_files import PICTURES, output_path, write_picture
from infogan_ray.models.traversal import draw
from infogan_ray.training.load_model import load


@dataclass
class Traverse:
    model: Model
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "traversal.png"
    """Output file; with several codes, each code's name is added to it."""
    code: str | None = None
    """One code; by default all."""
    seed: int = 0
    """Seed of the noise and of the other codes."""


def traverse(arguments: list[str]) -> int:
    given = parse(
        Traverse,
        "traverse",
        arguments,
        "Show codes: one picture for each.",
        [
            "traverse first-model -o codes.png",
            "traverse first-model --code cat0 -o cat0.png",
        ],
    )
    model = load(given.model, warn)
    output = output_path(given.output, PICTURES)
    for name in [given.code] if given.code else list(model.codes):
        path = output if given.code else output.with_name(f"{output.stem}_{name}{output.suffix}")
        write_picture(path, draw(model.traverse(name, given.seed)))
        print_result(str(path))
    return DONE
