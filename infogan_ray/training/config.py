"""RunConfig: composes the sections that live beside their owners; presets, load, override, save resolved.

Precedence: preset < CONFIG.yaml < flags. What is resolved is saved with the run, readable without this code.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from typing_extensions import Doc

from infogan_ray import UserError
from infogan_ray.data.augmentation import AugmentationConfig
from infogan_ray.data.datasets import DataConfig
from infogan_ray.evaluation.bound import EvaluationConfig
from infogan_ray.evaluation.metrics import SELECTABLE, is_one_prior, metric_help
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import ObjectiveConfig
from infogan_ray.models.networks import ModelSpec, NetworkConfig
from infogan_ray.models.precision import PRECISIONS
from infogan_ray.training.category_restarts import check_restarts
from infogan_ray.training.consistency import ConsistencyConfig
from infogan_ray.training.contrastive import ContrastiveConfig
from infogan_ray.training.learned_prior import PriorConfig
from infogan_ray.training.optimizer import OptimizerConfig
from infogan_ray.training.regularisers import StabilityConfig
from infogan_ray.training.tracking.addresses import check_addresses
from infogan_ray.training.train_state import TrainState

PRESETS: dict[str, dict[str, Any]] = {
    "mnist": {"data": "mnist", "codes": "noise=62 cat=10 uniform=2", "steps": 5000},
    "mnist_robust": {
        "data": "mnist",
        "codes": "noise=62 cat=10 uniform=2",
        "steps": 4000,
        "consistency": {"weight": 1.0},
        "optimizer": {"lr_decay": 0.5},
        "metric": "step",
    },
    "fashion_mnist": {"data": "fashion_mnist", "codes": "noise=62 cat=10 uniform=2", "steps": 5000},
    "svhn": {"codes": "noise=124 cat=10x4 uniform=4", "image_size": 32, "channels": 3, "steps": 30_000},
    "celeba": {"codes": "noise=128 cat=10x10", "image_size": 32, "channels": 3, "steps": 30_000},
    "faces": {
        "codes": "noise=128 uniform=5",
        "image_size": 32,
        "channels": 1,
        "steps": 20_000,
        "objective": {"lambda_continuous": 0.2},
        "optimizer": {"lr_generator": 5e-4},
    },
    "chairs": {
        "codes": "noise=128 cat=20x3 uniform=1",
        "image_size": 64,
        "channels": 1,
        "steps": 30_000,
        "objective": {"lambda_continuous": 10.0},
    },
    "shapes": {
        "data": "shapes",
        "codes": "noise=52 uniform=5",
        "image_size": 32,  # at 64 D tells generated images by the noise on their dark ground from the first steps on
        "channels": 1,
        "batch_size": 64,
        "steps": 24_000,
        "metric": "step",
        "objective": {"lambda_continuous": 0.2},  # with 1 all codes fill at once, and none of them is one factor
        "network": {"width": 16, "spectral_norm": True},
        "stability": {"mean_bias": True},
    },
}
LONGEST_NAME = 200  # bytes; 255 are the most for a file, whose name may have an ending
RESERVED = ("checkpoints", "model", "samples", "traversals")
PLACEMENTS = ("pack", "spread", "strict_pack", "strict_spread")
REMOVED = ("ray",)
"""Fields of earlier versions, of the outermost section. Saved configurations may have them; they have no effect."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    preset: str | None = None
    """A set of defaults: mnist, mnist_robust, fashion_mnist, svhn, celeba, faces, chairs or shapes."""
    data: str | None = None
    """mnist, fashion_mnist, shapes (drawn here), a path that holds images (see the README), or what infogan data
    prepare has written, here or in a bucket."""
    data_dir: str | None = None
    """Folder to look for a named dataset first (raw IDX or .gz)."""
    image_size: int | None = None
    """Height and width that images are brought to; by default the data's own."""
    channels: int | None = None
    """1 (grey) or 3 (RGB); by default the data's own."""
    labels: str | None = None
    """A CSV file with the columns file and label, for images in files; else class folders or the dataset's own, if any.
    Of CelebA also FILE:ATTRIBUTE."""
    max_bad: float = 0.01
    """Share of image files that may be broken and are skipped; more end the run before it starts."""
    feed: Literal["auto", "memory", "stream"] = "auto"
    """Images in memory, or read from prepared ones (infogan data prepare) while training continues, in constant memory;
    auto streams what is prepared and does not fit into half of the free memory. A resumed run keeps what it had."""
    codes: str = "noise=62 cat=10 uniform=2"
    """The latent specification."""
    steps: int | None = None
    """Training steps; or give --epochs."""
    epochs: int | None = None
    """Passes over the data, instead of --steps."""
    batch_size: int = 128
    """Global batch: changing --workers does not change the mathematics."""
    workers: int | str | None = None
    """Data-parallel workers; by default one per GPU, or 1. 1:4 takes as many of 1 to 4 as there is room for."""
    threads: int | None = None
    """CPU threads per worker; by default the machine's cores shared out, no more than OMP_NUM_THREADS says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_worker: float = 1.0
    """Share of a GPU for each worker: 0.5 puts two on one (for small models; they then speak through gloo)."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    """Workers on as few machines as they fit on, or on as many as there are; strict: on one machine, or one on each."""
    wait: float = 0.0
    """Seconds that an autoscaling cluster is given to grow; without, what it does not have is refused at once."""
    precision: str = "auto"
    """auto, fp32, tf32 (on a GPU: matrix products in TF32, as convolutions are with fp32 too) or bf16; auto is bf16
    where the hardware multiplies it natively."""
    cuda_graph: bool = True
    """One worker on a GPU: record the step once and let the GPU play it, instead of launching kernel after kernel."""
    storage: str = "runs"
    """Where the runs are kept: a folder, s3://bucket/prefix or gs://bucket/prefix."""
    name: str | None = None
    """Name of the run; by default made of the data and the time."""
    seed: int = 0
    resume: bool = False
    """Continue with the run of this name from its last whole checkpoint."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 5
    """Checkpoints kept; the best and the last always are."""
    max_missed_checkpoints: int = 10
    """Checkpoints in a row that may miss a storage that is away before the run fails."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    profile: bool = False
    """Write a trace of a few steps of the first rank into the run's folder, and say how to open it."""
    metric: Annotated[str, Doc(metric_help())] = "mi_fraction"
    mlflow: str | None = None
    """Also tell MLflow: http://HOST:5000 or sqlite:///FILE.db; credentials come from the environment."""
    wandb: str | None = None
    """Also tell this project of Weights & Biases; credentials come from the environment (WANDB_API_KEY)."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    augment: AugmentationConfig = field(default_factory=AugmentationConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "checkpoint_every", "keep", "log_every", "max_missed_checkpoints"):
            _at_least_one(name, getattr(self, name))
        for name in ("steps", "epochs", "threads"):
            _at_least_one(name, getattr(self, name), optional=True)
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"steps is {self.steps} and epochs is {self.epochs}; give one of them")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be at least 0")
        _one_of("preset", self.preset, (*PRESETS, None))
        _one_of("metric", self.metric, SELECTABLE)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("feed", self.feed, ("auto", "memory", "stream"))
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        _one_of("placement", self.placement, PLACEMENTS)
        if not 0 < self.gpus_per_worker <= 1:
            raise UserError(f"gpus_per_worker is {self.gpus_per_worker:g}; it must be above 0 and at most 1")
        if not 0 <= self.wait < float("inf"):
            raise UserError(f"wait is {self.wait:g}; it must be a number of seconds, 0 or more")
        if self.batch_size < 2:
            raise UserError("batch_size is 1; batch norm needs at least 2 images")
        least, most = self.worker_range or (1, 1)
        if least == most and self.batch_size % most:
            raise UserError(
                f"batch_size is {self.batch_size}, which {most} workers cannot share equally; "
                f"take {_near_multiples(self.batch_size, most)}"
            )
        if most > 1 and self.batch_size // most < 2:
            raise UserError(
                f"batch_size is {self.batch_size}: {most} workers would get one image each, and batch norm "
                f"needs 2; take {2 * most} or more"
            )
        parts = most * self.optimizer.accumulate
        if self.batch_size // parts < 2:
            raise UserError(
                f"optimizer.accumulate is {self.optimizer.accumulate}: of batch_size {self.batch_size} a part would "
                f"have one image, and batch norm needs 2; take {self.batch_size // (2 * most)} or less"
            )
        if self.optimizer.accumulate > 1:
            for named, on in (
                ("contrastive.weight", self.contrastive.weight),
                ("prior.method gumbel", self.prior.learn and self.prior.method == "gumbel"),
            ):
                if on:
                    raise UserError(
                        f"optimizer.accumulate is {self.optimizer.accumulate}, and {named} is on, which learns from "
                        "all images of a step at once; leave one of them out"
                    )
        self.objective.weights(self.latents)
        self.contrastive.codes(self.latents)
        check_restarts(self.latents, self.stability)
        if self.prior.learn and is_one_prior(self.metric):
            raise UserError(
                f"metric is '{self.metric}' and prior.learn is on: nats under different priors do not compare, and the "
                "prior changes while it is learned; take mi_fraction"
            )
        if self.prior.learn and self.stability.restart_every:
            raise UserError(
                "stability.restart_every and prior.learn are both on: the one revives the rare categories that the "
                "other is to find; leave one of them off"
            )
        self.prior.check(self.latents)
        _ = self.data_config  # refuses what is not valid
        check_addresses(self.mlflow, self.wandb)
        if self.name is not None:
            check_name(self.name)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """The least and the largest number of workers: equal unless ``workers`` is LEAST:MOST; None if not set."""
        if self.workers is None:
            return None
        ends = str(self.workers).split(":")
        if not all(re.fullmatch("[0-9]+", end) for end in ends) or len(ends) > 2:
            raise UserError(f"workers is '{self.workers}'; it must be a number, or LEAST:MOST as in 1:4")
        least, most = int(ends[0]), int(ends[-1])
        if not 1 <= least <= most:
            raise UserError(f"workers is '{self.workers}'; it must be at least 1, and LEAST not above MOST")
        return least, most

    @property
    def latents(self) -> LatentSpec:
        return LatentSpec.parse(self.codes, self.network.sigma)

    @property
    def data_config(self) -> DataConfig:
        return DataConfig(self.data_dir, self.image_size, self.channels, labels=self.labels, max_bad=self.max_bad)

    def model_spec(self, image_size: int, channels: int) -> ModelSpec:
        return ModelSpec(self.latents, image_size, channels, self.network)

    def new_state(self, image_size: int, channels: int, device: torch.device | str = "cpu") -> TrainState:
        """Both players before the first step, and all that training them takes of this configuration."""
        return TrainState(
            self.model_spec(image_size, channels), self.objective, self.optimizer, consistency=self.consistency,
            contrastive=self.contrastive, prior=self.prior, augmentation=self.augment, stability=self.stability,
            seed=self.seed, device=device, precision=self.precision,
        )  # fmt: skip

    def total_steps(self, images: int) -> int:
        """Steps of the run for a number of training images. Raises UserError if there is less than one batch."""
        if self.batch_size > images:
            raise UserError(f"batch_size is {self.batch_size}, more than the {images} images of {self.data}")
        if self.epochs is not None:
            return self.epochs * (images // self.batch_size)
        if self.steps is None:
            raise UserError("steps is not set; give --steps or --epochs, or a --preset")
        return self.steps

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def override(self, values: dict[str, Any], source: str) -> RunConfig:
        """A copy with nested values replaced. Raises UserError for unknown fields and wrong types."""
        return _replace(self, values, source, "")


def preset(name: str) -> RunConfig:
    """The configuration of a preset. Raises UserError, naming the presets, for another name."""
    _one_of("preset", name, tuple(PRESETS))
    return RunConfig(preset=name).override(PRESETS[name], f"preset {name}")


def load_config(path: Path, base: RunConfig) -> RunConfig:
    """``base`` with the values of a YAML file (or of a run's config.json) on top."""
    import yaml  # comes with ray

    if not path.is_file():
        what = "is a folder; if it holds images, write --data before it" if path.is_dir() else "does not exist"
        raise UserError(f"config file {path} {what}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"config file {path} is not YAML ({why}); if it holds images, write --data before it") from None
    if values is None:
        return base
    if not isinstance(values, dict):
        raise UserError(f"config file {path} holds a {type(values).__name__}; it must be fields and values")
    return base.override(values, str(path))


def from_saved(saved: dict[str, Any], source: str) -> RunConfig:
    """The resolved configuration out of a run's or a model's config.json. Raises UserError if it is none."""
    if not isinstance(saved.get("run"), dict):
        raise UserError(f"{source} is not the configuration of a run")
    return RunConfig().override(saved["run"], source)


def check_name(name: str) -> None:
    """Raises UserError for a run name that is not one plain path component."""
    if name in RESERVED:
        raise UserError(f"name is '{name}', which is the name of a part of every run; take another")
    if not name or name.startswith((".", "-")) or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(f"name is '{name}'; use letters, digits, '-', '_' and '.', not starting with '.' or '-'")
    if (length := len(name.encode())) > LONGEST_NAME:
        raise UserError(f"name has {length} bytes; {LONGEST_NAME} are the most that any storage takes")


def _replace(section: Any, values: dict[str, Any], source: str, prefix: str) -> Any:
    hints = typing.get_type_hints(type(section))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        key = str(key).replace("-", "_")
        if not prefix and key in REMOVED:
            continue
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"valid are {', '.join(hints)}"
            raise UserError(f"{source}: unknown field '{prefix}{key}'; {hint}")
        current = getattr(section, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{source}: '{prefix}{key}' is {value!r}; it must be fields and values")
            changes[key] = _replace(current, value, source, f"{prefix}{key}.")
        else:
            changes[key] = _typed(value, hints[key], f"{source}: {prefix}{key}")
    if changes.get("epochs") is not None and "steps" not in changes:
        changes["steps"] = None  # epochs given here replace the steps of a preset
    return dataclasses.replace(section, **changes)


def _typed(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is Literal:
            origin = str
        if option is types.NoneType and value is None:
            return None
        if origin is float and isinstance(value, str):
            try:
                return float(value)  # YAML 1.1 reads 2e-4 as text
            except ValueError:
                continue
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(origin, type) and isinstance(value, origin) and (origin is bool or not isinstance(value, bool)):
            return value
    names = " or ".join("nothing" if o is types.NoneType else getattr(o, "__name__", str(o)) for o in options)
    raise UserError(f"{where} is {value!r}; it must be {names}")


def _at_least_one(name: str, value: int | None, optional: bool = False) -> None:
    if value is None and optional:
        return
    if value is None or value < 1:
        raise UserError(f"{name} is {value}; it must be at least 1")


def _one_of(name: str, value: Any, valid: tuple[Any, ...]) -> None:
    if value not in valid:
        raise UserError(not_one_of(name, str(value), [str(choice) for choice in valid if choice is not None]))


def not_one_of(name: str, value: str, valid: Sequence[str]) -> str:
    """What is said of a word that is none of those that are valid."""
    close = difflib.get_close_matches(value, valid, n=1, cutoff=0.75)  # gpu is not cpu
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"{name} is '{value}'{hint}; valid are {', '.join(valid)}"


def _near_multiples(batch: int, workers: int) -> str:
    below = batch // workers * workers
    return f"{below} or {below + workers}" if below else str(workers)
