"""infogan evaluate, traverse, sample, encode, name and export: a trained model in hand."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.flags import (
    PICTURES,
    Failed,
    config_of,
    extra,
    output_path,
    parse,
    warn,
    write_output,
    write_picture,
)
from infogan_ray.cli.main import DONE
from infogan_ray.data.datasets import NAMES, DataConfig, load_images
from infogan_ray.data.factors import open_factors
from infogan_ray.data.formats.recognise import Encoded, open_collection
from infogan_ray.data.image_loader import read_pictures, summary
from infogan_ray.evaluation import texts
from infogan_ray.evaluation.bound import EvaluationConfig
from infogan_ray.evaluation.disentanglement.encoded import of_model
from infogan_ray.evaluation.disentanglement.factor_codes import DisentanglementConfig
from infogan_ray.evaluation.disentanglement.measure import THOROUGH
from infogan_ray.evaluation.disentanglement.measure import measure as measure_disentanglement
from infogan_ray.evaluation.fidelity.inception import open_inception
from infogan_ray.evaluation.fidelity.measure import FidelityConfig, measure_fid, measure_fidelity
from infogan_ray.evaluation.measure import measure_bound, measure_image_quality, measure_sorting
from infogan_ray.evaluation.metrics import BOUND, of_group
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.traversal import draw, tile
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.load_model import load
from infogan_ray.training.publish import name_codes
from infogan_ray.training.run_evaluation import measure_agreement


@dataclass
class Evaluate:
    model: tyro.conf.Positional[str]
    data: str | None = None
    """By default the data that the model was trained on."""
    data_dir: str | None = None
    samples: int = 10_000
    """Fresh codes for the bound."""
    disentanglement: str | None = None
    """Also how far each code stands for one known factor: of shapes, or of dSprites' .npz file (its path)."""
    thorough: bool = False
    """With --disentanglement: as many boosted trees as published figures of DCI are made with; minutes more."""
    quality: bool = False
    """Also Fréchet and kernel distance, precision and recall of drawn images, on the features of a small classifier of
    the data's labels, which is trained once and then kept."""
    quality_samples: int = 10_000
    """Images of each kind for --quality and --fid, or half of what the data has."""
    fid: str | None = None
    """Also FID and KID: the .safetensors file of Inception's weights. '--fid where' says where they are to be had."""
    json: bool = False


def evaluate(arguments: list[str]) -> int:
    given = parse(Evaluate, "evaluate", arguments, "Measure a model. Example: infogan evaluate first-model")
    factors = None
    if given.disentanglement is not None:
        with extra("eval", "--disentanglement"):
            import sklearn  # noqa: F401
        factors = open_factors(given.disentanglement)
    fidelity = FidelityConfig(samples=given.quality_samples)
    with extra("fid", "--fid"):
        inception = open_inception(given.fid) if given.fid is not None else None
    model = load(given.model, warn)
    spec = model.spec.latents
    metrics: dict[str, Any] = measure_bound(
        spec, model.generator, model.discriminator, EvaluationConfig(samples=given.samples)
    )
    run = _trained_in(model)
    data = given.data or (run.data if run is not None else None)
    if data is not None:
        if given.data is None and data not in NAMES and "://" not in data and not Path(data).expanduser().exists():
            raise UserError(f"{given.model} was trained on {data}, which is not there; say with --data where it is now")
        given_there = run.data_config if run is not None and data == run.data else DataConfig()
        config = dataclasses.replace(
            given_there, data_dir=given.data_dir, image_size=model.spec.image_size, channels=model.spec.channels
        )
        images = load_images(data, config, _say)
        if given.quality:
            metrics["quality"] = measure_fidelity(model, images, fidelity, say=_say)
        if inception is not None:
            metrics["fid"] = measure_fid(model, images.images, inception, fidelity, _say)
        metrics |= measure_image_quality(spec, model.generator, images.images)
        metrics |= measure_sorting(spec, model.discriminator, images.images)[0]
        metrics |= measure_agreement(spec, model.discriminator, images)
    elif given.quality or inception is not None:
        raise UserError(f"{given.model} does not say which data it was trained on; name it with --data")
    if factors is not None:
        depth = THOROUGH if given.thorough else DisentanglementConfig()
        scores = measure_disentanglement(of_model(model), factors, depth, _say)
        metrics["disentanglement"] = {"factors_of": given.disentanglement, "tree_rounds": depth.tree_rounds, **scores}
    if given.json:
        print(json.dumps(metrics))
        return DONE
    rows = [[name, f"{metrics[f'mi/{name}']:.3f}", f"{code.ceiling(spec.sigma):.3f}"] for name, code in spec.items()]
    display.table("bound in nats", ["code", "bound", "ceiling"], rows)
    print(texts.named_text(metrics, of_group(BOUND)))
    print(f"clustering error: {texts.clustering_text(metrics)}")
    if held := texts.category_rows(metrics):
        display.table("what each category holds", ["category", "test images", "labels"], held)
    print(f"image quality: {texts.quality_text(metrics)}")
    print(f"real images, without labels: {texts.sorting_text(metrics)}")
    if given.quality:
        print("\n".join(texts.fidelity_lines(metrics["quality"])))
    if inception is not None:
        print(texts.fid_text(metrics["fid"]))
    if factors is not None:
        _print_disentanglement(metrics["disentanglement"], factors.names)
    return DONE


