"""Every published layout, whole and in ranges; presets; bad files. Run: pytest tests/data/test_formats.py"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import re
import shlex
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image

from infogan_ray import UserError
from infogan_ray.cli.main import DONE, main
from infogan_ray.cli.train import train_config
from infogan_ray.data import idx
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.formats import recognise
from infogan_ray.data.formats.collection import Collection, EncodedImages, Item, RawImages
from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.formats.records import Records
from infogan_ray.data.hold_out import STRATIFIED, held_out
from infogan_ray.data.image_files import Broken
from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.inspection import inspect
from infogan_ray.data.preparation.shard_source import open_source
from infogan_ray.training.loop import train
from infogan_ray.training.train_state import TrainState
from tests import layouts
from tests.layouts import COUNT, MAKERS, TEST_COUNT, PublishedFiles, pixels, png


def quiet(line: str) -> None: ...


def load(path: Path, **changes: object) -> ImageSet:
    return load_images(str(path), DataConfig(**changes), quiet)  # type: ignore[arg-type]


def read(collection: Collection, start: int, stop: int) -> dict[int, Item | Broken]:
    """Read a range of rows from a pickled copy, as another process does."""
    return dict(pickle.loads(pickle.dumps(collection)).read(start, stop))


def plain(image: bytes | np.ndarray) -> np.ndarray:
    return image if isinstance(image, np.ndarray) else np.array(Image.open(io.BytesIO(image)))


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_each_layout_is_read_in_ranges(make: Callable[[Path], PublishedFiles], tmp_path: Path) -> None:
    made = make(tmp_path)
    collection = open_collection(made.path, say=quiet)
    assert (collection.kind, collection.count, collection.classes) == (made.kind, COUNT, made.classes)
    items = read(collection, 0, 7) | read(collection, 7, COUNT)
    assert sorted(items) == list(range(COUNT))
    for row, item in items.items():
        assert isinstance(item, Item)
        assert np.array_equal(plain(item.image), made.images[row]), row
        assert item.label == (None if made.labels is None else made.labels[row])
    assert len({item.path for item in items.values() if isinstance(item, Item)}) == COUNT
    assert sorted(read(collection, 9, 12)) == [9, 10, 11]
    if made.test_images is None:
        assert collection.test is None
        return
    assert collection.test is not None and collection.test.classes == made.classes
    for row, item in read(collection.test, 0, len(made.test_images)).items():
        assert isinstance(item, Item) and np.array_equal(plain(item.image), made.test_images[row])
        assert made.test_labels is None or item.label == made.test_labels[row]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_each_layout_is_loaded(make: Callable[[Path], PublishedFiles], tmp_path: Path) -> None:
    made = make(tmp_path)
    size = made.images.shape[1]
    found = load(made.path, image_size=size, channels=3 if made.images.ndim == 4 else 1)
    rows = torch.arange(COUNT)
    if made.test_images is None and made.labels is not None:
        collection = open_collection(made.path, say=quiet)
        names = list(collection.files.names) if isinstance(collection, EncodedImages) else list(map(str, range(COUNT)))
        held = torch.from_numpy(held_out(STRATIFIED, names, np.array(made.labels)))
        made.test_images, made.test_labels = made.images[held], np.array(made.labels)[held].tolist()
        rows = rows[~held]
    assert torch.equal(found.images, as_tensor(made.images)[rows])
    assert (found.labels is None) == (made.labels is None) and (found.test_images is None) == (made.test_images is None)
    assert found.classes == (None if made.classes is None else tuple(made.classes))
    if made.labels is not None:
        assert found.labels is not None and found.labels.tolist() == np.array(made.labels)[rows].tolist()
    if made.test_images is not None:
        assert found.test_images is not None and torch.equal(found.test_images, as_tensor(made.test_images))
    if made.test_labels is not None:
        assert found.test_labels is not None and found.test_labels.tolist() == made.test_labels


def test_arrays_keep_their_size_or_are_resized(tmp_path: Path) -> None:
    made = layouts.svhn(tmp_path)
    assert load(made.path).images.shape == (COUNT, 3, 32, 32)
    found = load(made.path, image_size=16, channels=1)
    assert found.images.shape == (COUNT, 1, 16, 16) and found.test_images is not None
    assert found.test_images.shape == (TEST_COUNT, 1, 16, 16)
    single = load(tmp_path / "test_32x32.mat")  # a single file has no test split
    assert single.test_images is None and len(single.images) == TEST_COUNT


def test_a_range_of_a_large_array_is_read_over_many_chunks(tmp_path: Path) -> None:
    many = pixels(2100, 4, 4)
    np.savez_compressed(tmp_path / "a.npz", images=many)
    (tmp_path / "b-images-idx3-ubyte").write_bytes(idx.encode(many))
    scipy.io.savemat(tmp_path / "c.mat", {"X": many[..., None].transpose(1, 2, 3, 0)}, do_compression=True)
    for name in ("a.npz", "b-images-idx3-ubyte", "c.mat"):
        collection = open_collection(tmp_path / name)
        found = [item.image for _, item in collection.read(1000, 2095) if isinstance(item, Item)]
        assert np.array_equal(np.stack(found).squeeze(), many[1000:2095]), name


def test_an_idx_file_finds_its_test_split_in_the_same_folder(tmp_path: Path) -> None:
    made = layouts.idx_files(tmp_path)
    assert made.test_images is not None
    for path in (tmp_path, tmp_path / "train-images-idx3-ubyte.gz"):
        found = load(path)
        assert found.test_images is not None and torch.equal(found.test_images, as_tensor(made.test_images))
    (tmp_path / "MNIST").mkdir()
    raw = tmp_path / "MNIST" / "raw"  # torchvision's layout
    raw.mkdir()
    for file in tmp_path.glob("*.gz"):
        file.rename(raw / file.name)
    assert torch.equal(load(tmp_path / "MNIST").images, found.images)


def test_celeba_is_cropped_and_has_its_own_test_split(tmp_path: Path) -> None:
    base = layouts.celeba(tmp_path)
    messages: list[str] = []
    found = load_images(str(tmp_path), DataConfig(image_size=32), messages.append)
    assert found.images.shape == (COUNT, 3, 32, 32) and found.labels is None and found.test_images is not None
    assert len(found.test_images) == TEST_COUNT and not any("not in" in line for line in messages)
    assert any("cropped to the middle 148x148" in line for line in messages)
    for row in range(COUNT):  # no pixel of the black border, except for JPEG errors at the edge
        wanted = torch.tensor([8 * row, 120, 240 - 8 * row]).view(3, 1, 1)
        assert (found.images[row] - wanted.float()).abs()[:, 1:-1, 1:-1].max() < 8
    collection = open_collection(base)
    item = read(collection, 3, 4)[3]
    assert collection.kind == "CelebA folder" and isinstance(item, Item)
    with Image.open(base / "img_align_celeba" / "000004.jpg") as image:
        assert np.array_equal(plain(item.image), np.array(image.crop((15, 35, 163, 183))))


def test_celeba_labels_are_one_attribute(tmp_path: Path) -> None:
    base = layouts.celeba(tmp_path)
    collection = open_collection(base, f"{base}/list_attr_celeba.txt:Smiling", quiet)
    assert collection.classes == ["not Smiling", "Smiling"] and collection.labels is not None
    assert collection.labels.tolist() == [int(row % 3 > 0) for row in range(COUNT)]
    found = load(base, image_size=16, labels=f"{base}/list_attr_celeba.txt:Young")
    assert found.test_labels is not None and found.test_labels.tolist() == [1, 0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="has no attribute 'Grumpy'; it has Smiling, Young"):
        load(base, image_size=16, labels=f"{base}/list_attr_celeba.txt:Grumpy")
    csv = tmp_path / "labels.csv"
    names = [f"{row + 1:06}.jpg" for row in range(COUNT + TEST_COUNT)]
    csv.write_text("file,label\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(names)))
    found = load(base, image_size=16, labels=str(csv))
    assert found.labels is not None and found.labels.tolist() == [row % 2 for row in range(COUNT)]
    assert found.test_labels is not None and found.test_labels.tolist() == [0, 1] * 3


def test_celeba_is_read_from_its_zip_and_without_lists(tmp_path: Path) -> None:
    import shutil

    base = layouts.celeba(tmp_path)
    whole = load(base, image_size=16)
    shutil.make_archive(str(base / "img_align_celeba"), "zip", base, "img_align_celeba")
    shutil.rmtree(base / "img_align_celeba")
    packed = load(base, image_size=16)
    assert torch.equal(packed.images, whole.images) and packed.test_images is not None
    (base / "list_eval_partition.txt").unlink()
    assert len(load(base, image_size=16).images) == COUNT + TEST_COUNT


def test_celeba_in_kaggles_layout_gives_the_same_images(tmp_path: Path) -> None:
    base = layouts.celeba(tmp_path)
    whole = load(base, image_size=16, labels=f"{base}/list_attr_celeba.txt:Young")
    (base / "img_align_celeba").rename(base / "inner")
    (base / "img_align_celeba").mkdir()
    (base / "inner").rename(base / "img_align_celeba" / "img_align_celeba")
    for name, skipped, header in (
        ("list_eval_partition", 0, "image_id,partition"),
        ("list_attr_celeba", 2, "image_id,Smiling,Young"),
    ):
        rows = (base / f"{name}.txt").read_text().splitlines()[skipped:]
        (base / f"{name}.csv").write_text("\n".join([header, *(",".join(row.split()) for row in rows)]))
        (base / f"{name}.txt").unlink()
    found = load(base, image_size=16, labels=f"{base}/list_attr_celeba.csv:Young")
    assert torch.equal(found.images, whole.images) and found.labels is not None and whole.labels is not None
    assert torch.equal(found.labels, whole.labels) and found.labels.unique().tolist() == [0, 1]
    assert found.test_images is not None and len(found.test_images) == TEST_COUNT
    with pytest.raises(ValueError, match="has no attribute 'image_id'; it has Smiling, Young"):
        load(base, image_size=16, labels=f"{base}/list_attr_celeba.csv:image_id")


def test_broken_images_count_against_max_bad_in_tables_and_tars(tmp_path: Path) -> None:
    images = pixels(20, 28, 28, 3)
    contents = [png(image) for image in images]
    contents[7] = contents[7][:100]
    structs: list[dict[str, object]] = [{"bytes": content, "path": None} for content in contents]
    structs[9] = {"bytes": None, "path": "elsewhere.png"}
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": structs, "label": [row // 2 for row in range(20)]}), table)
    with pytest.raises(ValueError, match="a.parquet/7 is cut off.*a.parquet/9 has only the path 'elsewhere.png'"):
        load(table, image_size=28)
    found = load(table, image_size=28, max_bad=0.1)
    assert found.labels is not None and found.test_labels is not None
    kept = [row for row in range(20) if row not in (7, 9)]
    assert sorted(found.labels.tolist() + found.test_labels.tolist()) == [row // 2 for row in kept]
    items = read(open_collection(table), 5, 12)
    # Row 7 fails only when it is decoded.
    assert [row for row, item in items.items() if isinstance(item, Broken)] == [9]
    files = [(f"{row}.{end}", content) for row in range(20) for end, content in (("png", contents[row]), ("cls", b"1"))]
    with pytest.raises(ValueError, match=r"1 broken file of 20 .*\n?.*7.png is cut off"):
        load(layouts.tar(tmp_path / "a.tar", files), image_size=28)


def test_tables_with_the_same_name_in_several_folders_keep_their_labels(tmp_path: Path) -> None:
    """Subsets of a dataset on the Hub have this layout. A broken image of one must not shift another."""
    for number, part in enumerate(("a", "b")):
        contents = [png(np.full((28, 28), 100 * number + row, np.uint8)) for row in range(20)]
        if part == "a":
            contents[4] = contents[4][:40]
        (tmp_path / part).mkdir()
        rows = {"image": contents, "label": [number] * 20}
        pq.write_table(pa.table(rows), tmp_path / part / "0000.parquet")
    found = load(tmp_path, image_size=28, max_bad=0.1)
    assert found.labels is not None and found.test_labels is not None and found.test_images is not None
    images, labels = torch.cat([found.images, found.test_images]), torch.cat([found.labels, found.test_labels])
    assert len(images) == len(labels) == 39
    assert torch.equal(labels, (images.float().mean((1, 2, 3)) >= 100).long())


def test_a_missing_label_drops_all_labels(tmp_path: Path) -> None:
    files = [(f"{row}.png", png(image)) for row, image in enumerate(pixels(20, 28, 28))]
    messages: list[str] = []
    path = layouts.tar(tmp_path / "a.tar", [*files, ("3.cls", b"1")])
    assert open_collection(path, say=messages.append).classes is None
    assert any("19 of 20 samples" in line for line in messages)
    # `datasets` marks hidden labels as -1.
    rows = {"image": [content for _, content in files], "label": [0] * 19 + [-1]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert open_collection(tmp_path / "a.parquet", say=messages.append).classes is None
    assert messages[-1].endswith("have no label; no labels are used")


def test_linked_samples_of_a_tar_have_their_labels(tmp_path: Path) -> None:
    images = pixels(2, 8, 8)
    with tarfile.open(layouts.tar(tmp_path / "a.tar", [("0.png", png(images[0])), ("0.cls", b"7")]), "a") as archive:
        for name, target, kind in (
            ("1.png", "0.png", tarfile.LNKTYPE), ("1.cls", "0.cls", tarfile.LNKTYPE),
            ("2.png", "1.png", tarfile.SYMTYPE), ("2.cls", "1.cls", tarfile.SYMTYPE),
            ("3.cls", "/etc/hostname", tarfile.SYMTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    collection = open_collection(tmp_path / "a.tar")
    assert (collection.kind, collection.count, collection.classes) == ("WebDataset tar", 3, ["7"])
    assert all(isinstance(item, Item) and item.label == 0 for item in read(collection, 0, 3).values())


def test_captions_and_tables_beside_class_folders_change_nothing(tmp_path: Path) -> None:
    made = layouts.folder(tmp_path)
    pq.write_table(pa.table({"file_name": ["a"], "text": ["x"]}), tmp_path / "metadata.parquet")
    assert open_collection(tmp_path).classes == made.classes
    files = [(f"{kind}/{row}.{end}", content) for kind in ("a", "b") for row in range(9)
             for end, content in (("png", png(pixels(1, 8, 8)[0])), ("json", b'{"caption": "x"}'))]  # fmt: skip
    assert open_collection(layouts.tar(tmp_path / "x.tar", files)).classes == ["a", "b"]


PRESETS = [("--preset svhn", layouts.svhn), ("--preset celeba", layouts.celeba),
           ("--preset chairs", layouts.rendered_chairs), ("--preset faces", layouts.folder)]  # fmt: skip
PHOTOS = [(f"--preset photos {command}", make) for (command, make) in (
    ("--codes 'noise=124 cat=10x4 uniform=4'", layouts.svhn),
    ("--image-size 64 --codes 'noise=128 cat=10x10'", layouts.celeba),
)]  # fmt: skip


@pytest.mark.parametrize(("command", "make"), PRESETS + PHOTOS, ids=[command for command, _ in PRESETS + PHOTOS])
def test_each_preset_trains_on_its_layout(command: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    config = train_config([*shlex.split(command), "--data", str(tmp_path / "data"), "--steps", "2"]).override(
        {"batch_size": 8, "precision": "fp32", "network": {"width": 8}}, "test"
    )
    images = load_images(str(config.data), config.data_config, quiet)
    assert (images.image_size, images.channels) == (config.image_size or 32, config.channels or 3)
    state = TrainState(config, images.image_size, images.channels)
    before = state.generator.layers[0].weight.detach().clone()
    feed = InMemoryFeed(images.images, config.batch_size, seed=0)
    seen = list(train(state, feed, steps=config.total_steps(len(images.images)), log_every=1, checkpoint_every=2))
    assert seen and state.step == 2 and not torch.equal(state.generator.layers[0].weight, before)


def test_the_documented_commands_are_accepted() -> None:
    table = (Path(__file__).parents[2] / "docs/datasets.md").read_text().split("## Published datasets")[1]
    commands = re.findall(r"\| `infogan train ([^`]+)` \|", table)
    assert len(commands) == 10
    for command in commands:
        config = train_config(shlex.split(command))
        assert config.total_steps(10_000) >= 5000 and config.data is not None


def cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def test_a_wrong_checksum_is_found_by_reading_to_the_end(tmp_path: Path) -> None:
    made = layouts.idx_files(tmp_path)
    flip(tmp_path / "train-images-idx3-ubyte.gz", -8)
    collection = open_collection(made.path, say=quiet)
    assert len(read(collection, 0, COUNT - 1)) == COUNT - 1
    with pytest.raises(UserError, match="is not a whole file"):
        read(collection, COUNT - 1, COUNT)


def flip(path: Path, place: int) -> Path:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    return path


def test_without_scipy_one_line_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.svhn(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)  # None makes the import fail
    with pytest.raises(UserError, match=r"needs scipy; install it with: pip install 'infogan-ray\[mat\]'$"):
        load(tmp_path)


def test_cells_and_structures_of_a_mat_file_are_never_loaded(tmp_path: Path) -> None:
    cells = np.empty(2, object)
    cells[:] = [np.zeros(3, np.uint8), "text"]
    content = {"X": pixels(4, 8, 8, 3).transpose(1, 2, 3, 0), "more": cells, "about": {"a": 1}}
    scipy.io.savemat(tmp_path / "a.mat", content)
    assert load(tmp_path / "a.mat").images.shape == (4, 3, 8, 8)
    scipy.io.savemat(tmp_path / "a.mat", {"X": cells})
    with pytest.raises(UserError, match="'X' in .* is cell"):
        load(tmp_path / "a.mat")


def test_the_documentation_names_every_format() -> None:
    text = (
        (Path(__file__).parents[2] / "docs/datasets.md").read_text().split("## Published datasets")[1].split("## ")[0]
    )
    output = {
        "celeba": "| CelebA |", "svhn": "| SVHN", "cifar": "| CIFAR-10, CIFAR-100 |", "idx": "| MNIST's variants |",
        "npz": "| your own arrays |", "chairs": "| 3D chairs", "parquet": "`.parquet`", "webdataset": "| WebDataset |",
        "image_folder": "any folder of face images", "pickled": "is pickled and refused",
    }  # fmt: skip
    assert [
        name for name in (each.__name__.rpartition(".")[2] for each in recognise.FORMATS) if name not in output
    ] == []
    assert [name for name, words in output.items() if words not in text] == []


def test_a_new_format_needs_one_module_and_one_list_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new format: a .raw file of consecutive images of 8 x 8 bytes."""

    def open_images(path: Path, labels: str | None, say: object) -> RawImages:
        return RawImages(path, "raw bytes", (Records(path, path.stat().st_size // 64, (8, 8), (0, 1)),))

    new = SimpleNamespace(matches=lambda path: path.suffix == ".raw", open_images=open_images)
    monkeypatch.setattr(recognise, "FORMATS", (new, *recognise.FORMATS))
    images = pixels(COUNT, 8, 8)
    (tmp_path / "a.raw").write_bytes(images.tobytes())
    assert torch.equal(load(tmp_path / "a.raw").images, as_tensor(images))
    assert inspect(tmp_path / "a.raw", DataConfig(), quiet).kind == "raw bytes"
    source = open_source(str(tmp_path / "a.raw"), DataConfig(), quiet)
    assert [image.tolist() for _, image in source.train.read([3])] == [images[3].tolist()]


def bad_files(root: Path) -> list[tuple[Path, str]]:
    """Files that cannot be read, and a part of the error message for each."""
    for name in ("mat", "mat_u", "mat_f", "cifar", "idx", "sprites", "table"):
        (root / name).mkdir()
    layouts.svhn(root / "mat")
    layouts.svhn_unpacked(root / "mat_u")
    layouts.svhn(root / "mat_f")
    layouts.cifar100(root / "cifar")
    layouts.idx_files(root / "idx")
    layouts.dsprites(root / "sprites")
    layouts.parquet_file(root / "table")
    scipy.io.savemat(root / "other.mat", {"A": np.zeros((3, 3))})
    scipy.io.savemat(root / "shape.mat", {"X": np.zeros((3, 3), np.uint8)})
    scipy.io.savemat(root / "labels.mat", {"X": np.zeros((4, 4, 3, 5), np.uint8), "y": np.full((5, 1), 11)})
    (root / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform".ljust(124) + b"\x00\x02IM" + bytes(500))
    (root / "cifar-10-batches-py").mkdir()
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (root / "cifar-10-batches-py" / name).write_bytes(b"\x80\x02}q")
    (root / "cifar-100-python").mkdir()
    (root / "cifar-100-python" / "train").write_bytes(b"\x80\x02}q")
    (root / "basel_face_renders.pth").write_bytes(b"\x80\x02}q")
    (root / "odd-images-idx3-ubyte").write_bytes(b"\0\0\x08\x01" + bytes(20))
    (root / "short-images-idx3-ubyte").write_bytes(idx.encode(pixels(3, 4, 4))[:-1])
    (root / "few-images-idx3-ubyte").write_bytes(idx.encode(pixels(3, 4, 4)))
    (root / "few-labels-idx1-ubyte").write_bytes(idx.encode(np.zeros(2, np.uint8)))
    (root / "none-images-idx3-ubyte").write_bytes(idx.encode(pixels(0, 4, 4)))
    (root / "big.bin").write_bytes(bytes(3000))
    (root / "wrong").mkdir()
    (root / "wrong" / "test_batch.bin").write_bytes(bytes([11]) + bytes(3072))
    np.savez(root / "no.npz", pictures=pixels(3, 4, 4))
    np.savez(root / "many.npz", images=pixels(3, 4, 4), labels=np.zeros(4, int))
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), root / "text.parquet")
    pq.write_table(pa.table({"left": [b"a"], "right": [b"b"]}), root / "two.parquet")
    features = b'{"info": {"features": {"label": {"names": ["x"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": [b"a"], "label": [1]}).replace_schema_metadata({b"huggingface": features})
    pq.write_table(table, root / "names.parquet")
    layouts.tar(root / "python.tar.gz", [("cifar-10-batches-py/data_batch_4", b"\x80\x02}q")])
    (root / "archive").mkdir()
    cut(layouts.cifar10_archive(root / "archive").path).rename(root / "cut.tar.gz")
    files = [("0.png", png(pixels(1, 4, 4)[0])), ("0.cls", b"1")]
    twice = layouts.tar(root / "twice.tar", [*files, ("0.json", b'{"label": 2}')])
    short = layouts.tar(root / "short.tar", [*files, ("1.png", bytes(30_000))])
    base = layouts.celeba(root / "faces")
    (base / "list_eval_partition.txt").write_text("000001.jpg train\n")
    return [
        (cut(root / "mat" / "train_32x32.mat"), "is not a whole file"),
        (cut(root / "mat_u" / "train_32x32.mat"), "is not a whole file"),
        (flip(root / "mat_f" / "train_32x32.mat", 4000), "is not a whole file"),
        (root / "other.mat", "has no array 'X' as SVHN's have (it has A)"),
        (root / "shape.mat", "'X' in"),
        (root / "labels.mat", "'y' in"),
        (root / "new.mat", "is a MATLAB 7.3 file (HDF5)"),
        (cut(root / "cifar" / "train.bin", 0.99), "not a whole number of CIFAR-100's images of 3074 bytes"),
        (root / "big.bin", "not a whole number of CIFAR-10's images of 3073 bytes"),
        (root / "wrong", "has the label 11, and there are 10 classes"),
        (root / "cifar-10-batches-py", "pickled and never read; fetch the binary version, cifar-10-binary.tar.gz"),
        (root / "cifar-10-batches-py" / "data_batch_1", "fetch the binary version, cifar-10-binary.tar.gz"),
        (root / "cifar-100-python", "fetch the binary version, cifar-100-binary.tar.gz"),
        (root / "basel_face_renders.pth", "is pickled, which is never read; save its images"),
        (cut(root / "idx" / "train-images-idx3-ubyte.gz"), "is not a whole file"),
        (root / "odd-images-idx3-ubyte", "is not an IDX file of images (it starts with 00000801)"),
        (root / "short-images-idx3-ubyte", "has 63 bytes, not 16 + 3 x 4 x 4"),
        (root / "few-images-idx3-ubyte", "has 2 labels for the 3 images"),
        (root / "none-images-idx3-ubyte", "there is no image in"),
        (cut(root / "sprites" / "dsprites.npz"), "is not a whole .npz file"),
        (root / "no.npz", "has no array 'images' (it has pictures)"),
        (root / "many.npz", "must be integers (3,) or (3, 1), texts, or one-hot rows"),
        (cut(root / "table" / "a.parquet"), "is not a whole .parquet file"),
        (
            root / "text.parquet",
            "has no column of images; it has text (string), label (int64); an image is",
        ),
        (root / "python.tar.gz", "fetch the binary version, cifar-10-binary.tar.gz"),
        (root / "cut.tar.gz", "is not a whole .tar file"),
        *((path, message) for path, message in bad_tables(root / "tables")),
        (root / "two.parquet", "has the image columns left, right"),
        (root / "names.parquet", "a label of"),
        (twice, "gives 0 the labels '1' and '2'"),
        (cut(short, 0.4), "is not a whole .tar file"),
        (base, "has the line '000001.jpg train'"),
    ]


def bad_tables(root: Path) -> list[tuple[Path, str]]:
    root.mkdir()
    one = png(pixels(1, 4, 4)[0])
    nested = {"image": [{"data": {"bytes": one, "and a long name": one}}], "boxes": [[[1.0, 2.0]]]}
    not_utf8 = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "lists": ({"image": [[1, 2, 3]]}, "it has image (list<element: int64>)"),
        "nested": (nested, "it has image (struct<data: struct<bytes: binary, and a long name: binary>>), boxes (list<"),
        "bytes": ({"image": [{"bytes": {"bytes": one}}]}, "it has image (struct<bytes: struct<bytes: binary>>)"),
        "null": ({"image": [None, None]}, "it has image (null)"),
        "many": ({f"pixel{number}": [0] for number in range(784)}, "pixel9 (int64) and 774 more"),
        "rows": ({"image": pa.array([], pa.binary())}, "there is no image in"),
        "outside": ({"image": ["/etc/passwd"]}, "outside.parquet/0 has only the path '/etc/passwd', which is outside"),
        "above": ({"image": ["../x.png"]}, "has only the path '../x.png', which is outside the table's folder"),
        "missing": ({"path": ["x.png"]}, "has only the path 'x.png', and there is no such file beside the table"),
        "large": ({"image": [[[1, 300]]]}, "has pixels from 1 to 300; they must be 0 to 255"),
        "ragged": ({"image": [[[1, 3], [1]]]}, "has rows of unequal length"),
        "channels": ({"image": [np.zeros((5, 4, 2), int).tolist()]}, "has the shape (5, 4, 2); valid are (H, W)"),
        "text": ({"image": [one], "label": not_utf8}, "has no readable column 'label' ('utf-8' codec"),
        "holes": ({"image": [[[1, None]]]}, "has pixels that are no whole numbers"),
    }
    for name, (columns, _) in cases.items():
        pq.write_table(pa.table(columns), root / f"{name}.parquet")
    (root / "empty.parquet").write_bytes(b"")
    (root / "empty.arrow").write_bytes(b"")
    equal = pa.Table.from_arrays([pa.array([one]), pa.array([1]), pa.array([2])], names=["image", "label", "label"])
    pq.write_table(equal, root / "equal.parquet")
    for name in ("cached", "cut", "chosen", "odd"):
        (root / name).mkdir()
    layouts.saved_to_disk(root / "cached")
    (root / "cached" / "train" / "state.json").unlink()
    layouts.saved_to_disk(root / "cut")
    cut(root / "cut" / "train" / "data-00000-of-00001.arrow")
    layouts.saved_to_disk(root / "chosen")
    (root / "chosen" / "train" / "state.json").write_text('{"_data_files": [], "_indices_data_files": ["i.arrow"]}')
    layouts.saved_to_disk(root / "odd")
    (root / "odd" / "train" / "state.json").write_text('{"_data_files": [1]}')
    return [
        *((root / f"{name}.parquet", message) for name, (_, message) in cases.items()),
        (root / "empty.parquet", "is not a whole .parquet file"),
        (root / "empty.arrow", "is not a whole Arrow file"),
        (root / "equal.parquet", "has 2 columns with the name 'label'; give each its own name"),
        (root / "cached" / "train", f"datasets.load_from_disk('{root}/cached/train').to_parquet('images.parquet')"),
        (root / "cut", "is not a whole Arrow file"),
        (root / "chosen", "is a selection of rows; write it as Parquet: datasets.load_from_disk("),
        (root / "odd", "does not name files; save the dataset again"),
    ]


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    for path, message in bad_files(tmp_path):
        with pytest.raises(ValueError) as refusal:
            load(path, image_size=16)
        assert message in str(refusal.value) and "\n" not in str(refusal.value), (path, str(refusal.value))
        try:
            items = [item for _, item in open_collection(path, say=quiet).read(0, 10**6)]
        except UserError as refused:
            assert message in str(refused), (path, str(refused))
        else:
            assert items and all(isinstance(item, Broken) for item in items), path


BINARY = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(png(np.zeros((8, 8), np.uint8))))]


