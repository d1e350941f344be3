"""infogan sample: makes images with chosen codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import tyro

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import Model, parse
from infogan_ray.cli.output import print_result, warn
from infogan_ray.cli.output_files import PICTURES, output_path, write_output, write_picture
from infogan_ray.models.traversal import tile
from infogan_ray.training.load_model import load


@dataclass
class Sample:
    model: Model
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of images."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "samples.png"
    """A picture, or an .npz file with an array 'images' (N, H, W, C)."""
    set: list[str] = field(default_factory=list)
    """Values of codes, for example cat0=3 uniform0=0.5; the others are sampled."""
    seed: int = 0
    """Seed of the noise and of codes that are not set."""


def sample(arguments: list[str]) -> int:
    given = parse(
        Sample,
        "sample",
        arguments,
        "Make images.",
        [
            "sample first-model -o images.png",
            "sample first-model --set cat0=0 uniform0=0.5 -o category0.png",
        ],
    )
    codes = {}
    for word in given.set:
        name, _, value = word.partition("=")
        try:
            codes[name] = float(value)
        except ValueError:
            raise UserError(f"set is '{word}'; write CODE=NUMBER, for example cat0=3") from None
    output = output_path(given.output, (*PICTURES, ".npz"))
    model = load(given.model, warn)
    images = model.sample(given.n, codes, given.seed)
    if output.suffix == ".npz":
        write_output(output, lambda file: np.savez_compressed(file, images=images.permute(0, 2, 3, 1).numpy()))
    else:
        scale = max(1, round(56 / model.spec.image_size))
        write_picture(output, tile(images, columns=min(given.n, 8), scale=scale))
    print_result(str(output))
    return DONE
