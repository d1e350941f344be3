"""Real images for the encoder: the images of ``--data``, or by default the run's training data."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from infogan_ray import UserError
from infogan_ray.data.datasets import DataConfig, is_available, load_images
from infogan_ray.data.hold_out import STRATIFIED
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.rng import seeded_generator
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.manifests import parse_json
from infogan_ray.training.config import from_saved
from infogan_ray.training.publish import CONFIG


@dataclass(frozen=True)
class RealImages:
    """uint8 images (N, C, H, W), and labels (N,) if the data has labels."""

    images: torch.Tensor
    labels: torch.Tensor | None

    def sample(self, count: int, seed: int) -> list[int]:
        """Indices of at most ``count`` images, in random order."""
        order = torch.randperm(len(self.images), generator=seeded_generator(seed, "real images"))
        return order[:count].tolist()


class RealImageSource:
    """``data`` and ``data_dir``: real images to use in place of each run's data. Loaded images stay in memory."""

    def __init__(self, data: str | None = None, data_dir: str | None = None) -> None:
        self.data, self.data_dir = data, data_dir
        self._loaded: dict[tuple[str, DataConfig], RealImages] = {}
        self._lock = threading.Lock()

    def availability(self, folder: Storage) -> dict[str, str]:
        """``data``: the name of a run's or model's data, or ``why`` it is unavailable. Nothing is downloaded."""
        data, data_dir, _ = self._find(folder)
        if data is None or not is_available(data, data_dir):
            why = f"the images of {data} are not on this machine" if data else "the training data is unknown"
            return {"why": f"{why}; name images with: infogan explore ... --data"}
        return {"data": data}

    def load(self, folder: Storage, model: InfoGAN) -> RealImages | None:
        """The held-out images, or all images without a test split, in the model's size. None without local images."""
        data, data_dir, hold_out = self._find(folder)
        if data is None or not is_available(data, data_dir):
            return None
        spec = model.spec
        config = DataConfig(
            data_dir, spec.image_size, spec.channels, max_bad=1.0, hold_out=hold_out, pixel_range=model.pixel_range,
            fit=model.fit,
        )  # fmt: skip
        key = (data, config)
        with self._lock:
            if key not in self._loaded:
                found = load_images(*key, say=lambda line: None)
                if found.test_images is not None:
                    self._loaded[key] = RealImages(found.test_images, found.test_labels)
                else:
                    self._loaded[key] = RealImages(found.images, found.labels)
            return self._loaded[key]

    def _find(self, folder: Storage) -> tuple[str | None, str | None, str]:
        """The name or path of the data, its folder of downloads, and the rule for held-out images."""
        if self.data is not None:
            return self.data, self.data_dir, STRATIFIED
        path = f"{folder}/{CONFIG}"
        try:
            config = from_saved(parse_json(path, folder.read(CONFIG)), path)
        except (UserError, FileNotFoundError, StorageError):
            return None, None, STRATIFIED
        return config.data, config.data_dir, config.hold_out