@pytest.mark.parametrize("kind", BINARY, ids=str)
def test_every_type_of_bytes_is_read(kind: pa.DataType, tmp_path: Path) -> None:
    content = png(np.zeros((8, 8), np.uint8))
    plain, empty = pa.array([content, None], kind), pa.nulls(2, pa.string())
    struct = pa.StructArray.from_arrays([plain, empty], ["bytes", "path"])
    for column in (plain, struct, *([plain.dictionary_encode()] if kind == pa.binary() else [])):
        pq.write_table(pa.table({"image": column, "hash": pa.array([b"a", b"b"])}), tmp_path / "a.parquet")
        messages: list[str] = []
        items = read(open_collection(tmp_path / "a.parquet", say=messages.append), 0, 2)
        assert isinstance(items[0], Item) and items[0].image == content
        assert isinstance(items[1], Broken) and str(items[1]) == "is null in the table"
        assert messages == [f"data: {tmp_path}/a.parquet has the image columns image, hash; 'image' is used"]


def test_a_tensor_and_wide_numbers_are_pixels(tmp_path: Path) -> None:
    images = pixels(3, 4, 6)
    kind = pa.fixed_shape_tensor(pa.uint8(), [4, 6])
    tensor = pa.ExtensionArray.from_storage(kind, pa.array(images.reshape(3, -1).tolist(), pa.list_(pa.uint8(), 24)))
    for column in (tensor, pa.array(images.tolist())):
        pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
        for row, item in read(open_collection(tmp_path / "a.parquet"), 0, 3).items():
            assert isinstance(item, Item) and np.array_equal(plain(item.image), images[row])


