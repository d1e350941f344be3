"""infogan evaluate: measures the bound per code, and the agreement with labels, factors and real images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import Model, extra, parse
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.data.datasets import NAMES, DataConfig, load_images
from infogan_ray.data.factors import open_factors
from infogan_ray.evaluation import texts
from infogan_ray.evaluation.bound import EvaluationConfig
from infogan_ray.evaluation.clustering import untested_classes
from infogan_ray.evaluation.diagnosis import failures
from infogan_ray.evaluation.disentanglement.encoded import model_representation
from infogan_ray.evaluation.disentanglement.factor_codes import DisentanglementConfig
from infogan_ray.evaluation.fidelity.inception import open_inception
from infogan_ray.evaluation.measure import measure_bound, measure_image_quality, measure_sorting, measure_spread
from infogan_ray.evaluation.measure_disentanglement import THOROUGH
from infogan_ray.evaluation.measure_disentanglement import measure as measure_disentanglement
from infogan_ray.evaluation.measure_fidelity import FidelityConfig, measure_fid, measure_fidelity
from infogan_ray.evaluation.metrics import BOUND, of_group
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig, from_saved
from infogan_ray.training.load_model import load
from infogan_ray.training.run_evaluation import measure_agreement

NO_IMAGES = "there are no images; give them with --data"


@dataclass
class Evaluate:
    model: Model
    data: str | None = None
    """Dataset name or path; by default the data that the model was trained on."""
    data_dir: str | None = None
    """Folder to search first for a named dataset."""
    pixel_range: str | None = None
    """LOW:HIGH, for images of more than 8 bits: the values that become black and white; by default as in training."""
    fit: Literal["crop", "pad", "squeeze"] | None = None
    """How images that are not square become square; by default as in training."""
    samples: int = 10_000
    """Number of sampled codes for the bound."""
    disentanglement: str | None = None
    """Also measure how well each code represents a known factor: shapes, or the path of dSprites' .npz file."""
    thorough: bool = False
    """With --disentanglement: use as many boosted trees as published DCI results. This takes some minutes longer."""
    quality: bool = False
    """Also measure Fréchet and kernel distance, precision and recall of generated images. The features come from a
    small classifier of the data's labels, which is trained once and stored."""
    quality_samples: int = 10_000
    """Number of real and of generated images for --quality and --fid; at most half of the data."""
    fid: str | None = None
    """Also measure FID and KID: the .safetensors file of Inception's weights. '--fid where' explains how to get it."""
    json: bool = False
    """Print one JSON object on stdout."""


def evaluate(arguments: list[str]) -> int:
    given = parse(
        Evaluate,
        "evaluate",
        arguments,
        "Measure a model.",
        [
            "evaluate first-model",
            "evaluate runs/first --quality",
            "evaluate runs/shapes --disentanglement shapes --json",
        ],
    )
    metrics, spec = measure_model(given)
    if given.json:
        print_json(metrics)
        return DONE
    rows = [[name, f"{metrics[f'mi/{name}']:.3f}", f"{ceiling:.3f}"] for name, ceiling in spec.ceilings.items()]
    display.table("bound in nats", ["code", "bound", "ceiling"], rows)
    print_result(texts.named_text(metrics, of_group(BOUND)))
    print_result(f"clustering error: {texts.clustering_text(metrics, spec)}")
    display.print_categories(metrics)
    print_result(f"image quality: {texts.quality_text(metrics)}")
    print_result(f"real images, without labels: {texts.sorting_text(metrics, spec)}")
    if metrics.get(texts.NOT_MEASURED) != NO_IMAGES:
        print_result(f"variety: {texts.variety_text(metrics)}")
    for text in failures(metrics | metrics.get("quality", {}), spec.ceilings):
        print_result(f"warning: {text}")
    if "quality" in metrics:
        print_result(*texts.fidelity_lines(metrics["quality"]))
    if "fid" in metrics:
        print_result(texts.fid_text(metrics["fid"]))
    if "disentanglement" in metrics:
        _print_disentanglement(metrics["disentanglement"])
    return DONE


def measure_model(given: Evaluate, opened: InfoGAN | None = None) -> tuple[dict[str, Any], LatentSpec]:
    """The metrics of a model, which is ``opened`` or the given one, and its codes. Raises UserError."""
    factors = None
    if given.disentanglement is not None:
        with extra("eval", "--disentanglement"):
            import sklearn  # noqa: F401
        factors = open_factors(given.disentanglement)
    fidelity = FidelityConfig(samples=given.quality_samples)
    with extra("fid", "--fid"):
        inception = open_inception(given.fid) if given.fid is not None else None
    model = opened or load(given.model, warn)
    spec = model.spec.latents
    metrics: dict[str, Any] = measure_bound(
        spec, model.generator, model.discriminator, EvaluationConfig(samples=given.samples)
    )
    run = _trained_in(model)
    data = given.data or (run.data if run is not None else None)
    if data is not None:
        if given.data is None and data not in NAMES and "://" not in data and not Path(data).expanduser().exists():
            raise UserError(f"{given.model} was trained on {data}, which does not exist; give its new path with --data")
        saved_config = DataConfig()
        if run is not None:  # the same images as in training are held out, also if the data was moved
            saved_config = run.data_config if data == run.data else DataConfig(hold_out=run.hold_out)
        config = dataclasses.replace(
            saved_config, data_dir=given.data_dir, image_size=model.spec.image_size, channels=model.spec.channels,
            pixel_range=given.pixel_range or model.pixel_range, fit=given.fit or model.fit,
        )  # fmt: skip
        images = load_images(data, config, print_progress)
        if given.quality:
            metrics["quality"] = measure_fidelity(model, images, fidelity, say=print_progress)
        if inception is not None:
            metrics["fid"] = measure_fid(model, images.images, inception, fidelity, print_progress)
        metrics |= measure_image_quality(spec, model.generator, images.images)
        metrics |= measure_spread(spec, model.generator, model.discriminator, images.images)
        metrics |= measure_sorting(spec, model.discriminator, images.images)[0]
        if untested := untested_classes(images):
            print_progress(f"data: {untested}")
        metrics |= measure_agreement(spec, model.discriminator, images)
    elif given.quality or inception is not None:
        raise UserError(f"the training data of {given.model} is unknown; give it with --data")
    else:
        metrics[texts.NOT_MEASURED] = NO_IMAGES
    if factors is not None:
        depth = THOROUGH if given.thorough else DisentanglementConfig()
        scores = measure_disentanglement(model_representation(model), factors, depth, print_progress)
        metrics["disentanglement"] = {"factors_of": given.disentanglement, "tree_rounds": depth.tree_rounds, **scores}
    return metrics, spec


def _print_disentanglement(scores: dict[str, Any]) -> None:
    names = list(next(iter(scores["information"].values())))
    known = [[code, *(f"{row[name]:.2f}" for name in names)] for code, row in scores["information"].items()]
    display.table(f"share of each factor of {scores['factors_of']} that a code contains", ["code", *names], known)
    print_result(texts.disentanglement_text(scores, len(names)))


def _trained_in(model: InfoGAN) -> RunConfig | None:
    for folder in (model.source, model.source.parent.parent):  # a model folder, or a checkpoint of its run
        if RunDirectory(folder).exists:
            return from_saved(RunDirectory(folder).read_config(), f"{folder}/{RunDirectory.CONFIG}")
    return None
