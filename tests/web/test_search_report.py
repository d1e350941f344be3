"""The report of a search, from folders that the tests write. Run: pytest tests/web/test_search_report.py"""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infogan_ray.models.traversal import png
from infogan_ray.searches.asha import Halving
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, RULES, SCORE_OF
from infogan_ray.storage import manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.config import RunConfig
from infogan_ray.web.reports import findings
from infogan_ray.web.reports.charts import SLOTS, Point, Series, line_chart, scatter
from infogan_ray.web.reports.decisions import decisions
from infogan_ray.web.reports.markup import escape
from infogan_ray.web.reports.parallel import Line, parallel_coordinates
from infogan_ray.web.reports.search import search_report, write_search_report
from tests.servers import Proxy

SVG = "{http://www.w3.org/2000/svg}"
BATCH = 100
SCORED = {SCORE_OF[DEFAULT]: 0.625} if DEFAULT in SCORE_OF else {}
PICTURE = png(Image.new("L", (4, 4)))


def make_search(folder: Path | str, values: list[dict[str, Any]], **changes: Any) -> SearchDirectory:
    """A search with rungs at 1,000 and 3,000 of 9,000 images, before any trial starts."""
    base = RunConfig(preset="mnist").override({"batch_size": BATCH, "steps": 90}, "test").to_dict()
    about = {
        "version": "0.1.0", "metric": "mi_fraction", "budget": 9000, "grace": 1000, "reduction": 3,
        "early_stopping": True, "searcher": "random", "seed": 0, "count": len(values), "values": values,
        "parents": [None] * len(values),
        "trials": [{**base, "name": f"trial_{number:04d}", "seed": number} for number in range(len(values))],
    }  # fmt: skip
    search = SearchDirectory(open_storage(folder) / "s")
    search.folder.write(search.SEARCH, json.dumps({**about, **changes}).encode())
    return search


def test_the_ceiling_of_a_learned_prior_uses_the_learned_probabilities(tmp_path: Path) -> None:
    search = make_search(tmp_path, [{}, {}])
    run_trial(search, 0, "training", {10: 0.5})
    run_trial(search, 1, "training", {10: 0.5})
    learned = {f"prior/cat0/{category}": 0.55 if category == 0 else 0.05 for category in range(10)}
    run = search.trial(1)
    run.folder.write(run.METRICS, run.folder.read(run.METRICS) + json.dumps({"step": 20, **learned}).encode() + b"\n")
    uniform, other = findings.read(search).trials
    assert uniform.ceilings["cat0"] == pytest.approx(math.log(10))
    assert other.ceilings["cat0"] == pytest.approx(-0.55 * math.log(0.55) - 9 * 0.05 * math.log(0.05))


def run_trial(search: SearchDirectory, number: int, state: str, bounds: dict[int, float], **final: Any) -> None:
    """Write a trial. ``bounds``: mi_fraction by step. ``final``: metrics of a finished trial's model folder."""
    run = search.trial(number)
    lines = [
        {"step": step, "d_loss": 1.3, "g_loss": 0.7, "mi_fraction": bound, "mi/cat0": 2.0 * bound}
        for step, bound in bounds.items()
    ]
    run.folder.write(run.METRICS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    run.set_status(state, max(bounds, default=0))
    if final:
        last = bounds[max(bounds)]
        metrics = {"mi_bound": 6 * last, "mi_fraction": last, **final}
        pictures = {"samples.png": PICTURE, "traversal_cat0.png": PICTURE}
        manifests.write_with_manifest(run.model, {"metrics.json": json.dumps(metrics).encode(), **pictures})


def report_events(search: SearchDirectory, *events: tuple[int, int | None, float]) -> None:
    """Report (trial, images, score). If images is None, the trial has ended."""
    halving = search.halving()
    for trial, images, score in events:
        if images is None:
            halving.end(trial)
        else:
            halving.report(trial, images, score)
    search.save_events(halving)


@pytest.fixture
def search(tmp_path: Path) -> SearchDirectory:
    """Two finished trials, where the better bound has worse images, and a stopped, diverged, running and new one."""
    values = [{"objective.lambda_categorical": 0.1 * 3**n, "codes": f"cat={n % 2 + 2}"} for n in range(6)]
    search = make_search(tmp_path, values)
    report_events(
        search,
        (0, 1000, 0.5), (1, 1000, 0.2), (2, 1000, 0.8), (3, 1000, 0.9), (0, 3000, 0.6), (2, 3000, 0.7), (0, None, 0),
        (2, None, 0), (3, None, 0),
    )  # fmt: skip
    run_trial(search, 0, "finished", {10: 0.5, 30: 0.6, 90: 0.9}, swd=40.0, clustering_error=0.125, **SCORED)
    run_trial(search, 1, "stopped", {10: 0.2})
    run_trial(search, 2, "finished", {10: 0.8, 30: 0.7, 90: 0.95}, swd=90.0, clustering_error=0.5)
    run_trial(search, 3, "diverged", {10: 0.9, 20: float("nan")})
    run_trial(search, 4, "running", {})
    return search


def parsed(page: str) -> ElementTree.Element:
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page)


