"""Real images to encode: those that ``--data`` names, else those that the run was trained on."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from infogan_ray import UserError
from infogan_ray.data.datasets import DataConfig, is_available, load_images
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.rng import seeded_generator
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.manifests import parse_json
from infogan_ray.training.config import from_saved
from infogan_ray.training.publish import CONFIG


@dataclass(frozen=True)
class RealImages:
    """Images (N, C, H, W) uint8, with labels (N,) where the data has some."""

    images: torch.Tensor
    labels: torch.Tensor | None

    def sample(self, count: int, seed: int) -> list[int]:
        """Indices of at most ``count`` images, in random order."""
        order = torch.randperm(len(self.images), generator=seeded_generator(seed, "real images"))
        return order[:count].tolist()


class RealImageSource:
    """``data`` and ``data_dir``: images to use in place of those of each run. Loaded images stay in memory."""

    def __init__(self, data: str | None = None, data_dir: str | None = None) -> None:
        self.data, self.data_dir = data, data_dir
        self._loaded: dict[tuple[str, str | None, int, int], RealImages] = {}
        self._lock = threading.Lock()

    def availability(self, folder: Storage) -> dict[str, str]:
        """``data``, the name of the images of a run or model, or ``why`` there are none. Nothing is downloaded."""
        data, data_dir = self._find(folder)
        if data is None or not is_available(data, data_dir):
            why = f"the images of {data} are not on this machine" if data else "it is not known what it was trained on"
            return {"why": f"{why}; name some with: infogan explore ... --data"}
        return {"data": data}

    def load(self, folder: Storage, model: InfoGAN) -> RealImages | None:
        """The held-out images where there are some, at the model's size. None if no images are on this machine."""
        data, data_dir = self._find(folder)
        if data is None or not is_available(data, data_dir):
            return None
        key = (data, data_dir, model.spec.image_size, model.spec.channels)
        with self._lock:
            if key not in self._loaded:
                found = load_images(data, DataConfig(*key[1:], max_bad=1.0), say=lambda line: None)
                if found.test_images is not None:
                    self._loaded[key] = RealImages(found.test_images, found.test_labels)
                else:
                    self._loaded[key] = RealImages(found.images, found.labels)
            return self._loaded[key]

    def _find(self, folder: Storage) -> tuple[str | None, str | None]:
        if self.data is not None:
            return self.data, self.data_dir
        where = f"{folder}/{CONFIG}"
        try:
            config = from_saved(parse_json(where, folder.read(CONFIG)), where)
        except (UserError, FileNotFoundError, StorageError):
            return None, None
        return config.data, config.data_dir
