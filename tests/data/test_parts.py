"""Parts of a dataset by usual names, and images beside class folders. Run: pytest tests/data/test_parts.py"""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from infogan_ray.cli.main import DONE, main
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.formats.collection import EncodedImages
from infogan_ray.data.formats.parts import TEST, TRAIN, VALIDATION, divide, part_of, parts_of
from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.image_files import Broken
from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.labels import say_part_column
from tests.layouts import tar

SHADES = {"cat": 0, "dog": 100}


def fill(root: Path, names: list[str], count: int = 8, side: int = 28) -> Path:
    """Write ``count`` images to each folder of ``root``; ``cat`` and ``dog`` have different shades."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            shade = SHADES.get(name.rpartition("/")[2], 200) + row + count * number
            Image.new("L", (side, side), shade % 256).save(root / name / f"{row}.png")
    return root


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, "png")
    return buffer.getvalue()


def load(path: Path, say: list[str], **changes: object) -> ImageSet:
    config = DataConfig(image_size=16, channels=1, **changes)  # type: ignore[arg-type]
    return load_images(str(path), config, say.append)


def names_of(path: Path, say: list[str]) -> tuple[EncodedImages, list[str], list[str]]:
    found = open_collection(path, say=say.append)
    assert isinstance(found, EncodedImages)
    test = found.test
    assert test is None or isinstance(test, EncodedImages)
    return found, list(found.files.names), [] if test is None else list(test.files.names)


def test_usual_names_mean_parts() -> None:
    for name, part in (
        ("train", TRAIN), ("Training Set", TRAIN), ("train2017", TRAIN), ("TEST", TEST), ("test-00000-of-00001", TEST),
        ("testing", TEST), ("val", VALIDATION), ("valid_1", VALIDATION), ("validation", VALIDATION),
        ("eval", VALIDATION), ("dev", VALIDATION), ("trains", None), ("testimony", None), ("t10k", None), ("", None),
    ):  # fmt: skip
        assert part_of(name) == part, name
    say: list[str] = []

    def parts(*names: str) -> tuple[list[str], list[str]]:
        return divide(names, [part_of(name) for name in names], Path("data"), say.append)

    assert parts("train", "test", "a") == (["train", "a"], ["test"])
    assert parts("test-0", "test-1") == (["test-0", "test-1"], []) and say == []
    assert parts("train", "val") == (["train"], ["val"])
    assert parts("train", "val", "test") == (["train", "val"], ["test"])
    assert say == [
        "data: data has no test part; its validation part is used as the test part",
        "data: data has a test part and a validation part; the validation part is for training",
    ]


def test_parts_after_the_same_start_of_a_name(tmp_path: Path) -> None:
    """seg_train/seg_train/a as in Intel's images. Classes whose names differ otherwise stay classes."""
    assert parts_of(["mnist_train", "mnist_test"]) == {"mnist_train": TRAIN, "mnist_test": TEST}
    assert parts_of(["crash_test", "screen_test"]) == {} and parts_of(["a_train", "b_test"]) == {}
    found, train, test = names_of(
        fill(tmp_path, [f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in ("a", "b")]), []
    )
    assert found.classes == ["a", "b"] and len(train) == len(test) == 16
    assert {name.split("/")[0] for name in test} == {"seg_test"}


def test_parts_inside_each_class(tmp_path: Path) -> None:
    folders = [f"{name}/{part}" for name in ("cat", "dog") for part in ("train", "test")]
    found, train, test = names_of(fill(tmp_path / "a", folders), [])
    assert found.classes == ["cat", "dog"] and len(train) == len(test) == 16
    assert {name.split("/")[1] for name in train} == {"train"} and {name.split("/")[1] for name in test} == {"test"}
    found, train, test = names_of(fill(tmp_path / "b", [*folders, "cow/field"]), [])
    assert found.classes == ["cat", "cow", "dog"] and not test, "not all classes have parts"