def words(element: ElementTree.Element | None) -> str:
    assert element is not None
    return " ".join("".join(element.itertext()).split())


def labels(chart: ElementTree.Element) -> list[str]:
    """The visible texts of a chart, without tooltips."""
    return [(text.text or "") + "".join(child.tail or "" for child in text) for text in chart.iter(f"{SVG}text")]


def section(page: ElementTree.Element, anchor: str) -> ElementTree.Element:
    found = page.find(f".//section[@id='{anchor}']")
    assert found is not None
    return found


def table_rows(element: ElementTree.Element) -> list[list[str]]:
    return [[words(cell) for cell in row] for row in element.findall(".//tbody/tr")]


# Charts --------------------------------------------------------------------------------------------------------------


def test_every_line_has_a_label_and_non_finite_points_are_left_out() -> None:
    series = [
        Series("first", [(1000, 0.1), (2000, float("nan")), (3000, 0.3)], slot=0),
        Series("a <b> & c", [(1000, 0.2)], slot=1, faint=True, note="stopped"),
        Series("nothing", [(1000, float("inf"))], slot=2),
    ]
    chart = ElementTree.fromstring(
        line_chart("T", series, "images", "bound", log_x=True, ceiling=1.0, marks=[(0, "no"), (2000, "rung")])
    )
    assert chart.get("role") == "img" and "2 lines" in chart.get("aria-label", "")
    groups = {words(g.find(f"{SVG}title")): g for g in chart.iter(f"{SVG}g") if g.find(f"{SVG}title") is not None}
    assert set(groups) == {"first: 0.3 at 3000", "a <b> & c: 0.2 at 1000, stopped"}
    assert "faint" in groups["a <b> & c: 0.2 at 1000, stopped"].get("class", "")
    line = groups["first: 0.3 at 3000"].find(f"{SVG}path")
    assert line is not None and line.get("d", "").count("L") == 1, "two of three points are shown"
    texts = labels(chart)
    assert {"first", "a <b> & c", "ceiling 1", "rung"} <= set(texts) and "no" not in texts
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line.get("d", ""))]
    assert heights[0] > heights[1], "larger values are higher in the chart"


def test_extra_lines_are_grey_and_an_outlier_does_not_compress_the_axis() -> None:
    series = [Series(f"t{n}", [(x, n / 100) for x in range(9)], n if n < SLOTS else None) for n in range(200)]
    chart = ElementTree.fromstring(line_chart("T", series, "x", "y"))
    assert sum(label.startswith("t") for label in labels(chart)) == SLOTS and "grey: 188 others" in words(chart)
    wild = [Series("one", [(x, x / 100 if x != 50 else 1e9) for x in range(100)], 0)]
    ticks = labels(ElementTree.fromstring(line_chart("T", wild, "x", "y")))
    assert "0.5" in ticks and not any("M" in tick or "G" in tick for tick in ticks)


def test_a_scatter_marks_the_pareto_front() -> None:
    points = [
        Point("a", 0.9, 90, 0, True),
        Point("b", 0.8, 40, 1, True),
        Point("c", 0.7, 80),
        Point("d", 0.5, math.nan),
    ]
    chart = ElementTree.fromstring(scatter("T", points, "bound", "SWD", limit=60, limit_label="gate", log_y=True))
    assert sum(ring.get("class") == "ring" for ring in chart.iter(f"{SVG}circle")) == 2
    assert "c: bound 0.7, SWD 80" in words(chart) and "gate 60" in words(chart) and "d: bound" not in words(chart)
    for empty in (scatter("T", [], "x", "y"), line_chart("T", [], "x", "y"), parallel_coordinates("T", [], [], "y")):
        assert ElementTree.fromstring(empty).get("role") == "img"


