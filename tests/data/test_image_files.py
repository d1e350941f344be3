"""Messy folders and archives of images, labels, broken files, inspect. Run: pytest tests/data/test_image_files.py"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_ray import UserError
from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.cli.train import train_config
from infogan_ray.data import image_files, image_loader
from infogan_ray.data.class_folders import class_folders
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.image_files import list_image_files
from infogan_ray.data.image_set import ImageSet

SIZE = 16


def picture(number: int, mode: str = "RGB") -> Image.Image:
    """A 40 x 30 image; its colour encodes ``number``."""
    return Image.new("RGB", (40, 30), (10 * number, 255 - 10 * number, 128)).convert(mode)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """18 images in folders of two classes, and other files beside them."""
    root = tmp_path / "photos"
    for folder in ("cats/old", "dogs", ".hidden", "__MACOSX"):
        (root / folder).mkdir(parents=True)
    for number, form in enumerate(("png", "jpg", "webp", "tif", "gif", "bmp", "JPEG", "tiff", "PNG")):
        picture(number).save(root / "cats" / f"{number}.{form}")
        picture(number + 9, "L").save(root / "dogs" / f"{number}.{form}")
    shutil.move(root / "cats" / "3.tif", root / "cats" / "old" / "3.tif")
    for junk in (".hidden/a.png", "__MACOSX/b.png", "cats/.c.png"):
        picture(1).save(root / junk)
    for junk in ("Thumbs.db", ".DS_Store", "notes.txt", "dogs/raw.heic", "README"):
        (root / junk).write_bytes(b"junk")
    return root


def pack(folder: Path, kind: str, inside: str = "photos/") -> Path:
    path = folder.parent / f"packed.{kind}"
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name, reverse=True)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, inside + str(file.relative_to(folder)))
    else:
        with tarfile.open(path, "w" if kind == "tar" else "w:gz") as archive:
            for file in files:
                archive.add(file, inside + str(file.relative_to(folder)))
    return path


def load(path: Path, message: list[str] | None = None, **changes: object) -> ImageSet:
    config = DataConfig(image_size=SIZE, **changes)  # type: ignore[arg-type]
    return load_images(str(path), config, (message if message is not None else []).append)


def whole(found: ImageSet) -> torch.Tensor:
    """All images, including the test split."""
    return found.images if found.test_images is None else torch.cat([found.images, found.test_images])


def assert_equal(first: ImageSet, second: ImageSet) -> None:
    assert torch.equal(first.images, second.images)
    for a, b in (
        (first.labels, second.labels),
        (first.test_images, second.test_images),
        (first.test_labels, second.test_labels),
    ):
        assert a is not None and b is not None and torch.equal(a, b)


def test_a_messy_folder_is_read_in_order_and_other_files_are_counted(photos: Path) -> None:
    source = list_image_files(photos)
    assert source.names[:4] == ("cats/0.png", "cats/1.jpg", "cats/2.webp", "cats/4.gif")
    assert len(source.names) == 18 and source.names[8] == "cats/old/3.tif"
    assert source.skipped == {
        "hidden": 4, "left by the system": 1, ".txt files": 1,
        ".heic files (convert these pictures to PNG or JPEG)": 1, "files without an ending": 1,
    }  # fmt: skip
    messages: list[str] = []
    found = load(photos, messages)
    assert found.labels is not None and found.labels.bincount().tolist() == [8, 8]
    assert found.images[0, :, 8, 8].tolist() == [0, 255, 128]
    text = "\n".join(messages)
    for words in ("18 images", "18 cropped to the middle square", "7 grey repeated in three channels", "1 .heic files"):
        assert words in text
    assert "(folder of images): 18 images, 2 classes; about a seventh of each class is held" in text


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("inside", ["", "photos/", "./a/b/", "../../up/", "/etc/"])
def test_an_archive_equals_its_folder_and_is_not_unpacked(kind: str, inside: str, photos: Path) -> None:
    path = pack(photos, kind, inside)
    before = sorted(photos.parent.rglob("*"))
    assert_equal(load(path), load(photos))
    assert sorted(photos.parent.rglob("*")) == before


def test_a_single_class_folder_and_a_flat_folder_give_no_labels(photos: Path) -> None:
    for folder in (photos / "dogs", photos / "cats"):
        assert load(folder).labels is None
    shutil.rmtree(photos / "cats")
    assert load(photos).labels is None
    found = class_folders(["a/x/1.png", "a/y/2.png"], photos, print)
    assert found is not None and found.of == ["x", "y"]
    assert class_folders(["a/x/1.png", "b.png"], photos, print) is None


def test_links_are_followed_once(photos: Path) -> None:
    (photos / "cats" / "loop").symlink_to(photos)
    (photos / "cats" / "up").symlink_to(photos.parent)
    for link in ("a_link", "z_link"):  # sorted before and after the real folder, whose names are used
        (photos / link).symlink_to(photos / "dogs")
    (photos / "self").symlink_to(photos / "self")
    elsewhere = photos.parent / "elsewhere"
    elsewhere.mkdir()
    picture(3).save(elsewhere / "new.png")
    (elsewhere / "back").symlink_to(photos)
    (photos / "dogs" / "more").symlink_to(elsewhere)
    (photos / "dogs" / "one.png").symlink_to(photos / "cats" / "0.png")
    os.mkfifo(photos / "dogs" / "pipe.png")
    source = list_image_files(photos)
    assert len(source.names) == 20 and {"dogs/more/new.png", "dogs/one.png"} <= set(source.names)
    assert source.skipped["links to a folder that is read already"] == 5 and source.skipped["pipes and devices"] == 1


def test_broken_files_are_named_and_skipped_and_fatal_above_max_bad(photos: Path) -> None:
    sound = load(photos)
    (photos / "cats" / "0a.png").write_bytes(b"")
    (photos / "cats" / "0b.jpg").write_bytes((photos / "cats" / "1.jpg").read_bytes()[:300])
    (photos / "dogs" / "0c.png").symlink_to("nowhere")
    (photos / "dogs" / "0d.png").write_text("<html>404</html>")
    (photos / "dogs" / "is_a_png.jpg").write_bytes((photos / "cats" / "0.png").read_bytes())
    with pytest.raises(ValueError) as refused:
        load(photos)
    for words in (
        "4 broken files of 23", "17.39%", "max_bad 1.00%", "cats/0a.png is empty", "0b.jpg is cut off",
        "0c.png is a broken link", "0d.png is not a readable image", "--max-bad 0.174",
    ):  # fmt: skip
        assert words in str(refused.value), words
    load(photos, max_bad=0.174)
    (photos / "dogs" / "is_a_png.jpg").unlink()
    messages: list[str] = []
    assert_equal(load(photos, messages, max_bad=0.2), sound)
    assert any("4 broken files (18.18%) skipped: cats/0a.png is empty" in line for line in messages)
    with pytest.raises(ValueError, match=r"max_bad is 1.5; it must be a share from 0 to 1"):
        load(photos, max_bad=1.5)


@pytest.mark.skipif(os.getuid() == 0, reason="root can read every file")
def test_a_file_without_permission_is_broken(photos: Path) -> None:
    (photos / "cats" / "0.png").chmod(0)
    with pytest.raises(ValueError, match=r"cats/0.png cannot be read .you have no permission."):
        load(photos)


def test_a_source_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="so no image is left: a.png is empty"):
        load(tmp_path, max_bad=1.0)
    (tmp_path / "a.png").rename(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="no image in .*there are only 1 .txt files"):
        load(tmp_path)


def test_broken_archives_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("zip", "tar", "tar.gz"):
        path = pack(photos, kind)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(ValueError, match=f"packed.{kind} is not a whole"):
            load(path)
    path = pack(photos, "zip")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("photos/cats/5.bmp").header_offset + 60
    path.write_bytes(content[:start] + b"\xff" * 4 + content[start + 4 :])
    with pytest.raises(ValueError, match=r"cats/5.bmp is damaged in the archive"):
        load(path)
    monkeypatch.setattr(image_files, "MOST_BYTES", 3000)  # only the .bmp and .tif files are larger
    for path in (photos, pack(photos, "zip"), pack(photos, "tar.gz")):
        with pytest.raises(ValueError, match=r"cats/5.bmp has more than .* MiB"):
            load(path)


def test_files_with_unprintable_names_are_read(photos: Path) -> None:
    os.rename(os.fsencode(photos / "cats" / "0.png"), os.fsencode(photos / "cats") + b"/\xff\n0.png")
    assert len(whole(load(photos))) == 18
    (photos / "cats" / "1.jpg").write_bytes(b"")
    os.rename(photos / "cats" / "1.jpg", photos / "cats" / "1\n.jpg")
    with pytest.raises(ValueError, match=r"cats/1\\n.jpg is empty"):
        load(photos)


def test_class_names_are_printable(photos: Path) -> None:
    os.rename(os.fsencode(photos / "cats"), os.fsencode(photos) + b"/caf\xe9\ncats")
    assert load(photos).classes == (r"caf\xe9\ncats", "dogs")


@pytest.mark.parametrize("threads", [1, 3])
def test_the_order_does_not_depend_on_threads_and_progress_is_reported(
    threads: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_loader, "SAY_EVERY_S", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(threads)))
    messages: list[str] = []
    source = list_image_files(photos)
    read = image_loader.read_pictures(source, SIZE, 3, messages.append)
    assert read.names == list(source.names) and torch.equal(read.images[0, :, 8, 8], torch.tensor([0, 255, 128]))
    assert messages[0].startswith("data: 1 of 18 images read") and messages[-1].startswith("data: 18 of 18")
    assert threading.active_count() < 10


def table(photos: Path, rows: list[tuple[str, object]]) -> str:
    path = photos.parent / "labels.csv"
    path.write_text("\n".join(["file,label,note", *(f"{name},{label},x" for name, label in rows)]))
    return str(path)


def test_labels_are_read_from_a_csv(photos: Path) -> None:
    names = list_image_files(photos).names
    rows: list[tuple[str, object]] = [(name, place % 11) for place, name in enumerate(names)]
    found = load(photos, labels=table(photos, rows), hold_out="every_seventh")
    assert found.labels is not None and found.test_labels is not None
    assert found.labels[9:12].tolist() == [10, 0, 1]  # sorted as numbers: as text, 10 would come before 2
    assert found.test_labels.tolist() == [6, 2]
    messages: list[str] = []
    flat = photos.parent / "flat"
    flat.mkdir()
    for number in range(14):
        picture(number).save(flat / f"{number:02}.png")
    rows = [(f"{number:02}.png", "odd" if number % 2 else "even") for number in range(14)]
    csv = table(photos, [*rows, ("gone.png", "odd")])
    for path in (flat, pack(flat, "zip", "some/where/")):  # matched by a unique file name
        messages = []
        assert load(path, messages, labels=csv).labels is not None
        assert any(line.startswith("labels: 1 row of") and line.endswith("gone.png") for line in messages)
    for wrong, message in (
        (rows[1:], "1 of 14 images have no row in .*00.png; add them, or leave --labels out"),
        ([*rows, ("00.png", "odd")], "line 16 of .* gives 00.png the label 'odd', and an earlier one 'even'"),
        ([("x.png", 1)], "none of the 1 files in .* is in .*; it names 'x.png', and an image there is '00.png'"),
        ([], "labels.csv lists no file; add a row for each image"),
        ([("00.png", "")], "line 2 of .* has no label"),
    ):
        with pytest.raises(ValueError, match=message):
            load(flat, labels=table(photos, wrong))
    Path(csv).write_text("name;class\n")
    with pytest.raises(
        ValueError, match=r"has the columns 'name', 'class'; its first line must name one of files \(file,"
    ):
        load(flat, labels=csv)
    with pytest.raises(ValueError, match="labels is .*nowhere.csv, which does not exist"):
        load(flat, labels="nowhere.csv")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("metadata.jsonl", lambda rows: "\n".join(json.dumps({"file_name": a, "Label": b, "x": 0}) for a, b in rows)),
        ("labels.json", lambda rows: json.dumps([{"image": a, "category": b} for a, b in rows])),
        ("dataset.json", lambda rows: json.dumps({"labels": rows})),
        ("labels.json", lambda rows: json.dumps(dict(rows))),
    ],
)  # fmt: skip
def test_labels_are_read_from_json(name: str, form: Callable[[list[Any]], str], tmp_path: Path) -> None:
    for number in range(12):
        picture(number).save(tmp_path / f"{number:02}.png")
    rows = [[f"{number:02}.png", float(number % 11)] for number in range(12)]
    (tmp_path / name).write_text(form(rows))
    messages: list[str] = []
    found = load(tmp_path, messages)
    hint = f"data: skipped, because they cannot be read as images: 1 {name} (--labels FILE reads a list of labels)"
    assert found.labels is None and hint in messages
    found = load(tmp_path, messages, labels=str(tmp_path / name), hold_out="every_seventh")
    assert found.classes == tuple(str(number) for number in range(11)) and found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]
    for wrong, message in (
        ([*rows, ["00.png", 5]], "row 13 of .* gives 00.png the label '5', and an earlier one '0.0'"),
        ([*rows, ["12.png", None]], "row 13 of .* has no label"),
        ([*rows, ["12.png", [0, 1]]], "row 13 of .* has no label"),
    ):
        (tmp_path / name).write_text(form(wrong))
        if "dict" not in form.__code__.co_names or "no label" in message:  # an object has each name once
            with pytest.raises(UserError, match=message):
                load(tmp_path, labels=str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": null}', r"lists no files; valid are \[\[file, label\], ...\], and objects with one of"),
        ('[{"file": "a.png", "text": "x"}]', r"row 1 of .* is neither \[file, label\] nor an object with one of files"),
        ("[1, 2]", "row 1 of .* is neither"), ("[]", "lists no file; add"), ("{", "is not a JSON file in UTF-8"),
    ],
)  # fmt: skip
def test_json_without_labels_is_refused(text: str, message: str, photos: Path) -> None:
    path = photos.parent / "labels.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(photos, labels=str(path))


@pytest.mark.parametrize(
    ("delimiter", "header", "start"),
    [
        (",", "file,label", "{root}/"), (";", "File;Class", "photos/"), ("\t", "file_name\tcategory", ""),
        (";", "id; Path ;target", "./"), (",", "\N{BYTE ORDER MARK}image,label", "up/../{root}/"),
        (",", "filename,label", "C:/elsewhere/photos/"), (",", "file,label", "/of/another/machine/"),
    ],
)  # fmt: skip
def test_a_csv_of_any_dialect_names_images_from_any_folder(
    delimiter: str, header: str, start: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    first = ["7"] if "id" in header else []
    for path in (photos, pack(photos, "zip", "")):
        rows = [header]
        for name in list_image_files(photos).names:
            whole_name = (start.format(root=photos if path == photos else path) + name).replace(
                "photos/", f"{path.name}/"
            )
            kind = name.split("/")[0]
            rows += [
                delimiter.join([*first, whole_name, kind]),
                delimiter.join([*first, whole_name.replace("/", "\\"), kind]),
            ]
        (photos.parent / "labels.csv").write_text("\r\n".join(rows), encoding="utf-8", newline="")
        messages: list[str] = []
        found = load(path, messages, labels="labels.csv")
        assert found.classes == ("cats", "dogs") and not any("labels:" in line for line in messages)
        assert found.labels is not None and found.labels.tolist() == [0] * 8 + [1] * 8


def test_paths_beside_the_csv_are_found_and_the_surest_name_counts(photos: Path) -> None:
    """Both splits of a project have images of the same names, and one CSV file has both."""
    project = photos.parent / "project"
    for split in ("train", "test"):
        (project / split).mkdir(parents=True)
        for number in range(15):
            picture(number).save(project / split / f"{number}.png")
    rows = [f"{split}/{number}.png,{split}{number % 2}" for split in ("test", "train") for number in range(15)]
    (project / "labels.csv").write_text("\n".join(["file,label", *rows]))
    messages: list[str] = []
    found = load(project / "train", messages, labels=f"{project}/labels.csv")
    assert found.classes == ("train0", "train1")
    assert [line for line in messages if line.startswith("labels: 15 rows of")]
    (project / "lists").mkdir()
    (project / "lists" / "labels.csv").write_text("\n".join(["file,label", *(f"../{row}" for row in rows)]))
    assert load(project / "test", labels=f"{project}/lists/labels.csv").classes == ("test0", "test1")
    other = [f"/elsewhere/{row}" for row in rows]
    (project / "labels.csv").write_text("\n".join(["file,label,class", *other]))
    (project / "train").rename(project / "images")
    with pytest.raises(
        ValueError, match=r"test/0.png with the label 'test0' and /elsewhere/train/0.png with 'train0' both"
    ):
        load(project / "images", messages, labels=f"{project}/labels.csv")
    assert messages[-1].endswith("has the columns label, class; 'label' is used")


def test_every_ending_that_pillow_decodes_and_none_is_read(tmp_path: Path) -> None:
    """A folder, a .zip and a .tar have the same rule."""
    root = tmp_path / "photos"
    root.mkdir()
    kinds = {
        "pgm": "PPM", "ppm": "PPM", "jp2": "JPEG2000", "avif": "AVIF", "qoi": "QOI", "jfif": "JPEG", "png": "PNG",
        "webp": "WEBP", "tif": "TIFF", "gif": "GIF", "bmp": "BMP", "jpg": "JPEG",
    }  # fmt: skip
    for number, (ending, form) in enumerate(kinds.items()):
        picture(number, "L" if ending == "pgm" else "RGB").save(root / f"{number:02}.{ending}", form)
        shutil.copy(root / f"{number:02}.{ending}", root / f"{number:02}")
    shutil.copy(root / "00", root / "00.pgm.1")
    (root / "words").write_text("BMW makes cars")
    (root / "P3").write_text("P3x")
    (root / "empty").write_bytes(b"")
    (root / "raw.1").write_bytes(bytes(100))
    (root / "page").write_bytes(b"%!PS-Adobe")
    os.mkfifo(root / "pipe")
    names = sorted(file.name for file in root.iterdir() if file.name[:2].isdigit())
    assert len(names) == 25
    skipped = {"files without an ending": 4, ".1 files": 1}
    assert list_image_files(root).skipped == skipped | {"files without an ending": 5}
    for path in (root, pack_files(root, "zip"), pack_files(root, "tar.gz")):
        source = list_image_files(path)
        assert list(source.names) == names
        assert path == root or source.skipped == skipped
        assert len(load(path).images) == 25
    assert load(root / "05").images.shape == (1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="cannot be read; valid are"):
        load(root / "words")


def pack_files(folder: Path, kind: str) -> Path:
    """Like ``pack``, without pipes."""
    (folder / "pipe").unlink(missing_ok=True)
    return pack(folder, kind, "")


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_links_in_a_tar_are_files_of_the_tar(kind: str, photos: Path) -> None:
    root = photos.parent / "linked"
    (root / "b").mkdir(parents=True)
    picture(1).save(root / "b" / "1.png")
    picture(2).save(root / "b" / "plain", "PNG")
    os.link(root / "b" / "1.png", root / "b" / "2.png")
    os.link(root / "b" / "plain", root / "b" / "same")
    (root / "a.png").symlink_to("b/2.png")
    (root / "b" / "c.png").symlink_to("../a.png")
    for name, target in (("out", "/etc/hostname"), ("up", "../../x.png"), ("loop", "loop.png"), ("gone", "b/9.png")):
        (root / f"{name}.png").symlink_to(target)
    path = photos.parent / f"linked.{kind}"
    with tarfile.open(path, "w" if kind == "tar" else "w:gz") as archive:
        archive.add(root, "linked")
        archive.add(root / "b" / "1.png", "linked/b/1.png")  # a hard link to itself
    source = list_image_files(path)
    assert [name.removeprefix("linked/") for name in source.names] == [
        "a.png", "b/1.png", "b/2.png", "b/c.png", "b/plain", "b/same"
    ]  # fmt: skip
    assert source.skipped == {"links to no file of the archive": 4}
    found = load(path).images[:, 0, 8, 8]
    assert found.tolist() == [10, 10, 10, 10, 20, 20]
    assert sorted(row for row, _ in source.contents([0, 2, 5])) == [0, 2, 5]


def test_links_in_a_zip_are_files_of_the_zip(photos: Path) -> None:
    path = photos.parent / "linked.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(photos / "cats" / "0.png", "a/0.png")
        for name, target in (("b/1.png", "../a/0.png"), ("2.png", "/etc/hostname")):
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            archive.writestr(link, target)
    source = list_image_files(path)
    assert source.names == ("a/0.png", "b/1.png") and source.skipped == {"links to no file of the archive": 1}
    assert torch.equal(whole(load(path))[0], whole(load(path))[1])


def test_label_paths_are_absolute_for_workers(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infogan_ray.training.run_setup import with_absolute_paths

    monkeypatch.chdir(photos.parent)
    config = with_absolute_paths(train_config(["--data", "photos", "--labels", "labels.csv", "--image-size", "16"]))
    assert (config.data, config.labels) == (str(photos), str(photos.parent / "labels.csv"))


def test_a_labels_file_is_refused_for_an_npz(npz: Path) -> None:
    with pytest.raises(ValueError, match="labels is x.csv, which is for folders and archives"):
        load(npz, labels="x.csv")


def test_inspect_proposes_a_valid_train_command(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cats" / "0a.png").write_bytes(b"")
    shutil.copy(photos / "cats" / "0.png", photos / "dogs" / "copy.png")
    sheet = tmp_path / "sheet.png"
    assert main(["data", "inspect", str(photos), "-o", str(sheet)]) == DONE
    text = capsys.readouterr().out
    for words in (
        "19 of 20 files", "5 PNG", "7 L", "median 40 x 30", "broken: cats/0a.png is empty", "2: cats 9, dogs 10",
        "cats/0.png = dogs/copy.png", "19 cropped to the middle square",
    ):  # fmt: skip
        assert words in text, words
    command = shlex.split(text.splitlines()[-1].removeprefix("next: "))
    assert command[:2] == ["infogan", "train"]
    config = train_config(command[2:])
    assert (config.image_size, config.channels, config.batch_size) == (16, 3, 8) and "cat=2" in config.codes
    assert config.preset == "photos", "the images have colour"
    found = load_images(str(config.data), config.data_config, lambda line: None)
    assert config.total_steps(len(found.images)) == 20_000
    config.model_spec(found.image_size, found.channels)
    with Image.open(sheet) as image:
        assert image.width > 8 * 16 and image.getpixel((16, 16)) == (0, 255, 128)


def test_inspect_as_json_and_with_grey_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grey images stored as RGB need one channel. An archive is inspected like a folder."""
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((28, 28), 90 + number).convert("RGB").save(folder / f"{number}.png")
    sheet = tmp_path / "sheet.png"
    reports = []
    for path in (folder, pack(folder, "tar.gz")):
        assert main(["data", "inspect", str(path), "--json", "-o", str(sheet)]) == DONE
        reports.append(json.loads(capsys.readouterr().out))
    assert [report["layout"] for report in reports] == ["folder of images", ".tar.gz of images"]
    unlike = {"path": "", "proposal": "", "layout": ""}
    assert reports[0] | unlike == reports[1] | unlike
    assert reports[0]["proposal"]["image_size"] == 28 and reports[0]["proposal"]["channels"] == 1
    assert "--preset" not in reports[0]["proposal"]["command"]
    assert reports[0]["memory_bytes"] == 5 * 28 * 28 and reports[0]["conversions"] == {"colour to grey": 5}
    with Image.open(sheet) as image, Image.open(folder / "0.png") as first:
        assert np.array_equal(np.array(image)[:56:2, :56:2], np.array(first))


