"""Any folder, .zip or .tar of image files, or one image. Several folders of images are parts, or classes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from infogan_ray.data.class_folders import class_folders, first_folders, left_out, some
from infogan_ray.data.formats.collection import EncodedImages
from infogan_ray.data.formats.parts import divide, part_at_end, part_of, parts_of
from infogan_ray.data.image_files import TARS, ImageFiles, Say, is_listable, list_image_files
from infogan_ray.data.labels import as_classes, class_names, to_numbers


@dataclass(frozen=True)
class _Part:
    """Names of images, and the path of each below the folder of its part."""

    names: list[str]
    below: list[str]


def matches(path: Path) -> bool:
    """Whether a path is a folder, an archive or an image."""
    return is_listable(path)


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open the images, with classes from a CSV or JSON file or the folders. Folders named train, test, ... are parts.

    Calls ``say`` with the number of images that are left out, and why. Raises UserError if there are no images.
    """
    files = list_image_files(path)
    train, test = _parts(files, say)
    if labels is not None:
        values = class_names(files, [*train.names, *test.names], labels, say)
        return _collection(files, train.names, test.names, as_classes(values, f"the labels in {labels}", say))
    folders = class_folders(train.below, path, say, shown=train.names)
    if folders is None:
        return _collection(files, train.names, test.names, None)
    names, classes = _in_classes(train, folders.of)
    test_names, test_classes = _in_classes(test, folders.of_others(test.below))
    if lost := sorted({*test.names} - {*test_names}):
        say(left_out(lost, "in no class folder that the training part has"))
    return _collection(files, names, test_names, [*classes, *test_classes])


def _collection(
    files: ImageFiles, names: list[str], test_names: list[str], classes: list[str] | None
) -> EncodedImages:  # fmt: skip
    """The images ``names``, with the test split ``test_names``. ``classes``: of all of these images, in order."""
    numbers, ordered = (None, None) if classes is None else to_numbers(classes)

    def split(kept: list[str], start: int, test: EncodedImages | None) -> EncodedImages:
        labels = None if numbers is None else numbers[start : start + len(kept)].numpy()
        return EncodedImages(dataclasses.replace(files, names=tuple(kept)), _kind(files.path), ordered, labels, test)

    return split(names, 0, split(test_names, len(names), None) if test_names else None)


def _parts(files: ImageFiles, say: Say) -> tuple[_Part, _Part]:
    """The training images and the test images, if the first folders are named so. Else all are for training."""
    whole = _Part(list(files.names), list(files.names))
    nothing = _Part([], [])
    folders = first_folders(files.names)
    if folders is None:
        return whole, nothing
    part_of_folder = parts_of(folders.names)
    if len({*part_of_folder.values()}) < 2:
        return _parts_in_classes(files, folders.depth + 1, say) or (whole, nothing)
    train, test = (set(kept) for kept in divide([*part_of_folder], [*part_of_folder.values()], files.path, say))
    pairs = list(zip(files.names, folders.of, strict=True))
    if others := [name for name, folder in pairs if folder not in part_of_folder]:
        say(left_out(others, f"beside the parts {some([*part_of_folder])}"))
    found = ([name for name, folder in pairs if folder in kept] for kept in (train, test))
    train_part, test_part = (_Part(names, _below(names, folders.depth + 1)) for names in found)
    return train_part, test_part


def _parts_in_classes(files: ImageFiles, depth: int, say: Say) -> tuple[_Part, _Part] | None:
    """The parts if each class has folders train and test, at this depth. None if it is not so for all images."""
    folders = [name.split("/") for name in files.names]
    found = [part_of(names[depth]) if len(names) > depth + 1 else None for names in folders]
    if None in found or len({*found}) < 2:
        return None
    below = {
        name: "/".join(names[:depth] + names[depth + 1 :]) for name, names in zip(files.names, folders, strict=True)
    }
    train, test = divide(list(files.names), found, files.path, say)
    return _Part(train, [below[name] for name in train]), _Part(test, [below[name] for name in test])


def _below(names: list[str], depth: int) -> list[str]:
    """The paths below a part's folder. The name of a part that repeats, as in test_set/test_set, is left out too."""
    below = [name.split("/", depth)[depth] for name in names]
    while len(firsts := {name.split("/")[0] for name in below}) == 1 and "/" in below[0]:
        (first,) = firsts
        if not (part_of(first) or part_at_end(first)[1]):
            break
        below = [name.partition("/")[2] for name in below]
    return below


def _in_classes(part: _Part, folder_of: list[str | None]) -> tuple[list[str], list[str]]:
    """The images that have a class, and the class of each."""
    kept = [(name, folder) for name, folder in zip(part.names, folder_of, strict=True) if folder is not None]
    return [name for name, _ in kept], [folder for _, folder in kept]


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder of images"
    endings = (".zip", *TARS)
    return next((f"{ending} of images" for ending in endings if path.name.lower().endswith(ending)), "one image")
