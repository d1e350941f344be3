"""Loads the dataset that ``--data`` names: mnist, fashion_mnist, shapes (generated), or images at a path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from infogan_ray import UserError
from infogan_ray.data import fetch, shapes
from infogan_ray.data.conversion import CROP, SQUEEZE, Conversion
from infogan_ray.data.feeds.feed_policy import PREPARE, MemoryBudget, choose_feed
from infogan_ray.data.formats import idx, npz
from infogan_ray.data.formats.collection import Collection, RawImages
from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.hold_out import EVERY_SEVENTH, FEWEST, NONE, RULES, STRATIFIED, held_out
from infogan_ray.data.image_files import Say
from infogan_ray.data.image_set import MEMORY, STREAM, ImageSet
from infogan_ray.data.load_in_memory import check_size, load_in_memory, with_size_and_channels
from infogan_ray.data.progress import counted
from infogan_ray.data.shards.dataset import ENCODED, TEST, TRAIN, ShardSet
from infogan_ray.data.shards.sampling import SAMPLE, prepared, read_rows, read_sample, resolve_size
from infogan_ray.storage.visible_text import printable

LARGEST_IMAGE = 10_000  # pixels on a side
NAMES = (*fetch.SOURCES, "shapes")


@dataclass(frozen=True)
class DataConfig:
    """How images are loaded: their size, channels and labels."""

    data_dir: str | None = None
    """Folder to search first for a named dataset (raw IDX or .gz)."""
    image_size: int | None = None
    """Height and width in pixels. Default: those of the data."""
    channels: int | None = None
    """1 (grey) or 3 (RGB). Default: those of the data."""
    labels: str | None = None
    """A CSV or JSON file with the columns file and label, for images in files. Default: class folders, or the dataset's
    labels. For CelebA also one attribute: FILE/list_attr_celeba.txt:Smiling."""
    max_bad: float = 0.01
    """Largest share of broken image files. Broken files are skipped; with more of them the run does not start."""
    pixel_range: str | None = None
    """LOW:HIGH, the values that become black and white in images of more than 8 bits. Default: found from them all."""
    fit: str = CROP
    """How images that are not square become square: crop, pad or squeeze."""
    hold_out: str = STRATIFIED
    """How the test part of labelled images without one is chosen: stratified, every_seventh or none."""

    def __post_init__(self) -> None:
        if self.hold_out not in RULES:
            raise UserError(f"hold_out is '{self.hold_out}'; valid are {', '.join(RULES)}")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"max_bad is {self.max_bad:g}; it must be a share from 0 to 1, for example 0.01")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels is {self.channels}; valid are 1 (grey) and 3 (RGB)")
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise UserError(f"image_size is {self.image_size}; it must be from 1 to {LARGEST_IMAGE}")
        _ = self.conversion  # checks its fields

    @property
    def conversion(self) -> Conversion:
        return Conversion.of(self.fit, self.pixel_range)


def load_images(
    data: str, config: DataConfig | None = None, say: Callable[[str], None] = print, *,
    feed: str = MEMORY, budget: MemoryBudget | None = None, sample: int = SAMPLE,
) -> ImageSet:  # fmt: skip
    """Load a dataset into memory. To stream a prepared dataset, load only a sample of ``sample`` images of each split.

    ``feed``: memory, stream, or auto, which streams if the images exceed ``budget``. Raises UserError, in one line,
    for data that cannot be used.
    """
    config = config or DataConfig()
    shards = prepared(data) if data not in NAMES else None
    if shards is not None:
        return _prepared(shards, config, say, feed, budget, sample)
    if feed == STREAM:
        raise UserError(f"feed is '{STREAM}', which reads prepared images, and {data} is not; {PREPARE}")
    if data == "shapes":
        # The subset is random, so that every seventh image of it is a random seventh.
        images = _split(ImageSet(data, *shapes.subset(), classes=shapes.KINDS), None, EVERY_SEVENTH)
    elif data in NAMES:
        folder = None
        if config.data_dir is not None:
            folder = Path(config.data_dir).expanduser()
            if not folder.is_dir():
                problem = "is a file" if folder.exists() else "does not exist"
                raise UserError(f"data_dir is {folder}, which {problem}; name the folder that holds {data}'s IDX files")
        train, labels, test, test_labels = (torch.from_numpy(a.copy()) for a in fetch.arrays(data, folder, say))
        classes = fetch.SOURCES[data].classes
        images = ImageSet(data, train.unsqueeze(1), labels.long(), test.unsqueeze(1), test_labels.long(), None, classes)
    else:
        path = Path(data).expanduser()
        if not path.exists():
            raise UserError(f"data is '{data}': neither a dataset ({', '.join(NAMES)}) nor a path that exists")
        images = _load_path(path, config, say, feed, budget)
    images = dataclasses.replace(images, conversion=dataclasses.replace(images.conversion, fit=config.fit))
    if config.pixel_range is not None and images.conversion.pixel_range is None:
        say(f"data: pixel_range is {config.pixel_range}, without effect: no image of {data} has more than 8 bits")
    return fit(images, config)


def is_available(data: str, data_dir: str | None = None) -> bool:
    """Whether ``load_images`` can load the data without a download."""
    if data in fetch.SOURCES:
        return fetch.is_available(data, Path(data_dir).expanduser() if data_dir else None)
    return data in NAMES or Path(data).expanduser().exists()


def _load_path(
    path: Path, config: DataConfig, say: Callable[[str], None], feed: str, budget: MemoryBudget | None
) -> ImageSet:
    collection = open_collection(path, config.labels, say)
    test = collection.test
    kinds = "" if collection.classes is None else f", {counted(len(collection.classes), 'class', 'classes')}"
    split = f"; {test.count:,} more in its test split" if test is not None else ""
    if test is None and collection.labels is not None and collection.count >= FEWEST and config.hold_out != NONE:
        words = {STRATIFIED: "about a seventh of each class is", EVERY_SEVENTH: "every seventh image is"}
        split = f"; {words[config.hold_out]} held out to measure errors"
    if collection.announced:
        say(f"data: {path} ({collection.kind}): {counted(collection.count, 'image')}{kinds}{split}")
    if budget is not None and (line := budget.check(str(path), _bytes(collection, config), feed)):
        say(line)
    train = load_in_memory(collection, config.image_size, config.channels, config.max_bad, say, config.conversion)
    name = path.stem if path.is_file() else path.name
    classes = _printable_classes(collection.classes)
    if test is None:
        whole = ImageSet(name, train.images, train.labels, classes=classes, conversion=train.how)
        return _split(whole, train.names, config.hold_out)
    how = train.how if train.how.pixel_range else config.conversion
    held = load_in_memory(test, config.image_size, config.channels, config.max_bad, say, how)
    how = train.how if train.how.pixel_range else held.how
    return ImageSet(name, train.images, train.labels, held.images, held.labels, None, classes, how)


def _prepared(
    shards: ShardSet, config: DataConfig, say: Say, feed: str, budget: MemoryBudget | None, sample: int
) -> ImageSet:
    classes = _printable_classes(shards.classes)
    if shards.encoding == ENCODED:
        size, channels = resolve_size(shards, config.image_size, config.channels)
    else:  # ``fit`` resizes images in memory afterwards
        size, channels = resolve_size(shards, None, None)
    requested, shards = config.conversion, shards.with_conversion(config.conversion)
    for name, wanted, used in (
        ("pixel_range", requested.range_text, shards.conversion.range_text),
        ("fit", requested.fit, shards.conversion.fit),
    ):
        if wanted not in (None, used) and (name, wanted) != ("fit", CROP):
            say(f"data: {name} is {wanted}, without effect: the images of {shards.folder} are prepared with {used}")
    if choose_feed(feed, shards.count() * channels * size**2, budget) == STREAM:
        resolve_size(shards, config.image_size, config.channels)
        return ImageSet(
            shards.folder.name, *read_sample(shards, size, channels, sample), shards, classes, shards.conversion
        )
    train = read_rows(shards, TRAIN, size, channels)
    test = read_rows(shards, TEST, size, channels) if shards.test else (None, None)
    images = ImageSet(shards.folder.name, *train, *test)
    return fit(dataclasses.replace(images, classes=classes, conversion=shards.conversion), config)


def _printable_classes(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names for people: a folder's name may hold bytes that are not text, and line breaks."""
    return None if classes is None else tuple(map(printable, classes))


