"""infogan evaluate, traverse, sample and encode: a trained model in hand."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from infogan_ray import display
from infogan_ray.cli import DONE
from infogan_ray.commands.parsing import config_of, parse, warn
from infogan_ray.data import DataConfig, load_images
from infogan_ray.data.datasets import NAMES, image_files, read_files
from infogan_ray.evaluation import EvaluationConfig, measure_bound, measure_clustering
from infogan_ray.model import InfoGAN, load
from infogan_ray.quality import measure_quality
from infogan_ray.runs import RunDirectory
from infogan_ray.selection import measure_sorting
from infogan_ray.traversal import draw, tile


@dataclass
class Evaluate:
    model: tyro.conf.Positional[str]
    data: str | None = None
    """By default the data that the model was trained on."""
    data_dir: str | None = None
    samples: int = 10_000
    """Fresh codes for the bound."""
    json: bool = False


def evaluate(arguments: list[str]) -> int:
    given = parse(Evaluate, "evaluate", arguments, "Measure a model. Example: infogan evaluate first-model")
    model = load(given.model, warn)
    spec = model.spec.latents
    metrics: dict[str, Any] = measure_bound(
        spec, model.generator, model.discriminator, EvaluationConfig(samples=given.samples)
    )
    data = given.data or _trained_on(model)
    if data is not None:
        config = DataConfig(given.data_dir, model.spec.image_size, model.spec.channels)
        images = load_images(data, config, say=lambda line: print(line, file=sys.stderr))
        metrics |= measure_quality(spec, model.generator, images.images)
        metrics |= measure_sorting(spec, model.discriminator, images.images).scores
        if images.labels is not None and images.test_images is not None and images.test_labels is not None:
            metrics |= measure_clustering(
                spec, model.discriminator, images.images, images.labels, images.test_images, images.test_labels
            )
    if given.json:
        print(json.dumps(metrics))
        return DONE
    rows = [[name, f"{metrics[f'mi/{name}']:.3f}", f"{code.ceiling(spec.sigma):.3f}"] for name, code in spec.items()]
    display.table("bound in nats", ["code", "bound", "ceiling"], rows)
    print(f"mi_bound {metrics['mi_bound']:.3f} nats, mi_fraction {metrics['mi_fraction']:.3f}")
    print(f"clustering error: {display.clustering_text(metrics)}")
    print(f"image quality: {display.quality_text(metrics)}")
    print(f"real images, without labels: {display.sorting_text(metrics)}")
    return DONE


def _trained_on(model: InfoGAN) -> str | None:
    for folder in (model.source, model.source.parent.parent):  # a model folder, or a checkpoint in its run
        if RunDirectory(folder).exists:
            return config_of(RunDirectory(folder)).data
    return None


@dataclass
class Traverse:
    model: tyro.conf.Positional[str]
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "traversal.png"
    """File; with several codes the code's name is added to it."""
    code: str | None = None
    """One code; by default all."""
    seed: int = 0


def traverse(arguments: list[str]) -> int:
    given = parse(Traverse, "traverse", arguments, "Draw codes. Example: infogan traverse first-model --code cat0")
    model = load(given.model, warn)
    output = _picture_path(given.output)
    for name in [given.code] if given.code else list(model.codes):
        path = output if given.code else output.with_name(f"{output.stem}_{name}{output.suffix}")
        draw(model.traverse(name, given.seed)).save(path)
        print(path)
    return DONE


@dataclass
class Sample:
    model: tyro.conf.Positional[str]
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "samples.png"
    """A picture, or an .npz file with an array 'images' (N, H, W, C)."""
    set: list[str] = field(default_factory=list)
    """Fixed codes, for example cat0=3 uniform0=0.5."""
    seed: int = 0


def sample(arguments: list[str]) -> int:
    given = parse(Sample, "sample", arguments, "Make images. Example: infogan sample first-model --set cat0=3 -o 3.png")
    codes = {}
    for word in given.set:
        name, _, value = word.partition("=")
        try:
            codes[name] = float(value)
        except ValueError:
            raise ValueError(f"set is '{word}'; write CODE=NUMBER, for example cat0=3") from None
    output = _picture_path(given.output, ".npz")
    model = load(given.model, warn)
    images = model.sample(given.n, codes, given.seed)
    if output.suffix == ".npz":
        import numpy as np

        np.savez_compressed(output, images=images.permute(0, 2, 3, 1).numpy())
    else:
        tile(images, columns=min(given.n, 8), scale=max(1, round(56 / model.spec.image_size))).save(output)
    print(output)
    return DONE


@dataclass
class Encode:
    model: tyro.conf.Positional[str]
    images: tyro.conf.Positional[str]
    """A dataset, a folder of images, one image or an .npz file."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "codes.parquet"


def encode(arguments: list[str]) -> int:
    given = parse(
        Encode, "encode", arguments, "Read codes. Example: infogan encode first-model photos -o codes.parquet"
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = load(given.model, warn)
    size, channels = model.spec.image_size, model.spec.channels
    path = Path(given.images).expanduser()
    if given.images not in NAMES and path.exists() and path.suffix != ".npz":
        files = image_files(path) if path.is_dir() else [path]
        names, images = [str(file) for file in files], read_files(files, size, channels)
    else:
        found = load_images(given.images, DataConfig(None, size, channels), lambda line: print(line, file=sys.stderr))
        parts = [("train", found.images), *([("test", found.test_images)] if found.test_images is not None else [])]
        names = [f"{part}/{row}" for part, tensor in parts for row in range(len(tensor))]
        images = torch.cat([tensor for _, tensor in parts])
    pq.write_table(pa.table({"image": names, **model.encode(images)}), given.output)
    print(f"{given.output}: {len(names):,} images")
    return DONE


def _picture_path(text: str, *others: str) -> Path:
    path = Path(text).expanduser()
    valid = (".png", ".jpg", ".webp", *others)
    if path.suffix.lower() not in valid:
        raise ValueError(f"output is '{text}'; valid endings are {', '.join(valid)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output is '{text}', and the folder {path.absolute().parent} does not exist")
    return path