def test_a_column_of_parts_that_is_not_read_is_named(tmp_path: Path) -> None:
    say: list[str] = []
    say_part_column(["file", "label", "Split"], Path("table.csv"), say.append)
    say_part_column(["file", "label"], Path("table.csv"), say.append)
    assert say == [
        "data: the column 'Split' of table.csv is not read; for parts, use folders or files named train and test"
    ]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_folders_of_parts_are_no_classes(kind: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", ["Train/cat", "Train/dog", "TEST/cat", "TEST/dog"])
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "pets")
        root = tmp_path / "packed.zip"
    elif kind == "tar":
        files = [(f"pets/{file.relative_to(root)}", file.read_bytes()) for file in sorted(root.rglob("*.png"))]
        root = tar(tmp_path / "packed.tar", files)
    say: list[str] = []
    found = load(root, say)
    assert found.classes == ("cat", "dog") and found.labels is not None and found.test_labels is not None
    assert found.labels.tolist() == found.test_labels.tolist() == [0] * 8 + [1] * 8
    assert found.test_images is not None and torch.equal(found.images[0, 0, 0, 0], torch.tensor(0, dtype=torch.uint8))
    assert any("16 images, 2 classes; 16 more in its test split" in line for line in say)


def test_a_validation_part_is_the_test_part_if_there_is_no_other(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["train/cat", "train/dog", "val/cat", "val/dog"])
    say: list[str] = []
    _, train, test = names_of(root, say)
    assert {name.split("/")[0] for name in train} == {"train"} and {name.split("/")[0] for name in test} == {"val"}
    fill(root, ["test/cat", "test/dog"])
    found, train, test = names_of(root, say)
    assert {name.split("/")[0] for name in train} == {"train", "val"} and len(test) == 16
    assert found.classes == ["cat", "dog"] and "the validation part is for training" in say[-1]


def test_a_single_part_and_classes_with_such_names(tmp_path: Path) -> None:
    found, names, test = names_of(fill(tmp_path / "a", ["train/cat", "train/dog"]), [])
    assert found.classes == ["cat", "dog"] and len(names) == 16 and not test
    found, _, test = names_of(fill(tmp_path / "b", ["bus", "car", "train"]), [])
    assert found.classes == ["bus", "car", "train"] and not test
    found, _, test = names_of(
        fill(
            tmp_path / "c", ["training_set/training_set/cat", "training_set/training_set/dog", "test_set/test_set/dog"]
        ),
        [],
    )
    assert found.classes == ["cat", "dog"] and len(test) == 8, "a test part may lack a class"


def test_what_has_no_part_or_no_class_to_test_is_left_out_and_said(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["train/cat", "train/dog", "test", "unlabelled"])
    Image.new("L", (16, 16)).save(root / "contact.png")
    say: list[str] = []
    found, names, test = names_of(root, say)
    assert found.classes == ["cat", "dog"] and len(names) == 16 and not test
    assert say == [
        "data: 9 images are left out, beside the parts test, train: contact.png, unlabelled/0.png, unlabelled/1.png "
        "and 6 more",
        "data: 8 images are left out, in no class folder that the training part has: test/0.png, test/1.png, "
        "test/2.png and 5 more",
    ]
    found, names, test = names_of(fill(tmp_path / "flat", ["train", "test"]), say)
    assert found.classes is None and len(names) == len(test) == 8


