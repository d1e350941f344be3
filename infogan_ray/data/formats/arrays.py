"""Images as plain arrays: .npz files (dSprites' own among them), IDX files, and CIFAR's binary files."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.formats import idx
from infogan_ray.data.formats.collection import Pixels, Say, numbered
from infogan_ray.data.formats.records import DAMAGED, Member, Records, damaged

NPZ = ".npz file"
CHANNELS = (1, 3)
DSPRITES_SHAPES = ["square", "ellipse", "heart"]  # column 1 of latents_classes, in the order of its README
IDX_NAME = re.compile(r"(?P<part>.*)(?P<dash>[-.])images(?P<dot>[-.])idx3-ubyte(?P<gz>\.gz)?", re.DOTALL)
CIFAR_SIDE, CIFAR_PIXELS = 32, 3 * 32 * 32
CIFAR_FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")
CIFAR_PICKLES = ("cifar-10-batches-py", "cifar-100-python")


def open_npz(path: Path) -> Pixels:
    """An array 'images', uint8 (N, H, W[, C]), perhaps with 'labels' (N,); or dSprites' 'imgs' and 'latents_classes'.

    Raises UserError, in one line, for anything else. Pickled members, of which dSprites has one, are never read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            sprites = "images" not in names and {"imgs", "latents_classes"} <= set(names)
            if "images" not in names and not sprites:
                raise UserError(f"data: {path} has no array 'images' (it has {', '.join(names) or 'none'})")
            images = "imgs" if sprites else "images"
            labels = file["latents_classes"] if sprites else file["labels"] if "labels" in names else None
        shape, fortran, dtype, start = _header(path, f"{images}.npy")
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UserError(f"data: {path} holds pickled objects, which are never read; save plain arrays") from None
        raise
    except DAMAGED as error:
        raise UserError(f"data: {path} is not a whole .npz file ({error})") from None
    if dtype.hasobject:
        raise UserError(f"data: {path} holds pickled objects, which are never read; save plain arrays")
    if dtype != np.uint8 or len(shape) not in (3, 4):
        how = "; of numbers from 0 to 1, (255 * x).round().astype('uint8') makes bytes" if dtype.kind == "f" else ""
        raise UserError(f"data: '{images}' in {path} is {dtype} {shape}; it must be uint8 (N, H, W[, C]){how}")
    if len(shape) == 4 and shape[1] in CHANNELS and shape[3] not in CHANNELS:
        raise UserError(
            f"data: '{images}' in {path} is {shape}, which looks like (N, C, H, W); it must be (N, H, W, C): save "
            "images.transpose(0, 2, 3, 1)"
        )
    if sprites and labels is not None:
        if labels.ndim != 2 or labels.shape[1] < 2:
            raise UserError(f"data: 'latents_classes' in {path} is {labels.shape}; dSprites' own has six columns")
        labels = labels[:, 1]
    if labels is not None and (labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"data: 'labels' in {path} is {labels.dtype} {labels.shape}; it must be integers ({shape[0]},)")
    records = Records(
        path, shape[0], shape[1:], tuple(range(len(shape) - 1)), start, packing="whole" if fortran else "zip",
        member=f"{images}.npy", factor=255 if sprites else 1,
    )  # fmt: skip
    if labels is None:
        return Pixels(path, NPZ, (records,))
    whole = sprites and labels.size and labels.min() >= 0 and labels.max() < len(DSPRITES_SHAPES)
    numbers, classes = numbered(labels, DSPRITES_SHAPES if whole else None)
    return Pixels(path, "dSprites .npz" if sprites else NPZ, (records,), classes, numbers)


