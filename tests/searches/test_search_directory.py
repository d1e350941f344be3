"""A search on storage, its leaderboard and its selection rules. Run: pytest tests/searches/test_search_directory.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infogan_ray import Recipe, UserError
from infogan_ray.cli.search import explain
from infogan_ray.searches.leaderboard import leaderboard, publish_leaderboard
from infogan_ray.searches.search_directory import SearchDirectory, code, remaining
from infogan_ray.searches.selection_rules import best_by, pareto, ranked, winner
from infogan_ray.storage import manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunExists
from infogan_ray.training.json_difference import difference
from infogan_ray.web.reports.search import search_report

tune = pytest.importorskip("ray.tune")


def row(
    trial: int, bound: float | None, swd: float | None, state: str = "finished", images: int = 100
) -> dict[str, Any]:
    return {"trial": trial, "mi_fraction": bound, "swd": swd, "state": state, "images": images}


ROWS = [
    row(0, 0.99, 90.0),  # the best bound, with a three times larger image distance
    row(1, 0.95, 40.0),
    row(2, 0.90, 30.0),
    row(3, 0.90, 35.0),  # worse than trial 2
    row(4, float("nan"), 10.0),
    row(5, 0.999, None, state="stopped", images=50),
]


def test_each_selection_rule_picks_its_winner() -> None:
    picks = {rule: winner(ROWS, "mi_fraction", rule) for rule in ("gated", "bound", "quality")}
    assert {rule: found and found["trial"] for rule, found in picks.items()} == {"gated": 1, "bound": 0, "quality": 2}
    assert winner(ROWS, "mi_fraction", "agreement") is None, "agreement was not measured"
    without = winner(ROWS, "mi_fraction", "sorting")
    assert without is not None and without["trial"] == 1, "without categories, the gated bound decides"
    scored = [{**row, "q_score": score} for row, score in zip(ROWS, [0.99, 0.3, 0.8, 0.4, 1, 1], strict=True)]
    by_score = winner(scored, "q_score", "bound")
    assert by_score is not None and by_score["trial"] == 0, "the rule bound does not use the metric of the rungs"
    assert [row["trial"] for row in pareto(scored, "q_score")] == [0, 1, 2]
    chosen = best_by(scored, "swd")
    assert chosen is not None and chosen["trial"] == 4 and best_by(ROWS, "nmi") is None
    with pytest.raises(ValueError, match="metric is 'mi'; for a search, valid are mi_fraction, .*, nmi"):
        best_by(ROWS, "mi")
    found = winner(scored, "mi_fraction", "sorting")
    assert found is not None and found["trial"] == 2, "the best score among trials with good images"
    assert [found["trial"] for found in pareto(ROWS, "mi_fraction")] == [0, 1, 2]
    assert [found["trial"] for found in ranked(ROWS, "mi_fraction", "gated")][:4] == [1, 2, 3, 0]
    assert winner(ROWS[4:], "mi_fraction", "gated") is None, "a trial with NaN and a stopped trial never win"
    with pytest.raises(ValueError, match="select is 'best'; valid are sorting, agreement, gated, bound, quality"):
        winner(ROWS, "mi_fraction", "best")


def test_a_search_without_categories_suggests_compare() -> None:
    *_, last = explain(ROWS, "mi_fraction", "runs/my search")
    assert last.endswith("to find the trial whose codes agree most with the others: infogan compare 'runs/my search'")
    for rows in (ROWS[:2], [{**row, "q_score": 0.5} for row in ROWS]):
        assert "compare" not in "".join(explain(rows, "mi_fraction", "runs/s"))


def test_a_search_is_resumed_only_with_the_same_recipe(tmp_path: Path) -> None:
    def recipe(high: float = 2.0, **changes: Any) -> Recipe:
        space = {"objective.lambda_categorical": tune.uniform(0.5, high)}
        return Recipe(**{"space": space, "preset": "mnist", "budget": 9000, "grace": 1000, "trials": 3, **changes})

    storage = open_storage(tmp_path)
    with pytest.raises(ValueError, match="has no such search"):
        SearchDirectory.claim(storage, "s", recipe().describe(), resume=True)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".search.json.12345678.tmp").write_text("cut sh")  # a kill during the first write
    search = SearchDirectory.claim(storage, "s", recipe().describe(), resume=False)
    with pytest.raises(RunExists, match="name 's' is taken"):
        SearchDirectory.claim(storage, "s", recipe().describe(), resume=False)
    assert SearchDirectory.claim(storage, "s", recipe().describe(), resume=True) == search
    for other, message in (
        (recipe(high=3.0), "space.objective.lambda_categorical.upper is 3.0, and was 2.0"),
        (recipe(trials=4), "count is 4, and was 3"),
        (recipe(reduction=2), "reduction is 2, and was 3"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another search: {message}.*--accept-changes"):
            SearchDirectory.claim(storage, "s", other.describe(), resume=True)


def test_changes_are_accepted_only_for_trials_that_have_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(low: float) -> Recipe:
        space = {"objective.lambda_categorical": tune.uniform(low, 2.0)}
        return Recipe(space=space, preset="mnist", budget=9000, grace=1000, trials=3)

    storage = open_storage(tmp_path)
    old, new = recipe(0.5), recipe(1.0)
    search = SearchDirectory.claim(storage, "s", old.describe(), resume=False)
    for number in range(3):  # a search prepares all trials; a trial sets its first status
        search.trial(number).write_config({"run": old.config(number).to_dict()})
    search.trial(1).set_status("running", 5)
    SearchDirectory.claim(storage, "s", new.describe(), resume=True, accept_changes=True)
    about = search.description()
    assert about["values"] == [new.values(0), old.values(1), new.values(2)]
    assert [trial["objective"]["lambda_categorical"] for trial in about["trials"]] == [
        new.values(0)["objective.lambda_categorical"],
        old.values(1)["objective.lambda_categorical"],
        new.values(2)["objective.lambda_categorical"],
    ]
    assert len(about["changes"]) == 1 and "and was" in about["changes"][0]
    SearchDirectory.claim(storage, "s", new.describe(), resume=True)
    assert search.description() == about, "accepted changes stay accepted"

    monkeypatch.setattr("infogan_ray.searches.search_directory.code", lambda: {**code(), "models/losses": "edited"})
    with pytest.raises(ValueError, match="code.models/losses is 'edited', and was"):
        SearchDirectory.claim(storage, "s", new.describe(), resume=True)


def test_a_resumed_search_keeps_rungs_and_finished_trials(tmp_path: Path) -> None:
    recipe = Recipe(
        space={"objective.lambda_categorical": tune.uniform(0.5, 2.0)},
        preset="mnist",
        budget=9000,
        grace=1000,
        trials=5,
    )
    search = SearchDirectory.claim(open_storage(tmp_path), "s", recipe.describe(), resume=False)
    halving = search.halving()
    for trial, score in enumerate([0.5, 0.4, 0.6]):
        halving.report(trial, 1000, score)
    search.save_events(halving)
    search.trial(0).set_status("finished", 70)
    search.trial(2).set_status("diverged", 20)
    again = SearchDirectory.claim(open_storage(tmp_path), "s", recipe.describe(), resume=True).halving()
    assert again.events == halving.events and again.stopped_at(1) == 1000
    assert remaining(search, again, 5) == [3, 4]
    for step, score in ((8, 0.7), (24, 0.8)):
        line = json.dumps({"step": step, "mi_fraction": score}) + "\n" + json.dumps({"step": step + 1, "d_loss": 1.0})
        old = search.trial(4).folder.read("metrics.jsonl") if search.trial(4).folder.is_file("metrics.jsonl") else b""
        search.trial(4).folder.write("metrics.jsonl", old + line.encode() + b"\n")
    assert search.scores(4) == [(8 * 128, 0.7), (24 * 128, 0.8)], (
        "scores that were measured but may be missing in the events"
    )
    again.end(3)
    assert remaining(search, again, 5) == [4], "a failed trial is not repeated"
    (tmp_path / "s" / "trials" / "trial_0000" / "checkpoints").symlink_to(tmp_path)
    states = {row["trial"]: row["state"] for row in leaderboard(search)}
    assert states[2] == "diverged" and states[0].startswith("finished, "), "a broken trial does not hide the others"


def test_a_population_search_is_listed_and_not_resumed(tmp_path: Path) -> None:
    """The fields are from the last version with that searcher: two members, three stages, parents."""
    recipe = Recipe(
        space={"objective.lambda_categorical": tune.uniform(0.5, 2.0)},
        preset="mnist",
        budget=3000,
        grace=1000,
        trials=6,
    )
    described = recipe.describe()
    for trial, about in enumerate(described["trials"]):
        about["steps"] = -(-1000 * (trial // 2 + 1) // about["batch_size"])
    parents = {"searcher": "population", "generation": 2, "parents": [None, None, 1, 1, 2, 3]}
    storage = open_storage(tmp_path)
    search = SearchDirectory.claim(storage, "s", {**described, **parents}, resume=False)
    for trial in range(6):
        run, steps = search.trial(trial), described["trials"][trial]["steps"]
        run.set_status("finished", steps)
        metrics = {"step": steps, "mi_fraction": 0.1 * trial, "swd": 30.0}
        manifests.write_with_manifest(run.model, {"metrics.json": json.dumps(metrics).encode()})
    rows = {row["trial"]: row for row in leaderboard(search)}
    assert [rows[trial]["state"] for trial in range(6)] == ["continued"] * 4 + ["finished"] * 2
    assert [rows[trial]["parent"] for trial in range(6)] == parents["parents"]
    best = winner(publish_leaderboard(search), "mi_fraction", "gated")
    assert best is not None and best["trial"] == 5
    search.folder.write(search.BOARD, search.folder.read(search.BOARD).replace(b'"continued"', b'"handed on"'))
    page = search_report(search)
    assert "a population copies weights between trials" in page and "handed on" not in page
    with pytest.raises(UserError, match="name 's' is a search by the searcher 'population', which was removed"):
        SearchDirectory.claim(storage, "s", recipe.describe(), resume=True, accept_changes=True)


def test_a_search_of_an_earlier_version_is_resumed_if_code_changes_are_accepted(tmp_path: Path) -> None:
    def recipe() -> Recipe:
        space = {"objective.lambda_categorical": tune.uniform(0.5, 2.0)}
        return Recipe(space=space, preset="mnist", budget=9000, grace=1000, trials=2)

    storage, described = open_storage(tmp_path), recipe().describe()
    search = SearchDirectory.claim(storage, "s", {**described, "parents": [None, None]}, resume=False)
    assert SearchDirectory.claim(storage, "s", described, resume=True) == search, "parents are not compared"
    search.folder.write(search.SEARCH, json.dumps({**search.description(), "code": {"objective": "0a1b2c"}}).encode())
    with pytest.raises(UserError, match="code.objective is missing; .*--accept-changes"):
        SearchDirectory.claim(storage, "s", described, resume=True)
    SearchDirectory.claim(storage, "s", described, resume=True, accept_changes=True)
    assert search.description()["trials"] == described["trials"] and "parent" not in str(leaderboard(search))


def test_a_difference_is_reported_with_its_path() -> None:
    old = {"a": {"b": [1, {"c": 2}]}, "d": 1}
    assert difference(old, {"a": {"b": [1, {"c": 2}]}, "d": 1}) == ""
    assert difference(old, {"a": {"b": [1, {"c": 3}]}, "d": 1}) == "a.b[1].c is 3, and was 2"
    assert difference(old, {"a": {"b": [1, {"c": 2}]}}) == "d is missing"
    assert difference({}, {"x": 1}) == "x is new"


def test_a_resumed_search_keeps_its_flags_unless_they_are_given(tmp_path: Path) -> None:
    from infogan_ray.cli.search import parse_search, with_own_flags

    kept = {"trials": 8, "early_stopping": False, "threads": 2, "data": "photos", "data_dir": None}
    storage = open_storage(tmp_path)
    described = Recipe({"seed": tune.choice([1, 2])}, budget=1600, grace=160, fixed={"data": "x"}).describe()
    search = SearchDirectory.claim(storage, "s", {**described, "flags": kept, "threads": 2}, resume=False)

    def resumed(*words: str) -> dict[str, Any]:
        arguments = ["recipe.py", "--storage", str(tmp_path), "--name", "s", "--resume", *words]
        found = with_own_flags(parse_search(arguments), arguments, search)
        return {flag: getattr(found, flag) for flag in kept}

    assert resumed() == kept
    assert resumed("--early-stopping", "--trials=9") == {**kept, "early_stopping": True, "trials": 9}
    assert SearchDirectory.claim(storage, "s", {**described, "threads": 4}, resume=True) == search
