"""A small classifier of the data's own labels, whose features images are compared on. Trained once, then kept.

Inception's features know photographs and have to be fetched; these know what tells this data's classes apart, and
come from the data alone. So distances on them compare models of the same data, and no figure of a paper.

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
from infogan_ray.evaluation.bound import BATCH, evaluating
from infogan_ray.evaluation.progress import duration
from infogan_ray.models.rng import seeded_generator

RECIPE = 1  # counted up by whoever changes what the same configuration trains
WEIGHTS, DESCRIPTION = "classifier.safetensors", "classifier.json"
EVERY_S = 10.0  # between lines of progress
LEAST_SKILL = 0.5  # of the way from guessing to being always right; below it is said aloud


@dataclass(frozen=True)
class ClassifierConfig:
    width: int = 24
    """Channels of the first convolution; twice as many in each after it, up to four times as many."""
    features: int = 64
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 4e-3
    """At its peak: it rises over the first 30% of the steps, then falls to 0 (Smith & Topin 2017, arXiv:1708.07120)."""
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
    """What a classifier learns from, and the held-out part that it is judged on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        return int(max(self.labels.max(), self.test_labels.max())) + 1

    @property
    def chance(self) -> float:
        """How often it is right to guess the most frequent class of the held-out part."""
        return float(self.test_labels.bincount().max() / len(self.test_labels))


class Network(nn.Module):
    """Convolutions that halve the image down to 4 x 4 or less, then the features, then one number for each class."""

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
        """Logits (N, classes) of images in -1...1."""
        logits: Tensor = self.head(self.trunk(images))
        return logits


@dataclass(frozen=True)
class Classifier:
    network: Network
    accuracy: float
    """On the held-out part."""
    chance: float
    fingerprint: str
    """Of its weights. Distances on the features of two classifiers do not compare."""

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(N, F) of uint8 images: centred and scaled by one number, so that on the images that the classifier learned
        from the variance of a feature is 1 in the mean. One image drawn all the time, the mean one, would be at a
        Fréchet distance of F."""
        with evaluating(self.network):
            found = torch.cat([self.network.trunk(to_unit_range(part)) for part in images.split(BATCH)])
        return (found - self.network.mean) / self.network.scale

    @property
    def poor(self) -> bool:
        """Whether its features hardly know the labels."""
        return self.accuracy - self.chance < LEAST_SKILL * (1 - self.chance)


def classifier_of(
    data: Labelled, config: ClassifierConfig | None = None, say: Callable[[str], None] = print
) -> Classifier:
    """The classifier of this data: the one that was kept, or a new one, which is kept.

    Raises UserError, in one line, for fewer than two classes.
    """
    config = config or ClassifierConfig()
    if data.classes < 2:
        raise UserError("quality needs labels of two classes or more to learn features from, and the data has one")
    folder = cache_folder() / "classifiers" / key(data, config)[:16]
    network = build(data, config)
    kept = _read(folder, network)
    if kept is not None:
        return kept
    say(
        f"quality: training a classifier of {data.classes:,} classes on {len(data.images):,} images, "
        f"once for this data; it is kept in {folder}"
    )
    began = time.monotonic()
    train(network, data, config, say)
    accuracy = judge(network, data)
    content = save(network.state_dict())
    found = Classifier(network, accuracy, data.chance, hashlib.sha256(content).hexdigest())
    say(f"quality: trained in {duration(time.monotonic() - began)}; right on {accuracy:.1%} of held-out images")
    _keep(folder, content, _described(found, data, config), say)
    return found


def key(data: Labelled, config: ClassifierConfig) -> str:
    """Says what a classifier was made of: SHA-256 of images, labels, their shapes and the recipe."""
    digest = hashlib.sha256(json.dumps([RECIPE, asdict(config)], sort_keys=True).encode())
    for tensor in (data.images, data.labels.long(), data.test_images, data.test_labels.long()):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def build(data: Labelled, config: ClassifierConfig) -> Network:
    """With weights that depend on the seed alone; no global generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Network(data.images.shape[1], data.images.shape[-1], data.classes, config)


def train(network: Network, data: Labelled, config: ClassifierConfig, say: Callable[[str], None] = print) -> None:
    """AdamW (Loshchilov & Hutter 2019) on cross-entropy, with batches drawn by seed and step."""
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    total = max(config.steps, 4)  # of the schedule, which cannot be shorter
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total)
    began = said = time.monotonic()
    network.train()
    for step in range(config.steps):
        draw = seeded_generator(config.seed, "classifier", step)
        rows = torch.randint(len(data.images), (config.batch_size,), generator=draw)
        loss = functional.cross_entropy(network(to_unit_range(data.images[rows])), data.labels[rows].long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        now = time.monotonic()
        if now - said > EVERY_S:
            said = now
            left = (now - began) / (step + 1) * (config.steps - step - 1)
            say(f"quality: classifier at step {step + 1:,} of {config.steps:,}, {duration(left)} left")
    with evaluating(network), torch.inference_mode():
        features = torch.cat([network.trunk(to_unit_range(part)) for part in data.images.split(BATCH)]).double()
    network.mean.copy_(features.mean(0))
    network.scale.copy_(features.var(0).mean().sqrt().clamp_min(1e-6))


@torch.inference_mode()
def judge(network: Network, data: Labelled) -> float:
    """The share of the held-out images whose class it says."""
    with evaluating(network):
        said = torch.cat([network(to_unit_range(part)).argmax(1) for part in data.test_images.split(BATCH)])
    return float((said == data.test_labels).float().mean())


def _described(found: Classifier, data: Labelled, config: ClassifierConfig) -> dict[str, Any]:
    return {
        "sha256": found.fingerprint, "accuracy": found.accuracy, "chance": found.chance, "classes": data.classes,
        "image_shape": list(data.images.shape[1:]), "images": len(data.images), "recipe": RECIPE,
        "config": asdict(config), "torch": torch.__version__,
    }  # fmt: skip


def _read(folder: Path, network: Network) -> Classifier | None:
    """What was kept, into ``network``; None where nothing was, or not all of it."""
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


def _keep(folder: Path, content: bytes, description: dict[str, Any], say: Callable[[str], None]) -> None:
    """The description last: weights without one that fits do not count. A cache that is closed stops nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in ((WEIGHTS, content), (DESCRIPTION, json.dumps(description, indent=2).encode())):
            temporary = folder / f"{name}.part"
            temporary.write_bytes(part)
            temporary.replace(folder / name)
    except OSError as error:
        say(f"quality: the classifier is not kept: cannot write to {folder} ({error.strerror}); set INFOGAN_DATA")