def _header(path: Path, member: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Of a .npy member: its shape, whether its first axis is the fastest, its type, and where its numbers begin."""
    stream = Member(path, member)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        return shape, fortran, dtype, stream.tell()
    finally:
        stream.close()


def idx_files(folder: Path) -> list[Path]:
    """The IDX files of images in a folder, those of a test part last."""
    found = [path for path in sorted(folder.iterdir()) if IDX_NAME.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=_is_test)


def open_idx(path: Path) -> Pixels:
    """MNIST's layout: images with their labels beside them, and t10k-… or test-… as the test part of train-….

    ``path`` is the folder, or the file of the images to train on. Raises UserError, in one line.
    """
    if path.is_dir():
        files = idx_files(path)
        train = [file for file in files if not _is_test(file)] or files
        if len({file.name.removesuffix(".gz") for file in train}) > 1:
            raise UserError(
                f"data: {path} holds more than one set of images ({', '.join(file.name for file in train)}); "
                "name the file of the one to train on"
            )
        images = train[0]
    else:
        images = path
    test = None if _is_test(images) else next(filter(_is_test, idx_files(images.parent)), None)
    records, labels = _idx_part(images)
    if test is None:
        numbers, classes = (None, None) if labels is None else numbered(labels)
        return Pixels(path, "IDX files", (records,), classes, numbers)
    test_records, test_labels = _idx_part(test)
    if labels is None or test_labels is None:
        return Pixels(path, "IDX files", (records,), test=Pixels(test, "IDX files", (test_records,)))
    numbers, classes = numbered(np.concatenate([labels, test_labels]))
    part = Pixels(test, "IDX files", (test_records,), classes, numbers[len(labels) :])
    return Pixels(path, "IDX files", (records,), classes, numbers[: len(labels)], part)


def _is_test(path: Path) -> bool:
    match = IDX_NAME.fullmatch(path.name)
    return match is not None and match["part"] in ("t10k", "test")


def _idx_part(path: Path) -> tuple[Records, np.ndarray | None]:
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(16)
    except DAMAGED as error:
        raise damaged(path, error) from None
    if len(head) < 16 or head[:4] != b"\0\0\x08\x03":
        raise UserError(f"data: {path} is not an IDX file of images (it begins with {head[:4].hex() or 'nothing'})")
    count, height, width = struct.unpack(">3I", head[4:])
    if not packed and path.stat().st_size != 16 + count * height * width:
        raise UserError(f"data: {path} has {path.stat().st_size} bytes, not those of {count} x {height} x {width}")
    records = Records(path, count, (height, width), (0, 1), 16, packing="gzip" if packed else "none")
    beside = _labels_of(path)
    if beside is None:
        return records, None
    try:
        labels = idx.decode(idx.read_bytes(beside), str(beside))
    except OSError as error:
        raise damaged(beside, error) from None
    except ValueError as error:
        raise UserError(f"data: {error}") from None
    if labels.shape != (count,):
        raise UserError(f"data: {beside} has {len(labels)} labels for the {count} images of {path.name}")
    return records, labels


def _labels_of(images: Path) -> Path | None:
    match = IDX_NAME.fullmatch(images.name)
    if match is None:
        return None
    name = f"{match['part']}{match['dash']}labels{match['dot']}idx1-ubyte"
    return next((file for file in (images.with_name(name), images.with_name(f"{name}.gz")) if file.is_file()), None)


def cifar_folder(path: Path) -> Path | None:
    """The folder of CIFAR's binary files that a path is or holds. ValueError for the version that is pickled."""
    for folder in (path, *(path / name for name in CIFAR_FOLDERS)):
        if any(_is_cifar_file(file.name) for file in folder.glob("*.bin")):
            return folder
    pickles = [path] if path.name in CIFAR_PICKLES else [path / name for name in CIFAR_PICKLES]
    if any(folder.is_dir() for folder in pickles) or (path / "data_batch_1").is_file():
        raise UserError(cifar_is_pickled(path))
    return None


def cifar_is_pickled(path: Path) -> str:
    """The one line for CIFAR's python version."""
    size = 100 if "100" in path.name else 10
    return (
        f"data: {path} holds CIFAR's python version, which is pickled and never read; "
        f"fetch the binary version, cifar-{size}-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _is_cifar_file(name: str) -> bool:
    return re.fullmatch(r"(data_batch_\d+|test_batch|train|test)\.bin", name) is not None


def open_cifar(path: Path, say: Say) -> Pixels:
    """CIFAR-10's or CIFAR-100's binary files: a folder, or one of the files. CIFAR-100's classes are the fine ones."""
    folder, only = (path.parent, path) if path.is_file() else (cifar_folder(path), None)
    assert folder is not None
    batches = sorted(folder.glob("data_batch_*.bin"), key=lambda file: (len(file.name), file.name))
    hundred = only.name in ("train.bin", "test.bin") if only else not batches and (folder / "train.bin").is_file()
    lead = 2 if hundred else 1  # CIFAR-100: the coarse label, then the fine one
    test = folder / ("test.bin" if hundred else "test_batch.bin")
    train = [only] if only else [folder / "train.bin"] if hundred else batches or [test]
    kind = f"CIFAR-{100 if hundred else 10} binary"
    if only is None and not hundred and batches and len(batches) < 5:
        say(f"data: {len(batches)} of CIFAR-10's five files data_batch_….bin are in {folder}")
    names = _class_names(folder / ("fine_label_names.txt" if hundred else "batches.meta.txt"), 100 if hundred else 10)
    records, labels = _cifar_parts(train, lead, len(names))
    part = None
    if test.is_file() and test not in train:
        test_records, test_labels = _cifar_parts([test], lead, len(names))
        part = Pixels(test, kind, test_records, names, test_labels)
    return Pixels(path, kind, records, names, labels, part)


def _class_names(path: Path, count: int) -> list[str]:
    names = path.read_text(errors="replace").split() if path.is_file() else []
    return names if len(names) == count else [str(number) for number in range(count)]


def _cifar_parts(files: Sequence[Path], lead: int, classes: int) -> tuple[tuple[Records, ...], np.ndarray]:
    parts, labels = [], []
    size = lead + CIFAR_PIXELS
    for file in files:
        length = file.stat().st_size
        if not length or length % size:
            raise UserError(
                f"data: {file} has {length} bytes, which are no whole number of CIFAR-{100 if lead == 2 else 10}'s "
                f"images of {size} bytes; fetch it again"
            )
        mine = np.memmap(file, np.uint8, "r", shape=(length // size, size))[:, lead - 1].astype(np.int64)
        if mine.max() >= classes:
            raise UserError(f"data: {file} has the label {mine.max()}, and there are {classes} classes")
        parts.append(Records(file, len(mine), (3, CIFAR_SIDE, CIFAR_SIDE), (1, 2, 0), lead=lead))
        labels.append(mine)
    return tuple(parts), np.concatenate(labels)