def test_images_that_a_table_only_names_are_read_beside_it(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "0.png").write_bytes(content := png(pixels(1, 8, 8)[0]))
    (tmp_path / "1.png").write_bytes(content)
    structs = [{"path": "0.png"}, {"path": "part\\0.png"}, {"path": f"{tmp_path}/part/0.png"}, {"path": "../1.png"}]
    pq.write_table(pa.table({"picture": structs}), tmp_path / "part" / "a.parquet")
    found = read(open_collection(tmp_path / "part" / "a.parquet"), 0, 4)
    assert [isinstance(item, Item) for item in found.values()] == [True, False, True, False]
    assert open_collection(tmp_path).kind == "folder of images"


def test_damage_inside_an_arrow_file_breaks_only_its_own_images(tmp_path: Path) -> None:
    """An offset of the second batch points behind the end of its bytes."""
    table = pa.table({"image": [png(image) for image in pixels(8, 8, 8)]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    second = np.array([0, *np.cumsum([len(cell) for cell in table["image"].to_pylist()[4:]])], np.int32).tobytes()
    content = (tmp_path / "a.arrow").read_bytes()
    place = content.rindex(second)
    (tmp_path / "a.arrow").write_bytes(content[: place + 4] + b"\xff\xff\xff\x7f" + content[place + 8 :])
    items = read(open_collection(tmp_path / "a.arrow"), 0, 8)
    assert [isinstance(item, Item) for _, item in sorted(items.items())] == [True] * 4 + [False] * 4
    assert str(items[5]).startswith("is damaged in the table")


def test_cifars_archive_is_found_in_its_folder_and_names_its_images(tmp_path: Path) -> None:
    made = layouts.cifar10_archive(tmp_path)
    for path in (made.path, tmp_path):
        collection = open_collection(path, say=quiet)
        items = [*read(collection, 3, 5).values(), *read(collection.test, 0, 1).values()] if collection.test else []
        names = [
            item.path.removeprefix(f"{made.path}/cifar-10-batches-bin/") for item in items if isinstance(item, Item)
        ]
        assert names == ["data_batch_1.bin/3", "data_batch_2.bin/0", "test_batch.bin/0"]


def test_damage_inside_a_table_breaks_only_its_own_images(tmp_path: Path) -> None:
    made = layouts.parquet_file(tmp_path)
    content = bytearray(made.path.read_bytes())
    content[200:260] = bytes(60)
    made.path.write_bytes(content)
    items = read(open_collection(made.path, say=quiet), 0, COUNT)
    assert len(items) == COUNT


def test_encoded_layouts_require_an_image_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size is not set; WebDataset tar .* --image-size 32"):
        load(layouts.webdataset(tmp_path).path)


def arrays(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return pixels(count, 16, 16, 3, seed=seed)


def test_keras_arrays_have_a_test_part_and_common_classes(tmp_path: Path) -> None:
    labels, test_labels = np.array([5, 7] * (COUNT // 2))[:, None], np.array([7, 9, 9, 7, 5, 5])
    np.savez(
        tmp_path / "a.npz", x_train=arrays(), y_train=labels, x_test=arrays(TEST_COUNT, 1), y_test=test_labels,
        extra=np.zeros(3),
    )  # fmt: skip
    messages: list[str] = []
    found = load_images(str(tmp_path / "a.npz"), DataConfig(), messages.append)
    assert found.classes == ("5", "7", "9") and found.labels is not None and found.test_labels is not None
    assert found.labels.tolist() == [0, 1] * (COUNT // 2) and found.test_labels.tolist() == [1, 2, 2, 1, 0, 0]
    assert torch.equal(found.images, as_tensor(arrays())) and found.test_images is not None
    assert torch.equal(found.test_images, as_tensor(arrays(TEST_COUNT, 1)))
    assert f"data: {tmp_path}/a.npz: x_train, y_train, x_test, y_test; not used: extra" in messages


@pytest.mark.parametrize(
    ("labels", "wanted", "classes"),
    [
        (np.array(["dog", "ant"] * 10), [1, 0] * 10, ["ant", "dog"]),
        (np.array([b"10", b"9"] * 10), [1, 0] * 10, ["9", "10"]),
        (np.eye(3, dtype=np.float32)[[2, 0] * 10], [1, 0] * 10, ["0", "2"]),
        (np.array([1.0, 0.0] * 10), [1, 0] * 10, ["0", "1"]),
        (np.array([[True], [False]] * 10), [1, 0] * 10, ["False", "True"]),
        (np.array([0.5, 0.0] * 10), None, None),
        (np.zeros((19,), int), None, None),
        (np.zeros((20, 4, 4), int), None, None),
    ],
)
def test_unnamed_arrays_are_images_and_perhaps_labels(
    labels: np.ndarray, wanted: list[int] | None, classes: list[str] | None, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", arrays(20), labels)
    messages: list[str] = []
    found = open_collection(tmp_path / "a.npz", say=messages.append)
    assert (None if found.labels is None else found.labels.tolist()) == wanted and found.classes == classes
    assert any("not used: arr_1" in line for line in messages) == (wanted is None)
    assert any("such as 0.5, which are not classes" in line for line in messages) == (labels.flat[0] == 0.5)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.linspace(0, 1, 20 * 256).astype(np.float16), "0:1"), (np.linspace(-1, 1, 20 * 256), "-1:1"),
        (np.arange(20 * 256).astype(">u2") % 4096, "0:4095"), (np.arange(20 * 256, dtype=np.int64) - 9, "-9:5110"),
        (np.arange(20 * 256) % 2 == 0, None), (np.asfortranarray(np.arange(20 * 256, dtype=np.uint16)), "0:16383"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_arrays_of_any_numbers_have_one_range(
    values: np.ndarray, wanted: str | None, ending: str, tmp_path: Path
) -> None:
    values = values.reshape(20, 16, 16)
    if ending == "npy":
        np.save(tmp_path / "a.npy", np.asfortranarray(values))
    else:
        np.savez_compressed(tmp_path / "a.npz", images=values)
    found = load(tmp_path / f"a.{ending}")
    assert found.conversion.range_text == wanted
    low, high = (0, 1) if wanted is None else map(float, wanted.split(":"))
    scaled = ((values.astype(float) - low) * (255 / (high - low))).round().astype(np.uint8)
    assert torch.equal(found.images, torch.from_numpy(scaled)[:, None])


def test_a_test_part_has_the_range_of_the_training_part(tmp_path: Path) -> None:
    train = np.full((20, 16, 16), 1000, np.uint16)
    np.savez(tmp_path / "a.npz", x_train=train, x_test=np.array([500, 4000], np.uint16)[:, None, None] + train[:2] * 0)
    messages: list[str] = []
    found = load_images(str(tmp_path / "a.npz"), DataConfig(), messages.append)
    assert found.test_images is not None and found.test_images[:, 0, 0, 0].tolist() == [125, 255]
    assert any("1 image of" in line and "clipped" in line for line in messages)


def test_arrays_that_are_not_square_are_cropped_unless_fit_is_set(tmp_path: Path) -> None:
    images = pixels(20, 16, 24, 3)
    np.save(tmp_path / "a.npy", images)
    tensor = as_tensor(images)
    assert torch.equal(load(tmp_path / "a.npy").images, tensor[..., 4:20])
    assert load(tmp_path / "a.npy", fit="pad").images.shape == (20, 3, 24, 24)
    with pytest.raises(UserError, match="the images are 16x24; to squeeze them, set image_size"):
        load(tmp_path / "a.npy", fit="squeeze")
    squeezed = torch.nn.functional.interpolate(tensor.float(), (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(load(tmp_path / "a.npy", fit="squeeze", image_size=16).images, squeezed.round().byte())


def test_arrays_that_cannot_be_images_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    nan = np.zeros((20, 16, 16), np.float32)
    nan[7, 3, 3] = np.nan
    for array, message in (
        (np.array([{}] * 3, object), "holds pickled objects, which are never read"),
        (np.zeros((20, 16, 16), np.complex64), "must be numbers (N, H, W)"),
        (np.zeros((20, 16, 16, 5), np.uint8), "with 5 channels; valid are 1 (grey)"),
        (np.zeros((40, 30, 3), np.uint8), "looks like one image (H, W, C)"),
        (np.zeros((20, 3, 16, 16), np.uint8), "looks like (N, C, H, W)"),
        (np.zeros((20, 0, 16), np.uint8), "have no pixels"),
        (np.zeros((0, 16, 16), np.uint8), "there is no image in"),
        (nan, "image 7 of"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(UserError) as error:
            load(path)
        assert message in str(error.value) and "\n" not in str(error.value), str(error.value)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"is not a whole \.npy file"):
        load(path)
    np.savez(tmp_path / "b.npz", images=arrays(20), labels=np.array([{}] * 20, object))
    with pytest.raises(UserError, match="holds pickled objects"):
        load(tmp_path / "b.npz")


def test_a_plain_tar_with_other_files_is_still_plain(tmp_path: Path) -> None:
    path = layouts.tar(tmp_path / "a.tar", [("b/1.png", png(pixels(1, 8, 8)[0])), ("b/2.json", b"{}")])
    assert open_collection(path).kind == ".tar of images"
    with tarfile.open(path) as archive:
        assert len(archive.getmembers()) == 2


def test_an_unreadable_path_lists_the_valid_sources(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"x")
    for refuse in (lambda: load(tmp_path / "a.h5"), lambda: open_collection(tmp_path / "a.h5")):
        with pytest.raises(ValueError, match=r"cannot be read; valid are a folder, .zip or .tar of images, an .npz"):
            refuse()
    with pytest.raises(ValueError, match="which does not exist"):
        open_collection(tmp_path / "nowhere")
    assert dataclasses.is_dataclass(Item)


def test_inspect_names_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("svhn", "faces"):
        (tmp_path / name).mkdir()
    layouts.svhn(tmp_path / "svhn")
    sheet = tmp_path / "sheet.png"
    assert main(["data", "inspect", str(tmp_path / "svhn"), "-o", str(sheet)]) == DONE
    text = capsys.readouterr().out
    for words in ("SVHN .mat", "test part", "32 x 32 x 3", "10: 0 2, 1 2"):
        assert words in text, words
    command = shlex.split(text.splitlines()[-1].removeprefix("next: "))
    config = train_config(command[2:])
    assert (config.image_size, config.channels, config.batch_size) == (32, 3, 8)
    with Image.open(sheet) as image:
        assert image.width > 8 * 32
    base = layouts.celeba(tmp_path / "faces")
    labels = f"{base}/list_attr_celeba.txt:Smiling"
    assert main(["data", "inspect", str(base), "--json", "--labels", labels, "-o", str(sheet)]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "CelebA folder" and found["images"] == COUNT
    assert found["conversions"] == {"cropped to the middle 148x148": COUNT, "reduced to 64x64": COUNT}
    assert found["classes"] == {"not Smiling": 7, "Smiling": 13}


def test_encode_names_the_files_of_a_layout(finished: Path, tmp_path: Path) -> None:
    base = layouts.celeba(tmp_path)
    output = tmp_path / "codes.parquet"
    assert main(["encode", str(finished / "model"), str(base), "-o", str(output)]) == DONE
    names = pq.read_table(output).column("image").to_pylist()
    assert names == [f"{base}/img_align_celeba/{row + 1:06}.jpg" for row in range(COUNT + TEST_COUNT)]


def test_dsprites_with_other_pixels_than_0_and_1_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sprites.npz"
    classes = np.zeros((20, 6), np.int64)
    np.savez(path, imgs=np.full((20, 64, 64), 200, np.uint8), latents_classes=classes)
    with pytest.raises(ValueError, match="has pixels of 200; dSprites' are 0 and 1"):
        load(path, image_size=64)