def test_axes_are_linear_logarithmic_or_categorical() -> None:
    lines = [
        Line("best", {"rate": 1e-5, "width": 16, "codes": "<i>", "flag": True, "near": 2.0}, 0.9),
        Line("worst", {"rate": 1e-3, "width": 32, "codes": "cat=2", "flag": None, "near": 4.0}, 0.1),
        Line("stopped", {"rate": 1e-4, "width": 24, "codes": None}, 0.5, faint=True),
        Line("unmeasured", {"rate": 1e-4, "width": 24, "codes": "cat=2"}, float("nan")),
    ]
    axes = ["rate", "width", "codes", "flag", "near"]
    chart = ElementTree.fromstring(parallel_coordinates("T", lines, axes, "bound", log=["near"], faint_label="early"))
    texts = labels(chart)
    assert {"rate (log)", "near (log)", "width", "1e-5", "16", "<i>", "yes", "best", "bound"} <= set(texts)
    lines_in_chart = [g for g in chart.iter(f"{SVG}g") if "p " in g.get("class", "")]
    hues = {words(g.find(f"{SVG}title")).split(":")[0]: g.get("class") for g in lines_in_chart}
    assert hues == {"best": "p h6", "worst": "p h0", "stopped": "p none faint", "unmeasured": "p none"}
    assert words(lines_in_chart[-1].find(f"{SVG}title")).startswith("best"), (
        "the best line is last, on top of the others"
    )


# Decisions -----------------------------------------------------------------------------------------------------------


def test_the_outcome_texts_of_a_trial() -> None:
    halving = Halving((1000, 3000), 3)
    for trial, images, score in ((0, 1000, 0.5), (1, 1000, 0.2), (2, 1000, 0.9), (1, 3000, 0.99), (4, 1000, 0.1)):
        halving.report(trial, images, score)
    halving.end(2)
    assert halving.score(1, 1000) == 0.2 and halving.score(1, 3000) == 0.99

    def outcomes(trial: int, state: str) -> list[tuple[tuple[int, int] | None, str]]:
        return [(decision.place, decision.outcome) for decision in decisions(halving, trial, state)]

    assert outcomes(0, "running") == [((1, 1), "continued"), (None, "not reached yet")]
    assert outcomes(1, "stopped") == [((2, 2), "stopped"), (None, "continued, score ignored")]
    assert outcomes(2, "diverged, with a reason") == [((1, 3), "continued"), (None, "diverged")]
    assert outcomes(3, "not begun") == [(None, "not begun")] * 2
    assert outcomes(4, "running")[0] == (None, "waits for earlier trials")
    halving.end(3)
    assert outcomes(3, "failed") == [(None, "failed"), (None, "not reached")]


# The page ------------------------------------------------------------------------------------------------------------


def test_the_report_shows_all_trials_and_their_outcomes(search: SearchDirectory) -> None:
    write_search_report(search)
    page = search.folder.read(search.REPORT).decode()
    tree = parsed(page)
    head = words(tree.find("body"))
    assert f"The default rule, {DEFAULT}, picks trial 0: {RULES[DEFAULT]}" in head and "12.5%" in head
    assert f"infogan pull {search.folder.uri} best" in head
    assert "4 of 6 trials are over" in head and all(f"{name}{value}" in head for name, value in SCORED.items())
    assert "saved by early stopping22%" in head, "8,000 of the 36,000 images of the four ended trials"
    order = [element.get("id") for element in tree.iter("section")]
    assert order == ["picks", "board", "curves", "space", "rungs", "pictures", "recipe"]
    picked = {row[0]: row[2] for row in table_rows(section(tree, "picks"))}
    assert picked | {f"{DEFAULT} (default)": "0", "bound": "2", "quality": "0"} == picked
    heads = [words(head) for head in section(tree, "picks").iter("th")]
    assert heads == ["rule", "criterion", "trial", "mi_fraction", "swd", *SCORED, "clustering_error"]
    board = table_rows(section(tree, "board"))
    assert [row[:2] for row in board[:2]] == [["0", "finished"], ["2", "finished"]]
    assert {row[0]: row[1] for row in board} == {
        "0": "finished", "1": "stopped", "2": "finished", "3": "diverged", "4": "running", "5": "not begun"
    }  # fmt: skip
    cells = [row[:3] for row in table_rows(section(tree, "rungs"))]
    assert cells == [
        ["0", "0.5, place 1 of 1continued", "0.6, place 1 of 1continued"],
        ["1", "0.2, place 2 of 2stopped", "not reached"],
        ["2", "0.8, place 1 of 3continued", "0.7, place 1 of 2continued"],
        ["3", "0.9, place 1 of 4continued", "diverged"],
        ["4", "not reached yet", "not reached yet"],
        ["5", "not begun", "not begun"],
    ]
    titles = [words(title) for title in section(tree, "curves").iter(f"{SVG}title")]
    assert "trial 1: 0.2 at 1000, stopped" in titles and "trial 2: 0.95 at 9000" in titles
    pictures = list(section(tree, "pictures").iter("img"))
    assert len(pictures) == 4 and all(image.get("src", "").startswith("data:image/png;base64,") for image in pictures)
    assert "code cat0 of trial 0" in pictures[1].get("alt", "")
    assert "infogan train --preset mnist" in words(section(tree, "recipe"))


