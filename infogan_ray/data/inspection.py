"""Inspects the images at a path, which it reads as training does, and proposes a configuration."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infogan_ray.data.conversion import CROP, Conversion, NotSquare, not_square
from infogan_ray.data.datasets import DataConfig
from infogan_ray.data.decoding import Facts, decode
from infogan_ray.data.formats.collection import EncodedImages, RawImages
from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.hold_out import STRATIFIED, held_out
from infogan_ray.data.image_files import Broken, Files, Say
from infogan_ray.data.image_loader import map_files, union
from infogan_ray.data.labels import is_unbalanced
from infogan_ray.data.load_in_memory import (
    ALPHA,
    array_conversions,
    array_values,
    count_clipped,
    to_images,
)
from infogan_ray.data.pixel_range import CLIPPED, Values, range_line
from infogan_ray.models.network_config import SIZES, check_images
from infogan_ray.storage.visible_text import shell_command

SHEET = 64  # images on the contact sheet
PREVIEW_SIZE = 64  # height and width at which colour is detected; also the largest proposed size
COLOUR = 8  # a smaller difference between channels counts as grey: JPEG adds some to grey images
MOST_CLASSES = 100  # more folders are probably not classes
LARGEST_SIGN = 32  # grey images up to this size are taken for digits or signs, which the paper's form suits
BATCH, PHOTO_BATCH = 128, 64  # of training without a preset, and of the preset photos
STEPS = 20_000


@dataclass(frozen=True)
class Proposal:
    """A proposed training configuration."""

    image_size: int
    channels: int
    batch_size: int
    codes: str
    max_bad: float
    command: str


@dataclass(frozen=True)
class Survey:
    """The result for encoded images. ``sheet``: up to 64 images as training reads them, uint8 (n, C, S, S)."""

    kind: str
    """The layout: 'folder of images', 'CelebA folder'."""
    source: Files
    test_images: int
    """Number of files of the data's own test part. They are not decoded."""
    held_out: int
    """Number of images that are held out, since there is no test part."""
    formats: Counter[str]
    modes: Counter[str]
    sizes: dict[str, list[int]]
    """least, median and most: [width, height], each computed separately."""
    conversions: Counter[str]
    broken: dict[str, str]
    classes: dict[str, int]
    copies: list[list[str]]
    """Groups of files with the same bytes."""
    coloured: int
    not_square: NotSquare | None
    """None if all images are square, or if the dataset's own crop is used."""
    pixel_range: str | None
    """The pixel range and its origin, for users. None if all images have 8 bits."""
    proposal: Proposal | None
    memory_bytes: int
    sheet: Tensor

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        proposal = None if self.proposal is None else vars(self.proposal)
        return {
            "path": str(self.source.path), "layout": self.kind, "images": len(self.source.names) - len(self.broken),
            "test_images": self.test_images, "held_out": self.held_out, "formats": dict(self.formats),
            "modes": dict(self.modes), "sizes": self.sizes, "coloured": self.coloured,
            "skipped": dict(self.source.skipped), "broken": self.broken, "conversions": dict(self.conversions),
            "classes": self.classes, "copies": self.copies, "not_square": self.not_square and vars(self.not_square),
            "pixel_range": self.pixel_range, "memory_bytes": self.memory_bytes, "proposal": proposal,
        }  # fmt: skip


@dataclass(frozen=True)
class _FileCheck:
    facts: Facts
    coloured: bool
    digest: bytes


@dataclass(frozen=True)
class RawSurvey:
    """The result for raw images of one size. None of them can be broken."""

    path: Path
    kind: str
    images: int
    test_images: int
    held_out: int
    """Number of images that are held out, since there is no test part."""
    shape: tuple[int, ...]
    conversions: list[str]
    classes: dict[str, int]
    not_square: NotSquare | None
    pixel_range: str | None
    proposal: Proposal | None
    memory_bytes: int
    sheet: Tensor

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        proposal = None if self.proposal is None else vars(self.proposal)
        return {
            "path": str(self.path), "layout": self.kind, "images": self.images, "test_images": self.test_images,
            "held_out": self.held_out, "shape": list(self.shape), "conversions": self.conversions,
            "classes": self.classes, "not_square": self.not_square and vars(self.not_square),
            "pixel_range": self.pixel_range,
            "memory_bytes": self.memory_bytes, "proposal": proposal,
        }  # fmt: skip


