"""A search under Ray Tune on a real local cluster; killed, and gone on with. Run: make test-ray"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infogan_ray.cli import DONE, main
from infogan_ray.distributed.search import search
from infogan_ray.halving import Verdict
from infogan_ray.model import load
from infogan_ray.recipes import Recipe, load_recipe
from infogan_ray.searches import SearchDirectory, winner
from infogan_ray.storage import open_storage

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

RECIPE = """
from ray import tune
from infogan_ray.recipes import Recipe

recipe = Recipe(
    space={{
        "objective.lambda_categorical": tune.uniform(0.2, 3.0), "optimizer.lr_generator": tune.loguniform(1e-4, 1e-2)
    }},
    fixed={{
        "data": {data!r}, "codes": "noise=4 cat=3 uniform=1", "batch_size": 16, "network.width": 8, "device": "cpu",
        "precision": "fp32", "evaluation.samples": 200,
    }},
    budget=16 * 90, grace=16 * 10, trials=6,
)
"""


@pytest.fixture
def recipe_file(npz: Path, tmp_path: Path) -> Path:
    file = tmp_path / "bars.py"
    file.write_text(RECIPE.format(data=str(npz)))
    return file


def decisions(directory: SearchDirectory, recipe: Recipe) -> list[int | None]:
    halving = directory.halving()
    return [halving.stopped_at(trial) for trial in range(recipe.count)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_stops_trials_ranks_the_others_and_is_pulled(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, heard, seen = load_recipe(recipe_file), list[str](), set[int]()

    def listen(line: str) -> None:
        """Kills the process of a trial once."""
        heard.append(line)
        trials = [p for p in psutil.Process().children(recursive=True) if "ImplicitFunc" in p.name()]
        if not seen:
            trials[0].kill()
        seen.update(p.pid for p in trials)

    result = search(recipe, open_storage(tmp_path / "runs"), "calm", listen=listen)
    assert [line for line in heard if line.endswith("its process died; it is started again")]
    assert [row["trial"] for row in result.rows if row["state"] == "stopped"] and result.best["state"] == "finished"
    halving = result.search.halving()
    assert Verdict.WAIT not in [halving.verdict(trial) for trial in range(recipe.count)], "all is decided at the end"
    assert {row["trial"] for row in result.rows if row["state"] == "stopped"} == {
        trial for trial, rung in enumerate(decisions(result.search, recipe)) if rung is not None
    }
    assert any("is stopped" in line for line in heard) and any("goes on" in line for line in heard)
    left = [p for p in psutil.Process().children(recursive=True) if "ImplicitFunc" in p.name()]
    _, staying = psutil.wait_procs(left, timeout=30)
    assert len(seen) >= 2 and not staying, "no trial's process is left"

    where = str(tmp_path / "runs" / "calm")
    capsys.readouterr()
    assert main(["runs", where, "--json"]) == DONE
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows == json.loads(result.search.folder.read("leaderboard.json"))["rows"] == result.rows
    assert main(["pull", where, str(tmp_path / "best")]) == DONE
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "best"), "--samples", "200", "--json"]) == DONE
    measured = json.loads(capsys.readouterr().out)
    for name in ("mi_fraction", "swd", "clustering_error"):
        assert measured[name] == pytest.approx(result.best[name], rel=1e-5), "what is pulled is what the board says"
    assert load(tmp_path / "best").spec.network.width == 8


def test_a_killed_search_goes_on_to_the_same_decisions(recipe_file: Path, tmp_path: Path) -> None:
    """Processes of their own, with an embedded Ray: undisturbed, and killed after the second word on a trial."""
    recipe = load_recipe(recipe_file)

    def run(name: str, *more: str, kill_after: int | None = None) -> tuple[int, str]:
        command = [sys.executable, "-c", "from infogan_ray.cli import main; raise SystemExit(main())", "search"]
        command += [str(recipe_file), "--storage", str(tmp_path / "runs"), "--name", name, *more]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        known: list[psutil.Process] = []
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                known = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else known
                if kill_after is not None and said.count(" images, ") >= kill_after:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            code = process.wait(timeout=120)
            psutil.wait_procs(known, timeout=30)
            return code, said
        finally:
            for survivor in [*known, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
                if survivor.is_running():
                    survivor.kill()

    assert run("calm")[0] == 0
    assert run("killed", kill_after=2)[0] == -signal.SIGKILL
    assert run("killed", "--resume", kill_after=3)[0] == -signal.SIGKILL
    code, said = run("killed", "--resume")
    assert code == 0, said
    calm, killed = (SearchDirectory(open_storage(tmp_path / "runs" / name)) for name in ("calm", "killed"))
    assert decisions(calm, recipe) == decisions(killed, recipe)
    for rule in ("gated", "bound", "quality"):
        picks = [winner(directory.board(), recipe.metric, rule) for directory in (calm, killed)]
        assert picks[0] == picks[1], "to the last figure"