def _print_disentanglement(scores: dict[str, Any], names: tuple[str, ...]) -> None:
    known = [[code, *(f"{row[name]:.2f}" for name in names)] for code, row in scores["information"].items()]
    display.table(f"share of each factor of {scores['factors_of']} that a code tells", ["code", *names], known)
    print(texts.disentanglement_text(scores, len(names)))


def _trained_in(model: InfoGAN) -> RunConfig | None:
    for folder in (model.source, model.source.parent.parent):  # a model folder, or a checkpoint in its run
        if RunDirectory(folder).exists:
            return config_of(RunDirectory(folder))
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
        write_picture(path, draw(model.traverse(name, given.seed)))
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
            raise UserError(f"set is '{word}'; write CODE=NUMBER, for example cat0=3") from None
    output = _picture_path(given.output, ".npz")
    model = load(given.model, warn)
    images = model.sample(given.n, codes, given.seed)
    if output.suffix == ".npz":
        import numpy as np

        write_output(output, lambda file: np.savez_compressed(file, images=images.permute(0, 2, 3, 1).numpy()))
    else:
        scale = max(1, round(56 / model.spec.image_size))
        write_picture(output, tile(images, columns=min(given.n, 8), scale=scale))
    print(output)
    return DONE


@dataclass
class Encode:
    model: tyro.conf.Positional[str]
    images: tyro.conf.Positional[str]
    """A dataset, a folder, .zip or .tar of images, one image or an .npz file."""
    max_bad: float = 0.01
    """Share of image files that may be broken and are skipped."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "codes.parquet"


def encode(arguments: list[str]) -> int:
    given = parse(
        Encode, "encode", arguments, "Read codes. Example: infogan encode first-model photos -o codes.parquet"
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    output = output_path(given.output, (".parquet",))
    model = load(given.model, warn)
    size, channels = model.spec.image_size, model.spec.channels
    path = Path(given.images).expanduser()
    collection = open_collection(path, say=_say) if given.images not in NAMES and path.exists() else None
    if isinstance(collection, Encoded):
        names, parts = [], []
        for part in (collection, collection.test):
            if isinstance(part, Encoded):
                pictures = read_pictures(part.files, size, channels, _say, given.max_bad)
                for line in summary(part.files, pictures):
                    _say(line)
                names += [part.files.shown(name) for name in pictures.names]
                parts.append(pictures.images)
        images = torch.cat(parts)
    else:
        found = load_images(given.images, DataConfig(None, size, channels), _say)
        both = [("train", found.images), *([("test", found.test_images)] if found.test_images is not None else [])]
        names = [f"{part}/{row}" for part, tensor in both for row in range(len(tensor))]
        images = torch.cat([tensor for _, tensor in both])
    columns = {
        name: pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1]) if values.ndim == 2 else values
        for name, values in model.encode(images).items()
    }
    write_output(output, lambda file: pq.write_table(pa.table({"image": names, **columns}), file))
    print(f"{output}: {len(names):,} images")
    return DONE


@dataclass
class Name:
    model: tyro.conf.Positional[str]
    """Model folder, run (STORAGE/NAME) or checkpoint."""
    names: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """CODE=NAME, for example uniform0=slant; CODE= takes the name away. Without any: the names that there are."""


def name(arguments: list[str]) -> int:
    given = parse(
        Name, "name", arguments,
        "Give codes names that flags, pictures and the model card have then. "
        "Example: infogan name first-model uniform0=slant uniform1=width",
    )  # fmt: skip
    pairs = dict(word.partition("=")[::2] for word in given.names)
    wrong = next((word for word in given.names if "=" not in word), None)
    if wrong is not None:
        raise UserError(f"names is '{wrong}'; write CODE=NAME, for example uniform0=slant")
    model = load(given.model, warn)
    names = name_codes(open_storage(given.model), pairs) if pairs else model.names
    for code in model.codes:
        print(f"{code} {names[code]}" if code in names else code)
    return DONE


@dataclass
class Export:
    model: tyro.conf.Positional[str]
    format: str = "onnx"
    """onnx (needs the extra infogan-ray[export]) or torch."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to make; by default NAME-onnx or NAME-torch."""


def export(arguments: list[str]) -> int:
    given = parse(
        Export, "export", arguments,
        "Write a model's generator and recognition network for use without this package, checked against the model. "
        "Example: infogan export first-model -o first-onnx",
    )  # fmt: skip
    from infogan_ray.models.export import ExportFailed
    from infogan_ray.models.export import export as write

    model = load(given.model, warn)
    folder = Path(given.output or f"{model.source.name}-{given.format}").expanduser()
    try:
        worst = write(model, folder, given.format)
    except ExportFailed as error:
        raise Failed(str(error)) from None
    print(f"{folder}: generator and recognition; they differ from the model by at most {worst:.1g}")
    print(f"how to use them: python {shlex.quote(str(folder / 'example.py'))}")
    return DONE


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _picture_path(text: str, *others: str) -> Path:
    return output_path(text, (*PICTURES, *others))