def inspect(path: Path, config: DataConfig, say: Say) -> Survey | RawSurvey:
    """Decode every image once, and those of the sheet again. Proposes the values that ``config`` does not set.

    Raises UserError, in one line, if there are no images, and for sizes that no network supports.
    """
    if config.image_size is not None or config.channels is not None:
        check_images(config.image_size or SIZES[0], config.channels or 1)
    collection = open_collection(path, config.labels, say)
    if isinstance(collection, RawImages):
        return _inspect_raw(collection, config)
    source = collection.files
    checks: dict[int, _FileCheck] = {}
    broken: dict[int, str] = {}
    how = config.conversion

    def check(how: Conversion, rows: list[int] | None = None) -> None:
        for row, result in map_files(source, lambda content: _check_file(content, source.crop, how), say, rows):
            if isinstance(result, Broken):
                broken[row] = str(result)
            else:
                checks[row] = result

    check(how)
    wide = {row: found.facts.values for row, found in checks.items() if found.facts.values is not None}
    values = union(wide.values())
    if values is not None:
        how = how.with_range_of(values)
    if wide and config.pixel_range is None:  # as in training, read again with the range of all images
        check(how, sorted(wide))
    rows = sorted(checks)
    names = [source.names[row] for row in rows]
    facts = [checks[row].facts for row in rows]
    coloured = sum(check.coloured for check in checks.values())
    size = config.image_size or _size(facts)
    channels = config.channels or (3 if coloured else 1)
    counts, test = _classes(collection, rows), 0 if collection.test is None else collection.test.count
    held = _held_out(collection, names, rows)
    share = len(broken) / len(source.names)
    return Survey(
        kind=collection.kind,
        source=source,
        test_images=test,
        held_out=held,
        formats=Counter(fact.format for fact in facts),
        modes=Counter(fact.mode for fact in facts),
        sizes=_sizes(facts),
        conversions=Counter(word for fact in facts for word in fact.conversions(size, channels)),
        broken={source.names[row]: broken[row] for row in sorted(broken)},
        classes=counts,
        copies=_copies(source, checks),
        coloured=coloured,
        not_square=not_square([(f.width, f.height) for f in facts], how.fit) if source.crop is None else None,
        pixel_range=_range_text(how, values, config),
        proposal=_propose(path, config, (size, channels), len(names) - held, counts, share),
        memory_bytes=(len(names) + test) * channels * size * size,
        sheet=_sheet(source, rows, size, channels, how),
    )


