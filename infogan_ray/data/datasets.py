"""What ``--data`` names: mnist, fashion_mnist, an .npz file, or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray.data import fetch

NAMES = tuple(fetch.SOURCES)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
HOLD_OUT = 7  # of a labelled folder or file every seventh image is kept out of training, to count errors on


@dataclass(frozen=True)
class DataConfig:
    """Which images, and the size and channels that they are brought to."""

    data_dir: str | None = None
    """Folder to look for a named dataset first (raw IDX or .gz)."""
    image_size: int | None = None
    """Height and width; by default the data's own."""
    channels: int | None = None
    """1 (grey) or 3 (RGB); by default the data's own."""


@dataclass(frozen=True)
class ImageSet:
    """uint8 images (N, C, H, W) and, where there are any, labels (N,) and a held-out test part."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    test_images: Tensor | None = None
    test_labels: Tensor | None = None

    @property
    def image_size(self) -> int:
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.images.shape[1]


def load_images(data: str, config: DataConfig | None = None, say: Callable[[str], None] = print) -> ImageSet:
    """Load a dataset into memory. Raises ValueError, in one line, for whatever cannot be used."""
    config = config or DataConfig()
    if data in NAMES:
        folder = None
        if config.data_dir is not None:
            folder = Path(config.data_dir).expanduser()
            if not folder.is_dir():
                what = "is a file" if folder.exists() else "does not exist"
                raise ValueError(f"data_dir is {folder}, which {what}; name the folder that holds {data}'s IDX files")
        train, labels, test, test_labels = (torch.from_numpy(a.copy()) for a in fetch.arrays(data, folder, say))
        found = ImageSet(data, train.unsqueeze(1), labels.long(), test.unsqueeze(1), test_labels.long())
    else:
        path = Path(data).expanduser()
        if not path.exists():
            raise ValueError(f"data is '{data}': neither a dataset ({', '.join(NAMES)}) nor a path that exists")
        if path.is_dir():
            found = _folder(path, config)
        elif path.suffix == ".npz":
            found = _npz(path)
        else:
            raise ValueError(
                f"data is {path}, a file that cannot be read; valid are a folder of images or an .npz file"
            )
    return _fit(found, config)


def _npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            if "images" not in names:
                raise ValueError(f"data: {path} has no array 'images' (it has {', '.join(names) or 'none'})")
            images, labels = file["images"], file["labels"] if "labels" in names else None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(f"data: {path} is not a whole .npz file ({error})") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"data: {path} holds pickled objects, which are never read; save plain arrays") from None
        raise
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"data: 'images' in {path} is {images.dtype} {images.shape}; it must be uint8 (N, H, W[, C])")
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(
            f"data: 'labels' in {path} is {labels.dtype} {labels.shape}; it must be integers ({len(images)},)"
        )
    if images.ndim == 3:
        images = images[..., None]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return _hold_out(path.stem, tensor, None if labels is None else torch.from_numpy(labels.astype(np.int64)))


def read_files(files: list[Path], size: int, channels: int) -> Tensor:
    """Image files, cropped to their middle square and resized: uint8 (N, channels, size, size)."""
    from PIL import Image, UnidentifiedImageError  # comes with torchvision

    images = np.empty((len(files), channels, size, size), np.uint8)
    for row, file in enumerate(files):
        try:
            with Image.open(file) as image:
                whole = image.convert("L" if channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"data: {file} is not a readable image ({error}); remove or repair it") from None
        side = min(whole.size)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        square = whole.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        images[row] = np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)
    return torch.from_numpy(images)


def image_files(path: Path) -> list[Path]:
    """The images below a folder, sorted. Raises ValueError if there is none."""
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"data: no image in {path} ({', '.join(IMAGE_SUFFIXES)} are read, in subfolders too)")
    return files


def _folder(path: Path, config: DataConfig) -> ImageSet:
    files = image_files(path)
    if config.image_size is None:
        raise ValueError(f"image_size is not set; a folder of images ({path}) needs it, for example --image-size 32")
    classes = sorted({file.parent for file in files})
    labels = None
    if len(classes) > 1 and path not in classes:
        number = {folder: i for i, folder in enumerate(classes)}
        labels = torch.tensor([number[file.parent] for file in files])
    return _hold_out(path.name, read_files(files, config.image_size, config.channels or 3), labels)


def _hold_out(name: str, images: Tensor, labels: Tensor | None) -> ImageSet:
    if labels is None or len(images) < 2 * HOLD_OUT:
        return ImageSet(name, images)
    test = torch.arange(len(images)) % HOLD_OUT == HOLD_OUT - 1
    return ImageSet(name, images[~test], labels[~test], images[test], labels[test])


def _fit(found: ImageSet, config: DataConfig) -> ImageSet:
    """Bring the images to the configured channels and size."""
    height, width = found.images.shape[2:]
    if height != width and config.image_size is None:
        raise ValueError(f"data: the images are {height}x{width}; set image_size to bring them to a square")

    def bring(images: Tensor | None) -> Tensor | None:
        if images is None:
            return None
        if config.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1).contiguous()
        elif config.channels == 1 and images.shape[1] == 3:
            grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601 luma
            images = torch.cat([(part * grey).sum(1, keepdim=True).round().byte() for part in images.split(1024)])
        size = config.image_size
        if size is not None and tuple(images.shape[2:]) != (size, size):
            resized = [
                F.interpolate(p.float(), (size, size), mode="bilinear", antialias=True) for p in images.split(1024)
            ]
            images = torch.cat([part.round().clamp(0, 255).byte() for part in resized])
        return images

    images = bring(found.images)
    assert images is not None
    return ImageSet(found.name, images, found.labels, bring(found.test_images), found.test_labels)
