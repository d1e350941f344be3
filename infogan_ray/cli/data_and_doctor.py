"""infogan data and infogan doctor: what this machine has."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.data_inspect import inspect
from infogan_ray.cli.data_prepare import prepare, verify
from infogan_ray.cli.flags import Failed, parse
from infogan_ray.cli.main import DONE, FAILED
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.fetch import SOURCES
from infogan_ray.distributed.submission.submitter import SubmissionFailed


@dataclass
class Data:
    action: tyro.conf.Positional[Literal["fetch", "inspect", "prepare", "verify"]]
    name: tyro.conf.Positional[str]
    """mnist or fashion_mnist."""
    data_dir: str | None = None
    """Folder to look into first."""


def data(arguments: list[str]) -> int:
    if arguments[:1] == ["inspect"]:
        return inspect(arguments[1:])
    if arguments[:1] == ["prepare"]:
        return prepare(arguments[1:])
    if arguments[:1] == ["verify"]:
        return verify(arguments[1:])
    given = parse(
        Data, "data", arguments,
        "Fetch a dataset. Example: infogan data fetch mnist. "
        "Or look through images of your own: infogan data inspect photos (see infogan data inspect --help)",
    )  # fmt: skip
    if given.name not in SOURCES:
        raise UserError(f"data is '{given.name}'; valid are {', '.join(SOURCES)}")
    images = load_images(given.name, DataConfig(given.data_dir), say=lambda line: print(line, file=sys.stderr))
    assert images.test_images is not None
    print(f"{given.name}: {len(images.images):,} training and {len(images.test_images):,} test images, checksums right")
    return DONE


@dataclass
class Doctor:
    cluster: str | None = None
    """http://HOST:8265: look at that cluster's door instead, and say whether it stands open."""
    json: bool = False


def doctor(arguments: list[str]) -> int:
    given = parse(Doctor, "doctor", arguments, "Look at this machine, or at a cluster. Example: infogan doctor")
    from infogan_ray.distributed.cluster.doctor import examine, examine_door

    try:
        findings = examine_door(given.cluster) if given.cluster else examine()
    except SubmissionFailed as error:
        raise Failed(str(error)) from None
    if given.json:
        print(json.dumps({"findings": [dataclasses.asdict(f) for f in findings]}))
    else:
        display.table("doctor", ["", "what", "finding"], [[f.mark, f.what, f.finding] for f in findings])
    return FAILED if any(f.mark == "bad" for f in findings) else DONE
