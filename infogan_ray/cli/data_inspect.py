"""infogan data inspect: shows which images a path contains, before training on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.exit_codes import DONE, FAILED
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.cli.output_files import PICTURES, output_path, write_picture
from infogan_ray.data.datasets import DataConfig
from infogan_ray.data.image_files import describe
from infogan_ray.data.progress import counted
from infogan_ray.models.traversal import tile
from infogan_ray.storage.visible_text import printable

MAX_CLASSES_SHOWN = 20  # in the text; --json has all


@dataclass
class Inspect:
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Any path that --data accepts: a folder, .zip or .tar of images, or a published dataset's files."""
    image_size: int | None = None
    """Height and width to which images are resized; by default a size that fits them."""
    channels: int | None = None
    """1 (grey) or 3 (RGB); by default 1 if no image has colour, else 3."""
    labels: str | None = None
    """CSV or JSON file with the columns file and label; by default class folders or the dataset's labels, if any."""
    pixel_range: str | None = None
    """LOW:HIGH, for images of more than 8 bits: the values that become black and white; by default found from all."""
    fit: Literal["crop", "pad", "squeeze"] = "crop"
    """How images that are not square become square: crop takes the middle, pad adds a border in the colour of the
    image's own, squeeze changes the proportions."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Picture to write: up to 64 images as training sees them. By default none is written."""
    json: bool = False
    """Print one JSON object on stdout."""


def inspect(arguments: list[str]) -> int:
    given = parse(
        Inspect,
        "data inspect",
        arguments,
        "Check images before training on them.",
        [
            "data inspect photos -o contact.png",
            "data inspect photos.zip --image-size 64 --fit pad -o contact.png",
            "data inspect photos --labels labels.csv",
        ],
    )
    path = Path(given.path).expanduser()
    if not path.exists():
        raise UserError(f"path is '{given.path}', which does not exist")
    output = None if given.output is None else output_path(given.output, PICTURES)
    if output is not None and path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise UserError(f"output is {output}, which would be an image of the data in {path}; name a file outside it")
    from infogan_ray.data.inspection import Survey
    from infogan_ray.data.inspection import inspect as inspect_images

    config = DataConfig(
        image_size=given.image_size, channels=given.channels, labels=given.labels, pixel_range=given.pixel_range,
        fit=given.fit,
    )  # fmt: skip
    survey = inspect_images(path, config, say=print_progress)
    found = survey.to_dict()
    sheet = None
    if output is not None and len(survey.sheet):
        size = survey.sheet.shape[-1]
        write_picture(output, tile(survey.sheet, columns=8, scale=max(1, round(56 / size))))
        sheet = str(output)
    if given.json:
        print_json({**found, "contact_sheet": sheet})
    elif isinstance(survey, Survey):
        _print_survey(survey, found, sheet)
    else:
        _print_arrays(survey, sheet)
    if not found["images"]:
        warn(f"no image of {path} can be read")
        return FAILED
    return DONE


def _print_survey(survey: Any, found: dict[str, Any], sheet: str | None) -> None:
    files, broken = len(survey.source.names), survey.broken
    rows = [
        ["layout", survey.kind],
        ["images", f"{found['images']:,} of {files:,} files"],
        ["formats", describe(survey.formats)],
        ["modes", describe(survey.modes)],
        ["sizes", ", ".join(f"{name} {width} x {height}" for name, (width, height) in survey.sizes.items())],
        *_pixel_rows(survey),
        ["with colour", f"{survey.coloured:,}"],
        ["skipped", describe(survey.source.skipped) or "nothing"],
        ["broken", f"{len(broken):,} ({len(broken) / files:.2%})"],
        ["duplicates", _copies(survey.copies)],
        ["test part", _test_part(survey)],
        ["classes", _classes(survey.classes)],
        *(["conversion", f"{count:,} {what}"] for what, count in survey.conversions.most_common()),
    ]
    display.table(str(survey.source.path), ["what", "found"], rows)
    for name, reason in broken.items():
        print_result(f"broken: {printable(name)} {reason}")
    if sheet is not None:
        print_result(f"contact sheet: {sheet}, {counted(len(survey.sheet), 'image')} as training sees them")
    _print_proposal(survey)


def _print_arrays(found: Any, sheet: str | None) -> None:
    rows = [
        ["layout", found.kind],
        ["images", f"{found.images:,}"],
        ["test part", _test_part(found)],
        ["size", " x ".join(str(side) for side in found.shape)],
        *_pixel_rows(found),
        *(["conversion", what] for what in found.conversions),
        ["classes", _classes(found.classes)],
    ]
    display.table(str(found.path), ["what", "found"], rows)
    if sheet is not None:
        print_result(f"contact sheet: {sheet}, {counted(len(found.sheet), 'image')} as training sees them")
    _print_proposal(found)


def _pixel_rows(found: Any) -> list[list[str]]:
    rows = [["not square", found.not_square], ["pixel range", found.pixel_range]]
    return [[what, str(text).removeprefix(f"{what} ")] for what, text in rows if text is not None]


def _print_proposal(found: Any) -> None:
    proposal = found.proposal
    if proposal is None:
        print_result("too few images to propose a training command")
        return
    print_result(f"memory: {display.size(found.memory_bytes)} for the images, in the driver and in each worker")
    if proposal.max_bad > DataConfig().max_bad:
        print_result(
            f"more than {DataConfig().max_bad:.0%} are broken: repair them, or skip them with the command below"
        )
    if "--prior.learn" in proposal.command:
        print_result("some classes are much larger than others: --prior.learn lets the categories have different sizes")
    print_result(f"next: {proposal.command}")


def _test_part(found: Any) -> str:
    if found.test_images:
        return f"{found.test_images:,} more images, of its own"
    if found.held_out:
        return f"none of its own; {found.held_out:,} images are held out, about a seventh of each class"
    return "none"


def _copies(groups: list[list[str]]) -> str:
    if not groups:
        return "none"
    more = sum(len(group) - 1 for group in groups)
    return f"{more:,} copies of other files, for example {' = '.join(map(printable, groups[0][:3]))}"


def _classes(counts: dict[str, int]) -> str:
    if not counts:
        return "none (not needed)"
    shown = [f"{printable(kind)} {count:,}" for kind, count in list(counts.items())[:MAX_CLASSES_SHOWN]]
    more = f" and {len(counts) - MAX_CLASSES_SHOWN:,} more" if len(counts) > MAX_CLASSES_SHOWN else ""
    return f"{len(counts):,}: {', '.join(shown)}{more}"
