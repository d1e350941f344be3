"""infogan encode: writes the codes that the recognition network Q predicts for real images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import Model, parse
from infogan_ray.cli.output import print_progress, print_result, warn
from infogan_ray.cli.output_files import output_path, write_output
from infogan_ray.data.datasets import NAMES, DataConfig, load_images
from infogan_ray.data.formats.collection import EncodedImages
from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.hold_out import NONE
from infogan_ray.data.image_loader import read_pictures, summary
from infogan_ray.data.progress import counted
from infogan_ray.models.encoded import Codes
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.training.load_model import load


@dataclass
class Encode:
    model: Model
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A dataset, a folder, .zip or .tar of images, one image or an .npz file."""
    max_bad: float = 0.01
    """Largest allowed share of broken image files; they are skipped."""
    pixel_range: str | None = None
    """LOW:HIGH, for images of more than 8 bits: the values that become black and white; by default as in training."""
    fit: Literal["crop", "pad", "squeeze"] | None = None
    """How images that are not square become square; by default as in training."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "codes.parquet"
    """File to write: one row per image."""


def encode(arguments: list[str]) -> int:
    given = parse(
        Encode,
        "encode",
        arguments,
        "Predict the codes of images.",
        [
            "encode first-model photos -o codes.parquet",
            "encode runs/first mnist -o codes.parquet",
        ],
    )
    output = output_path(given.output, (".parquet",))
    codes = encode_images(given, load(given.model, warn))
    columns = {
        name: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1]) if values.ndim == 2 else values
        for name, values in codes.items()
    }
    write_output(output, lambda file: pq.write_table(pa.table(columns), file))
    print_result(f"{output}: {counted(len(codes['image']), 'image')}")
    return DONE


def encode_images(given: Encode, model: InfoGAN) -> Codes:
    """Q's codes for the given images, with their names in the column ``image``. Raises UserError."""
    size, channels = model.spec.image_size, model.spec.channels
    pixel_range, fit = given.pixel_range or model.pixel_range, given.fit or model.fit
    config = DataConfig(None, size, channels, max_bad=given.max_bad, pixel_range=pixel_range, fit=fit, hold_out=NONE)
    path = Path(given.images).expanduser()
    collection = open_collection(path, say=print_progress) if given.images not in NAMES and path.exists() else None
    if isinstance(collection, EncodedImages):
        names, parts, how = [], [], config.conversion
        for part in (collection, collection.test):
            if isinstance(part, EncodedImages):
                pictures = read_pictures(part.files, size, channels, print_progress, given.max_bad, how)
                how = pictures.how if pictures.how.pixel_range else how  # the test split has the same range
                for line in summary(part.files, pictures):
                    print_progress(line)
                names += [part.files.shown(name) for name in pictures.names]
                parts.append(pictures.images)
        images = torch.cat(parts)
    else:
        found = load_images(given.images, config, print_progress)
        both = [("train", found.images), *([("test", found.test_images)] if found.test_images is not None else [])]
        names = [f"{part}/{row}" for part, tensor in both for row in range(len(tensor))]
        images = torch.cat([tensor for _, tensor in both])
    return Codes({"image": np.array(names, dtype=object), **model.encode(images)})
