"""Tiny files in each published layout, with the images and labels that must be read from them."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import scipy.io
from PIL import Image

from infogan_ray.data import idx

COUNT, TEST_COUNT = 20, 6  # images of the training split and of the test split


@dataclass
class PublishedFiles:
    """A path, its pixels (N, H, W[, C]) and labels, and the same of its test split."""

    path: Path
    kind: str
    images: np.ndarray
    labels: list[int] | None
    classes: list[str] | None = None
    test_images: np.ndarray | None = None
    test_labels: list[int] | None = field(default=None)


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def numbers(count: int, kinds: int, seed: int = 0) -> list[int]:
    """Random labels in which each kind occurs."""
    return np.random.default_rng(seed).permutation(np.arange(count) % kinds).tolist()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def svhn(root: Path, packed: bool = True) -> PublishedFiles:
    for part, count, seed in (("train", COUNT, 0), ("test", TEST_COUNT, 1)):
        labels = np.array(numbers(count, 10, seed), np.uint8)
        content = {
            "X": pixels(count, 32, 32, 3, seed=seed).transpose(1, 2, 3, 0),
            "y": np.where(labels == 0, 10, labels)[:, None].astype(np.float64 if packed else np.uint8),
        }
        scipy.io.savemat(root / f"{part}_32x32.mat", content, do_compression=packed)
    digits = [str(digit) for digit in range(10)]
    return PublishedFiles(
        root, "SVHN .mat", pixels(COUNT, 32, 32, 3), numbers(COUNT, 10), digits, pixels(TEST_COUNT, 32, 32, 3, seed=1),
        numbers(TEST_COUNT, 10, 1),
    )  # fmt: skip


def svhn_unpacked(root: Path) -> PublishedFiles:
    return svhn(root, packed=False)


def cifar10(root: Path) -> PublishedFiles:
    images, labels = pixels(COUNT, 32, 32, 3), numbers(COUNT, 10)
    test, test_labels = pixels(TEST_COUNT, 32, 32, 3, seed=1), numbers(TEST_COUNT, 10, 1)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(5):
        rows = range(4 * number, 4 * number + 4)
        content = b"".join(bytes([labels[row]]) + images[row].transpose(2, 0, 1).tobytes() for row in rows)
        (folder / f"data_batch_{number + 1}.bin").write_bytes(content)
    content = b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in zip(test_labels, test, strict=True)
    )
    (folder / "test_batch.bin").write_bytes(content)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    return PublishedFiles(root, "CIFAR-10 binary", images, labels, names, test, test_labels)


def cifar100(root: Path) -> PublishedFiles:
    images, labels = pixels(COUNT, 32, 32, 3), [5 * label for label in numbers(COUNT, 20)]
    content = b"".join(
        bytes([7, fine]) + image.transpose(2, 0, 1).tobytes() for fine, image in zip(labels, images, strict=True)
    )
    (root / "train.bin").write_bytes(content)
    (root / "test.bin").write_bytes(content)
    return PublishedFiles(root, "CIFAR-100 binary", images, labels, [str(n) for n in range(100)], images, labels)


def cifar10_archive(root: Path) -> PublishedFiles:
    made = cifar10(root)
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-bin", "cifar-10-batches-bin")
    shutil.rmtree(root / "cifar-10-batches-bin")
    return dataclasses.replace(made, path=root / "cifar-10-binary.tar.gz")


def cifar100_archive(root: Path) -> PublishedFiles:
    """Without compression."""
    made = cifar100(root)
    with tarfile.open(root / "plain.tar", "w") as archive:
        for name in ("test.bin", "train.bin"):
            archive.add(root / name, f"cifar-100-binary/{name}")
            (root / name).unlink()
    return dataclasses.replace(made, path=root / "plain.tar")


def idx_files(root: Path) -> PublishedFiles:
    images, labels = pixels(COUNT, 28, 28), numbers(COUNT, 10)
    test, test_labels = pixels(TEST_COUNT, 28, 28, seed=1), [9, 0, 1, 2, 3, 4]
    for name, array in (
        ("train-images-idx3", images), ("train-labels-idx1", np.array(labels, np.uint8)),
        ("t10k-images-idx3", test), ("t10k-labels-idx1", np.array(test_labels, np.uint8)),
    ):  # fmt: skip
        (root / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx.encode(array)))
    return PublishedFiles(root, "IDX files", images, labels, [str(n) for n in range(10)], test, test_labels)


def idx_file(root: Path) -> PublishedFiles:
    """One file of images without labels."""
    (root / "shoes-images-idx3-ubyte").write_bytes(idx.encode(pixels(COUNT, 28, 28)))
    return PublishedFiles(root / "shoes-images-idx3-ubyte", "IDX files", pixels(COUNT, 28, 28), None)


def npz(root: Path) -> PublishedFiles:
    labels = numbers(COUNT, 3)
    np.savez_compressed(root / "a.npz", images=pixels(COUNT, 32, 32, 3), labels=np.array([-1, 4, 7])[labels])
    return PublishedFiles(root / "a.npz", ".npz file", pixels(COUNT, 32, 32, 3), labels, ["-1", "4", "7"])


def npz_first_axis_fastest(root: Path) -> PublishedFiles:
    np.savez(root / "a.npz", images=np.asfortranarray(pixels(COUNT, 28, 28)))
    return PublishedFiles(root / "a.npz", ".npz file", pixels(COUNT, 28, 28), None)


def dsprites(root: Path) -> PublishedFiles:
    images = pixels(COUNT, 64, 64) & 1
    shapes = numbers(COUNT, 3)
    classes = np.zeros((COUNT, 6), np.int64)
    classes[:, 1], classes[:, 2] = shapes, 5
    np.savez_compressed(
        root / "dsprites.npz", metadata=np.array({"pickled": True}, dtype=object), imgs=images,
        latents_values=classes.astype(float), latents_classes=classes,
    )  # fmt: skip
    return PublishedFiles(root / "dsprites.npz", "dSprites .npz", images * 255, shapes, ["square", "ellipse", "heart"])


def parquet(root: Path) -> PublishedFiles:
    """Two files of three row groups each and a test split, as `datasets` writes them."""
    images, labels = pixels(COUNT, 28, 28, 3), numbers(COUNT, 2)
    test, test_labels = pixels(TEST_COUNT, 28, 28, 3, seed=1), numbers(TEST_COUNT, 2, 1)
    names = ["zebra", "ant"]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (root / "data").mkdir()
    for name, part_images, part_labels in (
        ("train-00000-of-00002", images[:9], labels[:9]), ("train-00001-of-00002", images[9:], labels[9:]),
        ("test-00000-of-00001", test, test_labels),
    ):  # fmt: skip
        structs = [{"bytes": png(image), "path": None} for image in part_images]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(structs, kind), "label": pa.array(part_labels, pa.int64())})
        path = root / "data" / f"{name}.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return PublishedFiles(root, "Parquet", images, labels, names, test, test_labels)


def parquet_file(root: Path) -> PublishedFiles:
    """Plain bytes and text labels in one file."""
    kinds = ["b", "a"]
    labels = numbers(COUNT, 2)
    images = pixels(COUNT, 28, 28)
    columns = {"png": [png(image) for image in images], "label": [kinds[1 - label] for label in labels]}
    pq.write_table(pa.table(columns), root / "a.parquet")
    return PublishedFiles(root / "a.parquet", "Parquet", images, labels, ["a", "b"])


def parquet_of_pixels(root: Path) -> PublishedFiles:
    """Images as `datasets` writes an Array3D: nested lists, channels first."""
    images = pixels(COUNT, 16, 16, 3)
    lists = pa.array(images.transpose(0, 3, 1, 2).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    pq.write_table(pa.table({"pixels": lists}), root / "a.parquet")
    return PublishedFiles(root / "a.parquet", "Parquet", images, None)


def parquet_of_paths(root: Path) -> PublishedFiles:
    images, labels = pixels(COUNT, 16, 16), numbers(COUNT, 2)
    (root / "files").mkdir()
    for row, image in enumerate(images):
        (root / "files" / f"{row}.png").write_bytes(png(image))
    columns = {"image": [f"files/{row}.png" for row in range(COUNT)], "label": labels}
    pq.write_table(pa.table(columns), root / "a.parquet")
    return PublishedFiles(root / "a.parquet", "Parquet", images, labels, ["0", "1"])


def saved_to_disk(root: Path) -> PublishedFiles:
    """`datasets.DatasetDict.save_to_disk`: Arrow streams of several batches, and a cached result beside them."""
    images, labels = pixels(COUNT, 16, 16, 3), numbers(COUNT, 2)
    test, test_labels = pixels(TEST_COUNT, 16, 16, 3, seed=1), numbers(TEST_COUNT, 2, 1)
    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, part_images, part_labels in (("train", images, labels), ("test", test, test_labels)):
        structs = [{"bytes": png(image), "path": None} for image in part_images]
        table = pa.table({"image": pa.array(structs, kind), "label": pa.array(part_labels, pa.int64())})
        table = table.replace_schema_metadata(metadata)
        folder, name = root / split, "data-00000-of-00001.arrow"
        folder.mkdir()
        (folder / "dataset_info.json").write_text("{}")
        state = {"_data_files": [{"filename": name}], "_fingerprint": "x", "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
        for file in (name, "cache-0123456789abcdef.arrow"):
            with pa.ipc.new_stream(str(folder / file), table.schema) as stream:
                stream.write_table(table, max_chunksize=4)
    return PublishedFiles(root, "Arrow", images, labels, ["zebra", "ant"], test, test_labels)


def feather(root: Path) -> PublishedFiles:
    images = pixels(COUNT, 16, 16)
    table = pa.table({"image": [png(image) for image in images]})
    pa.feather.write_feather(table, root / "a.feather", chunksize=6)
    return PublishedFiles(root / "a.feather", "Arrow", images, None)


def tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def webdataset(root: Path) -> PublishedFiles:
    images, labels = pixels(COUNT, 28, 28, 3), numbers(COUNT, 11)
    files = []
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        files += [(f"{row:06}.cls", str(label).encode()), (f"{row:06}.png", png(image))]
        files += [(f"{row:06}.txt", b"a caption")]
    kinds = [str(number) for number in range(11)]
    return PublishedFiles(tar(root / "000.tar", files), "WebDataset tar", images, labels, kinds)


def webdataset_shards(root: Path) -> PublishedFiles:
    """Labels in JSON, a second image in each sample, and a test split."""
    images, labels = pixels(COUNT, 28, 28, 3), numbers(COUNT, 2)
    test, test_labels = pixels(TEST_COUNT, 28, 28, 3, seed=1), numbers(TEST_COUNT, 2, 1)
    for name, part_images, part_labels in (
        ("train-000000.tar", images[:9], labels[:9]), ("train-000001.tar.gz", images[9:], labels[9:]),
        ("test-000000.tar", test, test_labels),
    ):  # fmt: skip
        files = []
        for row, (image, label) in enumerate(zip(part_images, part_labels, strict=True)):
            about = json.dumps({"label": ["cat", "dog"][label], "caption": "x"}).encode()
            files += [
                (f"./{row:06}.jpg.png", png(image)),
                (f"./{row:06}.json", about),
                (f"./{row:06}.seg.png", png(image // 2)),
            ]
        tar(root / name, files)
    return PublishedFiles(root, "WebDataset tars", images, labels, ["cat", "dog"], test, test_labels)


def rendered_chairs(root: Path) -> PublishedFiles:
    """Grey on white. The published dataset has 62 views of each chair."""
    images = []
    for chair in range(4):
        folder = root / "rendered_chairs" / f"{chair:032x}" / "renders"
        folder.mkdir(parents=True)
        for view in range(5):
            image = np.full((60, 60, 3), 255, np.uint8)
            image[10:50, 10:50] = pixels(1, 40, 40, 1, seed=5 * chair + view)[0]
            (folder / f"image_{view:03}_p020_t{view * 11:03}_r096.png").write_bytes(png(image))
            images.append(image)
    (root / "rendered_chairs" / "all_chair_names.mat").write_bytes(b"x")
    return PublishedFiles(root, "rendered chairs", np.stack(images), None)


def folder(root: Path) -> PublishedFiles:
    """Grey faces of two people."""
    images, labels = pixels(COUNT, 32, 32), sorted(numbers(COUNT, 2))
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / f"person{label}").mkdir(exist_ok=True)
        (root / f"person{label}" / f"{row:02}.png").write_bytes(png(image))
    return PublishedFiles(root, "folder of images", images, labels, ["person0", "person1"])


def plain_tar(root: Path) -> PublishedFiles:
    images = pixels(COUNT, 28, 28, 3)
    files = [(f"{row:02}.png", png(images[row])) for row in range(COUNT)]
    return PublishedFiles(tar(root / "a.tar", files), ".tar of images", images, None)


def celeba(root: Path) -> Path:
    """torchvision's folder: 26 pictures of 178 x 218, their attributes, and the last six as the test split."""
    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{row + 1:06}.jpg" for row in range(COUNT + TEST_COUNT)]
    for row, name in enumerate(names):
        image = np.zeros((218, 178, 3), np.uint8)
        image[35:183, 15:163] = (8 * row, 120, 240 - 8 * row)  # the middle 148 x 148
        Image.fromarray(image).save(base / "img_align_celeba" / name, quality=95)
    parts = [0] * (COUNT - 4) + [1] * 4 + [2] * TEST_COUNT
    (base / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    rows = [f"{name}  {1 if row % 3 else -1} {-1 if row % 2 else 1}\n" for row, name in enumerate(names)]
    (base / "list_attr_celeba.txt").write_text(f"{len(names)}\nSmiling Young \n" + "".join(rows))
    return base


MAKERS: list[Callable[[Path], PublishedFiles]] = [
    svhn, svhn_unpacked, cifar10, cifar100, cifar10_archive, cifar100_archive, idx_files, idx_file, npz,
    npz_first_axis_fastest, dsprites, parquet, parquet_file, parquet_of_pixels, parquet_of_paths, saved_to_disk,
    feather, webdataset, webdataset_shards, rendered_chairs, folder, plain_tar,
]  # fmt: skip