def test_inspect_refuses_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (prepared := tmp_path / "prepared").mkdir()
    (prepared / "MANIFEST.json").write_text("{}")
    for words, code, message in (
        ("nowhere", USAGE, "path is 'nowhere', which does not exist"),
        (str(prepared), USAGE, "which infogan data prepare has written; train, evaluate and"),
        (f"{tmp_path}/a.png --image-size 17", USAGE, "image size is 17; valid sizes"),
        (f"{tmp_path} -o {tmp_path}/no.txt", USAGE, "valid endings are .png"),
        (f"{tmp_path} -o {tmp_path}/prepared/c.png", USAGE, "would be an image of the data in"),
        (f"{tmp_path}/a.png -o {tmp_path}/c.png", FAILED, "no image of"),
    ):
        assert main(["data", "inspect", *words.split()]) == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_encode_reads_the_same_sources(photos: Path, finished: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (photos / "cats" / "0a.png").write_bytes(b"")
    model, output = str(finished), tmp_path / "codes.parquet"
    rows = []
    for path in (photos, pack(photos, "zip", "")):
        assert main(["encode", model, str(path), "-o", str(output), "--max-bad", "0.1"]) == DONE
        rows.append(pq.read_table(output).to_pydict())
    assert rows[0].pop("image")[0] == str(photos / "cats" / "0.png")
    assert rows[1].pop("image")[0] == str(photos.parent / "packed.zip" / "cats" / "0.png")
    assert rows[0] == rows[1] and len(rows[0]["cat0"]) == 18


def wide_folder(root: Path, images: list[np.ndarray], ending: str) -> Path:
    root.mkdir()
    for number, values in enumerate(images):
        Image.fromarray(values).save(root / f"{number:02d}.{ending}")
    return root


@pytest.mark.parametrize(
    ("dtype", "ending", "most", "wanted"),
    [(np.uint16, "png", 4000, "0:4095"), (np.float32, "tif", 250, "0:255"), (np.int32, "tif", 90_000, "0:90000")],
)
def test_one_range_is_used_for_all_images_of_a_folder(
    dtype: type, ending: str, most: int, wanted: str, tmp_path: Path
) -> None:
    """A dark image stays dark beside a bright one."""
    ramp = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    folder = wide_folder(tmp_path / "wide", [(ramp * share * most).astype(dtype) for share in (0.002, 0.5, 1)], ending)
    Image.new("L", (SIZE, SIZE), 77).save(folder / "z.png")
    messages: list[str] = []
    found = load(folder, messages, channels=1)
    assert str(found.conversion.pixel_range) == wanted
    high = float(wanted[2:])
    for image, share in zip(found.images[:3, 0].numpy(), (0.002, 0.5, 1), strict=True):
        assert np.array_equal(image, ((ramp * share * most).astype(dtype) * (255 / high)).round())
    assert (found.images[3] == 77).all(), "8-bit images do not change"
    assert any(f"data: pixel range {wanted}, from the values 0...{most} of 3 images" in line for line in messages)
    assert torch.equal(load(folder, channels=1, pixel_range=wanted).images, found.images)


def test_a_pixel_range_overrides_and_clipped_images_are_counted(tmp_path: Path) -> None:
    folder = wide_folder(tmp_path / "wide", [np.full((SIZE, SIZE), v, np.uint16) for v in (10, 101, 300)], "png")
    messages: list[str] = []
    found = load(folder, messages, channels=1, pixel_range="0:200")
    assert found.images[:, 0, 0, 0].tolist() == [13, 129, 255]
    text = "\n".join(messages)
    assert "pixel range 0:200, as set, for 3 images of more than 8 bits with the values 10...300" in text
    assert "1 with values outside the pixel range, which are clipped" in text


def test_a_pixel_range_without_effect_is_said(photos: Path) -> None:
    messages: list[str] = []
    assert torch.equal(load(photos, messages, pixel_range="0:9").images, load(photos).images)
    assert any("pixel_range is 0:9, without effect" in line for line in messages)


def test_inspect_says_the_pixel_range_and_what_cropping_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [np.full((SIZE, 2 * SIZE), v, np.uint16) for v in (5, 4000, 80, 80)]
    folder = wide_folder(tmp_path / "wide", values, "png")
    assert main(["data", "inspect", str(folder)]) == DONE
    text = capsys.readouterr().out
    for words in (
        "0:4095, from the values 5...4000 of 4 images", "16-bit scaled from 0...4095", "4 cropped to the middle square",
        "4; cropping loses 50% of the pixels at the median, 50% at most; --fit pad or --fit squeeze keeps them",
    ):  # fmt: skip
        assert words in text, words
    words = ["data", "inspect", str(folder), "--fit", "pad", "--pixel-range", "-5:100", "-o", str(tmp_path / "a.png")]
    assert main(words) == DONE
    text = capsys.readouterr().out
    assert "4 padded to a square with the colour of its border" in text and "-5:100, as set, for 4 images" in text
    config = train_config(shlex.split(text.splitlines()[-1].removeprefix("next: "))[2:])
    assert (config.fit, config.pixel_range) == ("pad", "-5:100")
    assert main(["data", "inspect", str(folder), "--pixel-range", "4095"]) == USAGE
    assert "pixel_range is '4095'; it must be LOW:HIGH" in capsys.readouterr().err


def test_inspect_reads_wide_arrays_as_training_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).random((20, SIZE, SIZE, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", images)
    assert main(["data", "inspect", str(tmp_path / "a.npy"), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["proposal"]["channels"] == 3 and found["pixel_range"].startswith("pixel range 0:1, from the values ")
    assert found["conversions"] == ["RGBA composited on white"] and found["not_square"] is None
    config = train_config(shlex.split(found["proposal"]["command"])[2:])
    assert load_images(str(config.data), config.data_config, lambda line: None).images.shape == (20, 3, SIZE, SIZE)
