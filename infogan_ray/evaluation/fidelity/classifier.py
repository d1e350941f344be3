"""A small classifier of the data's labels. Fidelity metrics compare images on its features.

It is trained once for each data set and then cached. Inception's features fit photographs, and its weights must be
downloaded. The features here fit the classes of this data. Distances on them compare models of the same data, but not
with published values.

Shapes: (N, C, H, W) uint8 images, H = W; (N,) labels from 0; (N, F) features.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as functional
from safetensors.torch import load, save
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.data.fetch import cache_folder
from infogan_ray.data.progress import Pace, duration
from infogan_ray.evaluation.bound import BATCH, evaluating
from infogan_ray.models.rng import seeded_generator

RECIPE = 1  # version of the training code: increase it if the same configuration trains another classifier
WEIGHTS, DESCRIPTION = "classifier.safetensors", "classifier.json"
PROGRESS_INTERVAL_S = 10.0
MIN_SKILL = 0.5  # (accuracy - chance) / (1 - chance); a warning is printed below it


@dataclass(frozen=True)
class ClassifierConfig:
    width: int = 24
    """Channels of the first convolution. Each further one has twice as many, up to four times ``width``."""
    features: int = 64
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 4e-3
    """The peak. The rate rises during the first 30% of the steps, then falls to 0 (Smith & Topin 2017,
    arXiv:1708.07120)."""
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.features, self.steps) < 1 or self.batch_size < 2:
            raise UserError(
                f"classifier: width is {self.width}, features {self.features}, steps {self.steps} and batch_size "
                f"{self.batch_size}; each must be at least 1, and a batch 2"
            )


@dataclass(frozen=True)
class Labelled:
    """The training images and held-out images of a classifier, with their labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        return int(max(self.labels.max(), self.test_labels.max())) + 1

    @property
    def chance(self) -> float:
        """The accuracy of always predicting the most frequent class of the held-out images."""
        return float(self.test_labels.bincount().max() / len(self.test_labels))


class Network(nn.Module):
    """Convolutions that halve the image down to 4 x 4 or less, a layer of features, and one logit per class."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, size: int, classes: int, config: ClassifierConfig) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width, kernel = config.width, 5
        while size > 4:
            convolution = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
            blocks += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels, width, size, kernel = width, min(2 * width, 4 * config.width), (size + 1) // 2, 3
        self.trunk = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels * size**2, config.features), nn.ReLU())
        self.head = nn.Linear(config.features, classes)
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images in [-1, 1]."""
        logits: Tensor = self.head(self.trunk(images))
        return logits


@dataclass(frozen=True)
class Classifier:
    network: Network
    accuracy: float
    """On the held-out images."""
    chance: float
    fingerprint: str
    """SHA-256 of the weights. Distances on features of different classifiers cannot be compared."""

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(N, F) of uint8 images, centred and divided by one number.

        On the classifier's training images, the mean variance of a feature is then 1. A generator that always makes
        an image with the mean features would have a Fréchet distance of F.
        """
        with evaluating(self.network):
            found = torch.cat([self.network.trunk(to_unit_range(part)) for part in images.split(BATCH)])
        return (found - self.network.mean) / self.network.scale

    @property
    def is_poor(self) -> bool:
        """Whether the accuracy is too low for useful features."""
        return self.accuracy - self.chance < MIN_SKILL * (1 - self.chance)


def load_or_train(
    data: Labelled, config: ClassifierConfig | None = None, say: Callable[[str], None] = print
) -> Classifier:
    """The cached classifier of this data, or a new one, which is then cached.

    Raises UserError for fewer than two classes.
    """
    config = config or ClassifierConfig()
    if data.classes < 2:
        raise UserError("quality needs labels of two classes or more to learn features from, and the data has one")
    folder = cache_folder() / "classifiers" / key(data, config)[:16]
    network = build(data, config)
    cached = _read_cache(folder, network)
    if cached is not None:
        return cached
    say(
        f"quality: training a classifier of {data.classes:,} classes on {len(data.images):,} images, "
        f"once for this data; it is cached in {folder}"
    )
    began = time.monotonic()
    train(network, data, config, say)
    accuracy = held_out_accuracy(network, data)
    content = save(network.state_dict())
    trained = Classifier(network, accuracy, data.chance, hashlib.sha256(content).hexdigest())
    say(f"quality: trained in {duration(time.monotonic() - began)}; right on {accuracy:.1%} of held-out images")
    _write_cache(folder, content, _describe(trained, data, config), say)
    return trained


def key(data: Labelled, config: ClassifierConfig) -> str:
    """The cache key of a classifier: SHA-256 of the images, the labels, their shapes and the configuration."""
    digest = hashlib.sha256(json.dumps([RECIPE, asdict(config)], sort_keys=True).encode())
    for tensor in (data.images, data.labels.long(), data.test_images, data.test_labels.long()):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def build(data: Labelled, config: ClassifierConfig) -> Network:
    """A network whose initial weights depend on the seed alone. Global random states do not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Network(data.images.shape[1], data.images.shape[-1], data.classes, config)