def test_the_report_has_no_external_references(search: SearchDirectory) -> None:
    page = search_report(search)
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"url\(|@import|<link|<iframe|<object", page)
    for element in parsed(page).iter():
        for name in ("src", "href", "action"):
            assert element.get(name, "#").startswith(("#", "data:image/png")), "only anchors and pictures in the page"
    assert "default-src 'none'" in page


def test_text_from_trials_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\" onload='x'\x00\ud800"
    values = [{"codes": bad, f"a.{bad}": n, "n": n} for n in range(3)]
    search = make_search(tmp_path, values, changes=[bad], version=bad)
    run_trial(search, 0, "finished", {90: 0.9}, swd=40.0)
    run_trial(search, 1, "finished", {90: 0.8}, swd=30.0)
    manifests.write_with_manifest(
        search.trial(1).model,
        {"metrics.json": b'{"mi_fraction": 0.8, "swd": 30}', "traversal_<script>.png": PICTURE, "b.png": b"<script>"},
    )
    run_trial(search, 2, f"failed {bad}", {10: 0.1})
    page = search_report(search)
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)" in page
    assert not any(element.get("onload") for element in parsed(page).iter())
    page.encode()


def test_a_new_search_has_a_report(tmp_path: Path) -> None:
    tree = parsed(search_report(make_search(tmp_path, [{"a": 1}, {"a": 2}])))
    assert "There is no winner: no trial has finished yet." in words(tree.find("body"))
    assert [row[:2] for row in table_rows(section(tree, "board"))] == [["0", "not begun"], ["1", "not begun"]]
    tree = parsed(search_report(make_search(tmp_path, [], count=8, searcher="optuna")))
    assert "0 of 8 trials are over" in words(tree.find("body"))


def test_one_trial_is_no_trials(tmp_path: Path) -> None:
    def text(search: SearchDirectory) -> str:
        return words(parsed(search_report(search)).find("body"))

    alone = make_search(tmp_path / "one", [{"a": 1}])
    assert "0 of 1 trial is over." in text(alone)
    run_trial(alone, 0, "finished", {90: 0.9}, swd=40.0)
    assert "of 1 finished trial, 1 in total" in text(alone) and "the only trial saw 9,000 images" in text(alone)
    two = make_search(tmp_path / "two", [{"a": 1}, {"a": 2}])
    run_trial(two, 0, "finished", {90: 0.9}, swd=40.0)
    assert "1 of 2 trials is over." in text(two) and "the trial that is over saw 9,000 images" in text(two)
    assert "1 trials" not in text(alone) + text(two)


def test_truncated_lines_and_broken_files_leave_only_a_gap(search: SearchDirectory) -> None:
    run = search.trial(0)
    run.folder.append(run.METRICS, b'{"step": 91, "mi_frac')
    search.trial(2).folder.delete("metrics.jsonl")
    search.folder.write(search.BOARD, b'{"rows": [{"tri')
    search.trial(2).model.write("samples.png", b"x" * len(PICTURE))  # the size equals that in the manifest
    page = search_report(search)
    assert "samples.png is not a PNG picture" in page
    titles = [words(title) for title in section(parsed(page), "curves").iter(f"{SVG}title")]
    assert "trial 0: 0.9 at 9000" in titles and not any(title.startswith("trial 2") for title in titles)


