"""A search under Ray Tune on a real local cluster: stopped trials, kills, resumed searches. Run: pytest -m ray"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray import tune

from infogan_ray.cli.main import DONE, USAGE, main
from infogan_ray.distributed.train import head_monitor
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM
from infogan_ray.distributed.tune.asha_scheduler import SearchEvent
from infogan_ray.distributed.tune.search import SearchFailed, search
from infogan_ray.searches.asha import Decision
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.recipe import Recipe, load_recipe
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import RULES, winner
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training import disk_room
from infogan_ray.training.load_model import load
from tests.fault_injection import all_cpus_taken, processes_of
from tests.training.test_tracking import hparams_of, shown, steps

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

RECIPE = """
from ray import tune
from infogan_ray import Recipe

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


def processes_of_trials() -> list[psutil.Process]:
    """Ray names the process of a trial by its class."""
    return processes_of(os.getpid(), "ray::.*(Trial|Trainable)")


def wait_for_trial_processes() -> None:
    """Wait until no trial process is left: Ray does not wait for it, and the next test looks for its own."""
    _, remaining = psutil.wait_procs(processes_of_trials(), timeout=30)
    assert not remaining


def live_resources() -> set[str]:
    """Live actors and placement groups, without the one actor that Ray itself keeps in each cluster."""
    actors = {
        f"{actor['ActorClassName']} {key}"
        for key, actor in ray._private.state.actors().items()
        if actor["State"] != "DEAD" and actor["ActorClassName"] != "_AutoscalingCoordinatorActor"
    }
    groups = ray.util.placement_group_table().items()
    return actors | {f"placement group {key}" for key, group in groups if group["state"] != "REMOVED"}


def still_held_since(before: set[str]) -> set[str]:
    """What a finished search still holds, after waiting for up to 30 s. What existed ``before`` does not count."""
    deadline = time.monotonic() + 30
    while (left := live_resources() - before) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def decisions(directory: SearchDirectory, recipe: Recipe) -> list[int | None]:
    halving = directory.halving()
    return [halving.stopped_at(trial) for trial in range(recipe.count)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_reports_that_its_trials_wait_for_room(
    workers: int, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_monitor, "QUIET_S", 1.0)
    recipe = dataclasses.replace(load_recipe(recipe_file), trials=1, workers=workers)
    with all_cpus_taken() as cpu_holder:
        messages: list[str] = []

        def listen(event: SearchEvent) -> None:
            messages.append(event.get("say", ""))
            if messages[-1] == WAITING_FOR_ROOM:
                ray.kill(cpu_holder)

        result = search(recipe, open_storage(tmp_path / "runs"), "waits", listen=listen)
    assert messages.count(WAITING_FOR_ROOM) == 1 and result.best["state"] == "finished"
    wait_for_trial_processes()


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_stops_trials_ranks_the_others_and_its_best_is_pulled(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, messages, seen = load_recipe(recipe_file), list[str](), set[int]()

    def listen(event: SearchEvent) -> None:
        """Kill the process of a trial once."""
        messages.append(event.get("say", ""))
        trials = processes_of_trials()
        if trials and not seen:  # the first event is about the data
            trials[0].kill()
        seen.update(p.pid for p in trials)

    before = live_resources()
    result = search(recipe, open_storage(tmp_path / "runs"), "reference", listen=listen)
    assert [line for line in messages if line.endswith("its process died; the trial restarts")]
    assert [row["trial"] for row in result.rows if row["state"] == "stopped"] and result.best["state"] == "finished"
    halving = result.search.halving()
    assert Decision.WAIT not in [halving.decision(trial) for trial in range(recipe.count)], (
        "every decision is made at the end"
    )
    assert {row["trial"] for row in result.rows if row["state"] == "stopped"} == {
        trial for trial, rung in enumerate(decisions(result.search, recipe)) if rung is not None
    }
    assert any("is stopped" in line for line in messages) and any("continues" in line for line in messages)
    assert not still_held_since(before)
    assert len(seen) >= 2
    wait_for_trial_processes()

    where = str(tmp_path / "runs" / "reference")
    capsys.readouterr()
    assert main(["runs", where, "--json"]) == DONE
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows == json.loads(result.search.folder.read("leaderboard.json"))["rows"] == result.rows
    assert main(["pull", where, str(tmp_path / "best")]) == DONE
    assert main(["pull", where, str(tmp_path / "other"), "--metric", "clustering_error"]) == DONE
    lowest = min(row["clustering_error"] for row in rows if row["state"] == "finished")
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["clustering_error"] == lowest
    assert main(["pull", f"{where}/trials/trial_0000", str(tmp_path / "no"), "--select", "bound"]) == USAGE
    assert "--select bound is for a search" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "best"), "--samples", "200", "--json"]) == DONE
    measured = json.loads(capsys.readouterr().out)
    for name in ("mi_fraction", "swd", "clustering_error"):
        assert measured[name] == pytest.approx(result.best[name], rel=1e-5), (
            "the pulled model equals the leaderboard row"
        )
    assert load(tmp_path / "best").spec.network.width == 8

    for row in rows:
        found = shown(tmp_path / "runs" / "reference" / "trials" / f"trial_{row['trial']:04d}")
        values = result.search.description()["values"][row["trial"]]
        assert len(values) == 2 and values.items() <= hparams_of(found).items()
        evaluated = steps(found, "achieved/mi_fraction")
        if row["state"] == "finished":
            assert steps(found, "achieved/swd") == evaluated[-1:]
        assert len(evaluated) == len(set(evaluated)) and evaluated[0] == 10