def _inspect_raw(found: RawImages, config: DataConfig) -> RawSurvey:
    """Inspect raw images. Reads the whole file once: a compressed file can only be read forwards."""
    height, width = found.shape[:2]
    stored = found.shape[2] if len(found.shape) == 3 else 1
    channels = config.channels or (stored - 1 if stored in ALPHA else stored)  # alpha is composited on white
    values = array_values(found)
    how = config.conversion if values is None else config.conversion.with_range_of(values)
    fitting = height if height == width and height in SIZES else _nearest(min(height, width))
    size = config.image_size or fitting
    chosen = {found.count * place // SHEET for place in range(SHEET)}
    images = [
        image for first, _, chunk in found.chunks(0, found.count)
        for row, image in enumerate(chunk, start=first) if row in chosen
    ]  # fmt: skip
    sheet = to_images(np.stack(images), size, channels, how)
    conversions = array_conversions(found.shape, how.fit)
    if values is not None and how.pixel_range is not None and how.pixel_range.clips(values):
        conversions.append(f"{count_clipped(found, how.pixel_range):,} {CLIPPED}")
    counts = _classes(found, list(range(found.count)))
    test = found.test.count if found.test else 0
    rows = list(range(found.count))
    held = _held_out(found, [str(row) for row in rows], rows)
    return RawSurvey(
        found.path, found.kind, found.count, test, held, found.shape, conversions, counts,
        not_square([(width, height)] * found.count, how.fit), _range_text(how, values, config),
        _propose(found.path, config, (size, channels), found.count - held, counts, 0.0),
        (found.count + test) * channels * size * size, sheet,
    )  # fmt: skip


def _classes(found: EncodedImages | RawImages, rows: list[int]) -> Counter[str]:
    if found.labels is None or found.classes is None:
        return Counter()
    counts = np.bincount(found.labels[rows], minlength=len(found.classes))
    return Counter({name: int(count) for name, count in zip(found.classes, counts, strict=True)})


def _range_text(how: Conversion, values: Values | None, config: DataConfig) -> str | None:
    if values is None or how.pixel_range is None:
        return None if config.pixel_range is None else f"{config.pixel_range} is without effect: all have 8 bits"
    return range_line(how.pixel_range, values, fixed=config.pixel_range is not None)


def _held_out(found: EncodedImages | RawImages, names: list[str], rows: list[int]) -> int:
    """Number of images that training holds out. ``names`` and ``rows``: of the readable images."""
    if found.test is not None or found.labels is None:
        return 0
    return int(held_out(STRATIFIED, names, found.labels[rows]).sum())


def _check_file(content: bytes, crop: int | None, how: Conversion) -> _FileCheck:
    pixels, facts = decode(content, PREVIEW_SIZE, 3, crop=crop, how=how)
    channel_range = np.ptp(pixels.astype(np.int16), axis=0).max()
    return _FileCheck(facts, bool(channel_range > COLOUR), hashlib.blake2b(content, digest_size=16).digest())


def _sizes(facts: list[Facts]) -> dict[str, list[int]]:
    if not facts:
        return {}
    sides = [[fact.width for fact in facts], [fact.height for fact in facts]]
    return {
        "least": [min(side) for side in sides], "median": [round(median(side)) for side in sides],
        "most": [max(side) for side in sides],
    }  # fmt: skip


def _size(facts: list[Facts]) -> int:
    """The images' size if networks support it, else the power of two below their median size, at most 64."""
    all_sides = {side for fact in facts for side in (fact.width, fact.height)}
    if len(all_sides) == 1 and (side := all_sides.pop()) in SIZES and side <= PREVIEW_SIZE:
        return side
    return _nearest(median(min(fact.width, fact.height) for fact in facts) if facts else PREVIEW_SIZE)


def _nearest(side: float) -> int:
    return max([size for size in (16, 32, 64) if size <= side], default=16)


def _copies(source: Files, checks: dict[int, _FileCheck]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for row in sorted(checks):
        groups.setdefault(checks[row].digest, []).append(source.names[row])
    return [group for group in groups.values() if len(group) > 1]


def _sheet(source: Files, rows: list[int], size: int, channels: int, how: Conversion) -> Tensor:
    """Images for the contact sheet, chosen at equal distances in the source."""
    chosen = sorted({rows[len(rows) * place // SHEET] for place in range(SHEET)}) if rows else []
    found = {
        row: read[0]
        for row, read in map_files(
            source,
            lambda content: decode(content, size, channels, crop=source.crop, how=how),
            lambda line: None,
            chosen,
        )
        if not isinstance(read, Broken)
    }
    empty = np.empty((0, channels, size, size), np.uint8)
    return torch.from_numpy(np.stack([found[row] for row in sorted(found)]) if found else empty)


def _propose(
    path: Path, config: DataConfig, shape: tuple[int, int], train: int, classes: Counter[str], broken: float
) -> Proposal | None:
    """Propose a configuration for images of ``shape`` (size, channels). None if there are too few for one batch.

    ``train``: number of training images. ``broken``: share of broken files.
    """
    if train < 4:
        return None
    size, channels = shape
    class_count, counts = len(classes), [count for count in classes.values() if count]
    is_photo = channels == 3 or size > LARGEST_SIGN
    largest = PHOTO_BATCH if is_photo else BATCH
    batch = min(largest, 1 << (train // 2).bit_length() - 1)  # at least two batches per epoch
    categories = class_count if 2 <= class_count <= MOST_CLASSES else 10
    codes = f"noise={62 if size <= 32 else 128} cat={categories} uniform=2"
    max_bad = config.max_bad if broken <= config.max_bad else min(1.0, (int(broken * 1000) + 1) / 1000)
    words = [
        "infogan", "train", *(["--preset", "photos"] if is_photo else []),
        "--data", str(path), "--image-size", str(size), "--channels", str(channels),
        "--batch-size", str(batch), "--codes", codes, "--steps", str(STEPS),
        *(["--prior.learn"] if class_count <= MOST_CLASSES and is_unbalanced(counts) else []),
        *(["--labels", config.labels] if config.labels else []),
        *(["--pixel-range", config.pixel_range] if config.pixel_range else []),
        *(["--fit", config.fit] if config.fit != CROP else []),
        *(["--max-bad", f"{max_bad:g}"] if max_bad != DataConfig().max_bad else []),
    ]  # fmt: skip
    return Proposal(size, channels, batch, codes, max_bad, shell_command(words))
