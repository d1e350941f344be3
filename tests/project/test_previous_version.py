"""What an earlier version has written is read: a run, a search and a model folder of d57b31e.

Run: pytest tests/project/test_previous_version.py

The fixture was made by that commit: ``images.npz`` (96 images, three classes), ``runs/small`` (20 steps, checkpoints of
steps 10 and 20, a model folder) and ``runs/search`` (two finished trials of ``recipe.py``), made in /data.
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
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = "train --data images.npz --batch-size 8 --network.width 4 --evaluation.samples 200 --storage runs --name small"


def test_its_run_resumes_from_its_last_checkpoint(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RUN.split(), "--codes", "noise=4 cat=3 uniform=1", "--threads", "1"]
    assert main([*words, "--steps", "30", "--checkpoint-every", "10", "--resume"]) == DONE
    assert "resumed from step 20" in capsys.readouterr().err
    last = checkpoints.choose(
        open_storage("runs") / "small" / "checkpoints", "last", "mi_fraction", lower_is_better=False
    )
    assert last.step == 30
    lines = [json.loads(line) for line in (before / "runs/small/metrics.jsonl").read_text().splitlines()]
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
def test_its_runs_searches_and_models_are_read(before: Path, words: str) -> None:
    Path("old.yaml").write_text(
        json.dumps(json.loads(Path("runs/small/config.json").read_text())["run"] | {"steps": 2})
    )
    assert main(words.split()) == DONE


def test_its_model_draws_and_reads_images(before: Path) -> None:
    model = infogan_ray.load("runs/small/model")
    assert list(model.codes) == ["cat0", "uniform0"]
    images = model.sample(4, codes={"cat0": 2}, seed=0)
    assert images.shape == (4, 1, 16, 16)
    assert set(model.encode(images)) >= {"cat0", "uniform0"}


def test_its_search_is_known_to_be_done(before: Path) -> None:
    board = leaderboard(SearchDirectory(open_storage("runs") / "search"))
    assert [row["state"] for row in board] == ["finished", "finished"]
    assert all(row["step"] == 20 for row in board)