@pytest.mark.slow
def test_a_killed_and_resumed_search_makes_the_same_decisions(recipe_file: Path, tmp_path: Path) -> None:
    """One search is not interrupted. The other is killed three times, early and late."""
    recipe = load_recipe(recipe_file)

    def run(name: str, *more: str, kill_when: Callable[[str], bool] = lambda output: False) -> tuple[int, str]:
        command = [sys.executable, "-c", "from infogan_ray.cli.main import main; raise SystemExit(main())", "search"]
        command += [str(recipe_file), "--storage", str(tmp_path / "runs"), "--name", name, *more]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        known: list[psutil.Process] = []
        try:
            assert process.stderr is not None
            output = ""
            for line in process.stderr:
                output += line
                known = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else known
                if kill_when(output):
                    os.kill(process.pid, signal.SIGKILL)
                    break
            code = process.wait(timeout=120)
            psutil.wait_procs(known, timeout=30)
            return code, output
        finally:
            for survivor in [*known, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
                if survivor.is_running():
                    survivor.kill()

    assert run("reference")[0] == 0
    over = re.compile("trial . ?: (finished|.* is stopped)")
    for resume, moment in (
        ([], lambda output: " images, " in output),
        (["--resume"], lambda output: output.count(" images, ") >= 3),
        (["--resume"], lambda output: len(over.findall(output)) >= 3 or "is stopped" in output),
    ):
        assert run("killed", *resume, kill_when=moment)[0] == -signal.SIGKILL
    code, output = run("killed", "--resume")
    assert code == 0, output
    reference, killed = (SearchDirectory(open_storage(tmp_path / "runs" / name)) for name in ("reference", "killed"))
    assert decisions(reference, recipe) == decisions(killed, recipe)
    for rule in RULES:
        picks = [winner(leaderboard(directory), recipe.metric, rule) for directory in (reference, killed)]
        assert picks[0] == picks[1], "to the last digit"


def small(npz: Path, **changes: Any) -> Recipe:
    fixed = {
        "data": str(npz), "codes": "noise=4 cat=3", "batch_size": 16, "network.width": 8, "device": "cpu",
        "precision": "fp32", "evaluation.samples": 200,
    }  # fmt: skip
    space = {"objective.lambda_categorical": tune.uniform(0.2, 3.0)}
    return Recipe(**{"space": space, "fixed": fixed, "budget": 480, "grace": 160, "trials": 4, **changes})


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_two_workers_release_their_workers(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster has four CPUs: two trials at once, and a third one only if the first gives its workers back."""
    monkeypatch.chdir(npz.parent)  # a path relative to this directory
    recipe = small(Path(npz.name), workers=2, reduction=2, budget=640)
    before = live_resources()
    result = search(recipe, open_storage(tmp_path), "pairs")
    states = [row["state"] for row in sorted(result.rows, key=lambda row: row["trial"])]
    expected = ["finished" if rung is None else "stopped" for rung in decisions(result.search, recipe)]
    assert states == expected and "stopped" in states
    good, _ = checkpoints.list_checkpoints(result.search.trial(result.best["trial"]).checkpoints)
    assert [checkpoint.state["world_size"] for checkpoint in good] == [2] * len(good)
    assert not still_held_since(before)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_optuna_proposes_the_same_trials_after_a_kill(npz: Path, tmp_path: Path) -> None:
    recipe = small(npz, searcher="optuna", generation=2, trials=4, budget=320)
    result = search(recipe, open_storage(tmp_path), "once")
    about = result.search.description()
    assert len(result.rows) == recipe.count == 4
    # The same files as after a kill between two generations.
    again = SearchDirectory(open_storage(tmp_path) / "again")
    shutil.copytree(tmp_path / "once", tmp_path / "again")
    for number in (2, 3):
        shutil.rmtree(tmp_path / "again" / "trials" / f"trial_{number:04d}")
    kept = {name: about[name][:2] for name in ("values", "trials")}
    again.folder.write("search.json", json.dumps({**about, **kept}).encode())
    events = [event for event in json.loads(again.folder.read("events.json")) if event["trial"] < 2]
    again.folder.write("events.json", json.dumps(events).encode())
    resumed = search(recipe, open_storage(tmp_path), "again", resume=True)
    assert {**again.description(), "threads": 1} == {**about, "threads": 1}
    assert resumed.best == result.best, "to the last digit"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_out_of_memory_trial_fails_with_advice_and_the_others_finish(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "_check_one_fits", lambda *_: None)  # no disk has room for such checkpoints
    fixed = {path: value for path, value in small(npz).fixed.items() if path != "network.width"}

    def widths(*values: int) -> Recipe:
        return small(npz, searcher="grid", space={"network.width": tune.grid_search(list(values))}, fixed=fixed)

    messages: list[str] = []
    advice = "out of memory with batch_size 16 and network.width 4000000; use smaller values in the recipe"
    result = search(
        widths(8, 4_000_000), open_storage(tmp_path), "one", listen=lambda n: messages.append(n.get("say", ""))
    )
    assert result.best["trial"] == 0 and {row["trial"]: row["state"] for row in result.rows}[1] == "failed"
    assert sum(line.startswith(f"trial 1: failed: {advice}") for line in messages) == 1, "not tried again"
    with pytest.raises(SearchFailed, match=f"no trial of all finished; the first cause: {advice}"):
        search(widths(4_000_000, 5_000_000), open_storage(tmp_path), "all")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_diverges_ends_and_the_others_finish(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"objective.lambda_categorical": tune.grid_search([1e38, 1.0])}
    result = search(small(npz, searcher="grid", space=space), open_storage(tmp_path), "diverges")
    assert capsys.readouterr().out == "", "Tune prints nothing, even for a trial without a score"
    assert {row["trial"]: row["state"] for row in result.rows} == {0: "diverged", 1: "finished"}
    assert result.best["trial"] == 1 and " at step " in result.search.trial(0).get_status()["message"]
