"""A run, a search and a model folder written by an earlier version (d57b31e) can be read.

Run: pytest tests/project/test_previous_version.py

That commit wrote the fixture in /data: ``images.npz`` (96 images, three classes), ``runs/small`` (20 steps, checkpoints
of steps 10 and 20, a model folder) and ``runs/search`` (two finished trials of ``recipe.py``).
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import infogan_ray
from infogan_ray.cli.main import DONE, main
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "d57b31e.tar.xz"


@pytest.fixture
def earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)  # without a filter, which Python 3.11.2 does not have; the archive is our own
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = "train --data images.npz --batch-size 8 --network.width 4 --evaluation.samples 200 --storage runs --name small"


def test_a_run_of_an_earlier_version_resumes_from_its_last_checkpoint(
    earlier_version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RUN.split(), "--codes", "noise=4 cat=3 uniform=1", "--threads", "1"]
    assert main([*words, "--steps", "30", "--checkpoint-every", "10", "--resume"]) == DONE
    assert "resumed from step 20" in capsys.readouterr().err
    last = checkpoints.choose(
        open_storage("runs") / "small" / "checkpoints", "last", "mi_fraction", lower_is_better=False
    )
    assert last.step == 30
    lines = [json.loads(line) for line in (earlier_version / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert {10, 20, 30} <= {line["step"] for line in lines if "mi_bound" in line}


@pytest.mark.parametrize(
    "words",
    [
        "runs runs", "runs runs/small", "runs runs/search", "pull runs/small pulled", "pull runs/search pulled",
        "pull runs/small pulled --checkpoint step_00000010", "evaluate runs/small/model --data images.npz --json",
        "evaluate runs/small --data images.npz", "traverse runs/small/model -o grid.png", "report runs/search",
        "sample runs/small/model --set cat0=1 -o one.png", "encode runs/small/model images.npz -o codes.parquet",
        "export runs/small/model --format torch -o graphs", "report runs/small",
        "train old.yaml --storage runs --name again",
    ],
)  # fmt: skip
def test_runs_searches_and_models_of_an_earlier_version_are_read(earlier_version: Path, words: str) -> None:
    Path("old.yaml").write_text(
        json.dumps(json.loads(Path("runs/small/config.json").read_text())["run"] | {"steps": 2})
    )
    assert main(words.split()) == DONE


def test_a_model_of_an_earlier_version_generates_and_encodes_images(earlier_version: Path) -> None:
    model = infogan_ray.load("runs/small/model")
    assert list(model.codes) == ["cat0", "uniform0"]
    images = model.sample(4, codes={"cat0": 2}, seed=0)
    assert images.shape == (4, 1, 16, 16)
    assert set(model.encode(images)) >= {"cat0", "uniform0"}


def test_a_search_of_an_earlier_version_is_finished(earlier_version: Path) -> None:
    board = leaderboard(SearchDirectory(open_storage("runs") / "search"))
    assert [row["state"] for row in board] == ["finished", "finished"]
    assert all(row["step"] == 20 for row in board)
