"""Labels of any type of value as classes. Run: pytest tests/data/test_label_values.py"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.labels import as_classes, is_unbalanced
from tests.layouts import tar


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "png")
    return buffer.getvalue()


def opened(path: Path, labels: str | None = None) -> tuple[list[str] | None, list[int] | None, list[str]]:
    """The classes, the labels, and what was said."""
    say: list[str] = []
    found = open_collection(path, labels, say.append)
    return found.classes, None if found.labels is None else found.labels.tolist(), say


CASES: list[tuple[str, Any, list[str], list[int]]] = [
    ("category of text", pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"], [1, 0, 1]),
    ("category of numbers", pa.array([7, 10, 7]).dictionary_encode(), ["7", "10"], [0, 1, 0]),
    ("whole floats", pa.array([10.0, 2.0, 2.0]), ["2", "10"], [1, 0, 0]),
    ("half floats", pa.array(np.array([1, 0, 1], np.float16)), ["0", "1"], [1, 0, 1]),
    ("truth", pa.array([True, False, True]), ["False", "True"], [1, 0, 1]),
    ("large text", pa.array(["b", "a", "b"], pa.large_string()), ["a", "b"], [1, 0, 1]),
    ("text", pa.array(["1.5", "0.5", "1.5"]), ["0.5", "1.5"], [1, 0, 1]),
]


@pytest.mark.parametrize(("column", "classes", "labels"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_table_may_have_labels_of_any_type(
    column: Any, classes: list[str], labels: list[int], tmp_path: Path
) -> None:  # fmt: skip
    pq.write_table(pa.table({"image": [png()] * 3, "label": column}), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet") == (classes, labels, [])


def test_measurements_are_no_classes_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def table(column: Any) -> str:
        pq.write_table(pa.table({"image": [png()] * 3, "label": column}), path)
        classes, labels, say = opened(path)
        assert classes is None and labels is None and len(say) == 1
        return say[0]

    assert table(pa.array([1.0, 0.5, 2.0])) == (
        f"data: the labels in the column 'label' of {path} are numbers such as 0.5, which are not classes; "
        "no labels are used"
    )
    assert "some rows of" in table(pa.array([1.0, float("nan"), 2.0]))
    assert "the column 'label' of" in (line := table(pa.array([[1], [2], [3]]))) and "is list<" in line

    np.savez(path.with_name("a.npz"), images=np.zeros((3, 8, 8), np.uint8), labels=[0.0, 0.25, 1.0])
    assert opened(path.with_name("a.npz"))[0] is None and "such as 0.25" in opened(path.with_name("a.npz"))[2][0]
    samples = [(f"{row}.json", json.dumps({"label": row / 2}).encode()) for row in range(3)]
    tars = tar(tmp_path / "a.tar", [*samples, *((f"{row}.png", png()) for row in range(3))])
    assert opened(tars)[0] is None and "such as 0.5" in opened(tars)[2][0]


def test_whole_numbers_text_and_truth_are_classes_in_every_source(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    for values, classes in (
        ([2.0, 10.0, 2.0], ["2", "10"]), (["x", "b", "x"], ["b", "x"]), ([True, False, True], ["False", "True"]),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", images=images, labels=values)
        found = opened(tmp_path / "a.npz")
        assert found[0] == classes and sorted(set(found[1] or [])) == [0, 1] and found[2] == []
    samples = [(f"{row}.json", json.dumps({"label": float(row)}).encode()) for row in (1, 2)] + [("3.cls", b"1.0")]
    tars = tar(tmp_path / "a.tar", [*samples, *((f"{row}.png", png()) for row in (1, 2, 3))])
    assert opened(tars) == (["1", "2"], [0, 1, 0], [])
    (tmp_path / "flat").mkdir()
    for row in range(3):
        (tmp_path / "flat" / f"{row}.png").write_bytes(png())
    table = tmp_path / "labels.csv"
    for column, classes, said in ((("3.0", "3", "11"), ["3", "11"], 0), (("0.1", "3", "11"), None, 1)):
        table.write_text("file,label\n" + "".join(f"{row}.png,{value}\n" for row, value in enumerate(column)))
        found = opened(tmp_path / "flat", str(table))
        assert found[0] == classes and len(found[2]) == said


def test_names_that_only_look_like_numbers_stay_as_they_are() -> None:
    def named(*values: object) -> list[str] | None:
        return as_classes(values, "the labels", lambda line: None)

    assert named("007", "008") == ["007", "008"] and named("1.5", "none") == ["1.5", "none"]
    assert named(2**63, 2**63 + 1) == [str(2**63), str(2**63 + 1)] and named("1e2", 100) == ["100", "100"]
    assert named("1.5", "2.5") is None and named(float("nan"), 1.0) is None and named("nan", "1") == ["nan", "1"]


def test_labels_are_unbalanced_above_one_and_a_half_times_an_even_share() -> None:
    assert is_unbalanced([120, 3, 1]) and is_unbalanced([16, 4]) and not is_unbalanced([15, 5])
    assert not is_unbalanced([10, 10, 11]) and not is_unbalanced([100]) and not is_unbalanced([])