def train(network: Network, data: Labelled, config: ClassifierConfig, say: Callable[[str], None] = print) -> None:
    """Train with AdamW (Loshchilov & Hutter 2019) on cross-entropy. The seed and the step decide each batch.

    At the end, compute the mean and the scale of the features on the training images.
    """
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    total = max(config.steps, 4)  # the schedule cannot be shorter
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total)
    last_report, pace = time.monotonic(), Pace()
    pace.report(0)
    network.train()
    for step in range(config.steps):
        generator = seeded_generator(config.seed, "classifier", step)
        rows = torch.randint(len(data.images), (config.batch_size,), generator=generator)
        loss = functional.cross_entropy(network(to_unit_range(data.images[rows])), data.labels[rows].long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        now = time.monotonic()
        if now - last_report > PROGRESS_INTERVAL_S:
            last_report = now
            pace.report(step + 1)
            say(f"quality: classifier at step {step + 1:,} of {config.steps:,}, {pace.left(config.steps)}")
    with evaluating(network), torch.inference_mode():
        features = torch.cat([network.trunk(to_unit_range(part)) for part in data.images.split(BATCH)]).double()
    network.mean.copy_(features.mean(0))
    network.scale.copy_(features.var(0).mean().sqrt().clamp_min(1e-6))


@torch.inference_mode()
def held_out_accuracy(network: Network, data: Labelled) -> float:
    """The share of held-out images whose class is predicted correctly."""
    with evaluating(network):
        predicted = torch.cat([network(to_unit_range(part)).argmax(1) for part in data.test_images.split(BATCH)])
    return float((predicted == data.test_labels).float().mean())


def _describe(classifier: Classifier, data: Labelled, config: ClassifierConfig) -> dict[str, Any]:
    return {
        "sha256": classifier.fingerprint, "accuracy": classifier.accuracy, "chance": classifier.chance,
        "classes": data.classes, "image_shape": list(data.images.shape[1:]), "images": len(data.images),
        "recipe": RECIPE, "config": asdict(config), "torch": torch.__version__,
    }  # fmt: skip


def _read_cache(folder: Path, network: Network) -> Classifier | None:
    """Load the cached weights into ``network``. None if the cache is missing or incomplete."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        content = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != description["sha256"]:
            return None
        network.load_state_dict(load(content))
        return Classifier(
            network.eval(), float(description["accuracy"]), float(description["chance"]), description["sha256"]
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError):
        return None


def _write_cache(folder: Path, content: bytes, description: dict[str, Any], say: Callable[[str], None]) -> None:
    """Write the weights, then the description: weights without a matching description are ignored.

    If the cache cannot be written, print a warning and continue.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in ((WEIGHTS, content), (DESCRIPTION, json.dumps(description, indent=2).encode())):
            temporary = folder / f"{name}.part"
            temporary.write_bytes(part)
            temporary.replace(folder / name)
    except OSError as error:
        say(f"quality: the classifier is not cached: cannot write to {folder} ({error.strerror}); set INFOGAN_DATA")