def test_a_saved_leaderboard_is_shown_with_any_field_until_the_search_continues(search: SearchDirectory) -> None:
    rows = [
        {"trial": 2, "state": "finished", "images": 9000, "mi_fraction": 0.9, "swd": 40.0, "q_new": 0.75, "list": [1]},
        {"trial": 0, "state": "finished", "images": 9000, "mi_fraction": 0.9, "swd": None, "q_new": None},
    ]
    rows += [{"trial": n, "state": "failed", "images": 0} for n in (1, 3, 4)]
    saved = {"metric": "mi_fraction", "rule": "new", "gate": 2.0, "picks": {"new": 2}, "pareto": [2], "rows": rows}
    search.folder.write(search.BOARD, json.dumps(saved).encode())
    tree = parsed(search_report(search))
    heads = [words(head) for head in section(tree, "board").iter("th")]
    assert "q_new" in heads and "list" not in heads
    first = dict(zip(heads, table_rows(section(tree, "board"))[0], strict=True))
    assert (first["trial"], first["picked by"], first["q_new"]) == ("2", "new, front", "0.75")
    older = {**saved, "rule": None, "picks": {"gated": 2, "bound": 0}}
    search.folder.write(search.BOARD, json.dumps(older).encode())
    assert "The default rule, gated, picks trial 2" in search_report(search)
    search.folder.write(search.BOARD, json.dumps(saved).replace("failed", "running").encode())
    assert "q_new" not in search_report(search), "the saved leaderboard was written during the search"
    search.folder.write(search.BOARD, json.dumps(saved).encode())
    run_trial(search, 5, "finished", {90: 0.99}, swd=20.0, **SCORED)
    tree = parsed(search_report(search))
    assert "q_new" not in words(section(tree, "board")), "an outdated leaderboard is computed again"
    assert f"The default rule, {DEFAULT}, picks trial 5" in words(tree.find("body"))


def test_without_early_stopping_the_report_shows_its_hypothetical_effect(tmp_path: Path) -> None:
    search = make_search(tmp_path, [{"a": 1}, {"a": 2}], early_stopping=False)
    report_events(search, (0, 1000, 0.5), (1, 1000, 0.2), (0, None, 0), (1, None, 0))
    run_trial(search, 0, "finished", {10: 0.5, 90: 0.6}, swd=40.0)
    run_trial(search, 1, "finished", {10: 0.2, 90: 0.9}, swd=40.0)
    rungs = section(parsed(search_report(search)), "rungs")
    assert [row[-1] for row in table_rows(rungs)] == ["continues", "stopped at 1,000"]
    assert "stopped 1 trial and saved 8,000 of 18,000 images (44%)" in words(rungs)
    assert "The winner, trial 1, would also have been stopped" in words(rungs)


def test_bounds_in_nats_have_a_ceiling_and_a_population_search_is_explained(tmp_path: Path) -> None:
    values = [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]
    search = make_search(tmp_path, values, metric="mi_bound", searcher="population", generation=2, parents=[None] * 4)
    for number, state in enumerate(("finished", "diverged", "finished")):
        run_trial(search, number, state, {90: 0.5}, **({"swd": 40.0, "mi_bound": 3.0} if number != 1 else {}))
        run = search.trial(number)
        run.folder.write(run.METRICS, b'{"step": 90, "mi_bound": 3.0, "mi/cat0": 2.0}\n')
    tree = parsed(search_report(search))
    assert "ceiling 6.46" in labels(section(tree, "curves")), "log 10 + 2 (log 2 - log 0.1 - log(2 pi) / 2)"
    assert "nats, of 6.456" in words(tree.find("body")) and "stops no trial" in words(tree.find("body"))


@pytest.mark.s3
def test_the_report_of_a_search_in_an_object_store_is_stored_there(proxy: Proxy) -> None:
    search = make_search(proxy.uri("reports"), [{"a": 1}, {"a": 2}])
    run_trial(search, 0, "finished", {10: 0.5, 90: 0.9}, swd=40.0)
    write_search_report(search)
    page = search.folder.read(search.REPORT).decode()
    assert "trial 0: 0.9 at 9000" in page and "code cat0 of trial 0" in page
    assert escape(f"infogan pull '{search.folder.uri}' best") in page


def test_a_report_of_many_trials_stays_readable_and_small(tmp_path: Path) -> None:
    values = [{"objective.lambda_categorical": 0.001 * (n + 1), "codes": f"cat={n}"} for n in range(120)]
    search = make_search(tmp_path, values)
    for number in range(120):
        bounds = {step: number / 200 + step / 1e4 for step in range(1, 91, 3)}
        run_trial(search, number, "finished", bounds, swd=30.0 + number)
    page = search_report(search)
    assert len(page) < 3_000_000
    curves = section(parsed(page), "curves")
    chart = next(curves.iter(f"{SVG}svg"))
    assert sum(label.startswith("trial ") for label in labels(chart)) == SLOTS
    assert len(table_rows(section(parsed(page), "board"))) == 120