def _bytes(collection: Collection, config: DataConfig) -> int:
    """Bytes of the images and the test split in memory. 0 if the size is unknown, which is an error later."""
    height, width, *channels = collection.shape if isinstance(collection, RawImages) else (0, 0, 3)
    if config.image_size is not None:
        height = width = config.image_size
    count = collection.count + (collection.test.count if collection.test is not None else 0)
    return count * height * width * (config.channels or (channels[0] if channels else 1))


def _split(whole: ImageSet, names: Sequence[str] | None, rule: str) -> ImageSet:
    """Hold out a test part of images that have labels. ``names``: of each image, by default its number."""
    labels = None if whole.labels is None else whole.labels.numpy()
    held = torch.from_numpy(held_out(rule, names or [str(row) for row in range(whole.count)], labels))
    if whole.labels is None or not held.any():
        return whole
    return dataclasses.replace(
        whole, images=whole.images[~held], labels=whole.labels[~held], test_images=whole.images[held],
        test_labels=whole.labels[held],
    )  # fmt: skip


def fit(image_set: ImageSet, config: DataConfig) -> ImageSet:
    """Convert to the configured size and channels. Raises UserError to squeeze images to a square of unknown size."""
    check_size(tuple(image_set.images.shape[2:]), config.image_size, config.fit)
    images, test = (
        None if part is None else with_size_and_channels(part, config.image_size, config.channels, config.fit)
        for part in (image_set.images, image_set.test_images)
    )
    assert images is not None
    return dataclasses.replace(image_set, images=images, test_images=test)


def fit_of_earlier_runs(data: str | None) -> str:
    """The ``fit`` of runs whose configuration has none: they squeezed arrays to a square and cropped image files."""
    path = Path(data or "").expanduser()
    if not path.is_file() or not (npz.matches(path) or idx.matches(path)):
        return CROP
    try:
        shape = open_collection(path, None, lambda line: None).shape  # type: ignore[union-attr]
    except UserError:
        return CROP
    return SQUEEZE if shape[0] != shape[1] else CROP