def test_one_picture_beside_class_folders_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "a", [f"class{number}" for number in range(10)], count=2)
    Image.new("RGB", (900, 900), "red").save(root / "contact.png")
    say: list[str] = []
    found, names, _ = names_of(root, say)
    assert found.classes == [f"class{number}" for number in range(10)] and len(names) == 20
    assert say == ["data: 1 image is left out, beside the class folders: contact.png"]
    assert main(["data", "inspect", str(root)]) == DONE
    output = capsys.readouterr()
    assert "--image-size 28 --channels 1" in output.out and "cat=10" in output.out and say[0] in output.err
    for number in range(2):  # three of 23
        Image.new("L", (16, 16)).save(root / f"loose{number}.png")
    found, names, _ = names_of(root, say)
    assert found.classes is None and len(names) == 23
    assert "3 of 23 images of" in say[-1] and "lie beside the folders class0, class1, class2 and 7 more" in say[-1]


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "webdataset.tar", "folder of webdatasets"])
def test_one_picture_beside_class_folders_of_an_archive_is_left_out(kind: str, tmp_path: Path) -> None:
    files = []
    for row in range(10):
        files.append((f"{'cat' if row < 5 else 'dog'}/{row}.png", png(row)))
        if "webdataset" in kind:
            files.append((f"{'cat' if row < 5 else 'dog'}/{row}.json", b'{"caption": "x"}'))
    stray, path = [("contact.png", png(200))], tmp_path / kind
    if kind == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in [*files, *stray]:
                archive.writestr(name, content)
    elif kind.endswith(".tar"):
        tar(path, [*files, *stray])
    else:
        path.mkdir()
        tar(path / "0.tar", files)
        tar(path / "1.tar", stray)
    say: list[str] = []
    found, names, _ = names_of(path, say)
    stray_name = "1.tar/contact.png" if path.is_dir() else "contact.png"
    assert say == [f"data: 1 image is left out, beside the class folders: {stray_name}"]
    assert found.classes == ["cat", "dog"] and len(names) == 10
    assert found.labels is not None and found.labels.tolist() == [0] * 5 + [1] * 5
    read = {item.path: item.image for _, item in found.read(0, 10) if not isinstance(item, Broken)}
    assert sorted(read.values()) == sorted(content for name, content in files if name.endswith("png"))
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,label", *(f"{row}.png,{row % 3}" for row in range(10)), "contact.png,2"]))
    labelled = open_collection(path, str(table), say.append)
    assert labelled.count == 11 and labelled.classes == ["0", "1", "2"] and len(say) == 1, "a table labels all images"


def test_a_contact_sheet_is_not_written_among_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fill(tmp_path / "a", ["cat", "dog"]))
    assert main(["data", "inspect", ".", "-o", "contact.png"]) == 2
    assert "output is contact.png, which would be an image of the data in ." in capsys.readouterr().err
    assert main(["data", "inspect", ".", "-o", "../contact.png"]) == DONE and (tmp_path / "contact.png").exists()


def test_a_csv_gives_the_labels_of_both_parts(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["train", "test"])
    table = tmp_path / "labels.csv"
    lines = [f"{part}/{row}.png,{row % 2 + (part == 'test')}.0" for part in ("train", "test") for row in range(8)]
    table.write_text("\n".join(["file,label", *lines]))
    found = load(root, [], labels=str(table))
    assert found.labels is not None and found.labels.tolist() == [0, 1] * 4 and found.classes == ("0", "1", "2")
    assert found.test_labels is not None and found.test_labels.tolist() == [1, 2] * 4


def test_files_of_tables_and_tars_have_the_same_rule(tmp_path: Path) -> None:
    for name in ("train-0", "validation-0"):
        rows = {"image": [png(row) for row in range(8)], "label": [0, 1] * 4}
        (tmp_path / "tables").mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), tmp_path / "tables" / f"{name}.parquet")
        files = [(f"{row}.{end}", content) for row in range(8) for end, content in (("png", png(row)), ("cls", b"1"))]
        (tmp_path / "tars").mkdir(exist_ok=True)
        tar(tmp_path / "tars" / f"{name}.tar", files)
    for folder in ("tables", "tars"):
        _, train, test = names_of(tmp_path / folder, [])
        assert all(name.startswith("train") for name in train) and len(train) == len(test) == 8
        assert all(name.startswith("validation") for name in test)


def test_an_archive_of_folders_beside_a_stray_picture_equals_the_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["cat", "dog"])
    Image.new("L", (900, 900)).save(root / "contact.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, f"a/{file.relative_to(root)}")
    whole, packed = load(root, []), load(tmp_path / "a.zip", [])
    assert torch.equal(whole.images, packed.images) and packed.classes == ("cat", "dog")
    assert whole.test_labels is not None and np.bincount(whole.test_labels).tolist() == [1, 1]


def test_inspect_proposes_to_learn_the_prior_for_unbalanced_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "a", ["cat"], count=40)
    fill(root, ["dog"], count=4)
    assert main(["data", "inspect", str(root)]) == DONE
    output = capsys.readouterr().out
    assert "'noise=62 cat=2 uniform=2' --steps 20000 --prior.learn" in output and "much larger than others" in output
    assert "none of its own; 7 images are held out, about a seventh of each class" in output
    fill(root, ["test/cat", "test/dog", "train/cat", "train/dog"])
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")
    assert main(["data", "inspect", str(root)]) == DONE
    output = capsys.readouterr().out
    assert "--prior.learn" not in output and "16 more images, of its own" in output
