"""The report of a finished, a running and a broken run. Run: pytest tests/web/test_run_report.py"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from infogan_ray.cli.main import DONE, USAGE, main
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, sample_picture_name
from infogan_ray.training.publish import METRICS, name_codes
from infogan_ray.training.tracking.curves import GROUPS
from infogan_ray.web.reports.run import run_report
from tests.web.test_search_report import labels, parsed, section, words

SVG = "{http://www.w3.org/2000/svg}"
STEPS = 6


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(open_storage(shutil.copytree(finished, tmp_path / "tiny")))


def test_a_finished_run_shows_each_code_and_how_to_continue(run: RunDirectory) -> None:
    text = run_report(run)
    page = parsed(text)
    assert not re.search(r"""(src|href)="(?!data:|#)|url\(|@import""", text), "no external resources"
    metrics = json.loads(run.model.read(METRICS))
    assert f"finished at step {STEPS}" in words(page) and f"infogan pull {run.folder.uri} tiny-model" in words(page)
    assert f"{metrics['clustering_error']:.1%}" in words(page)
    codes = section(page, "codes")
    assert [words(row.find("td")) for row in codes.iter("tr") if row.find("td") is not None] == ["cat0", "uniform0"]
    assert "1.099" in words(codes) and "2.077" in words(codes), "ceilings in nats"
    assert len(list(codes.iter("img"))) == 3, "samples and a traversal per code"
    rows = [[int(count.text or "") for count in row.iter("span")] for row in section(page, "labels").iter("tr")]
    assert [row for row in rows if row] == metrics["confusion"]
    table = section(page, "labels")
    assert [words(cell) for cell in table.iter("th")] == ["category", *(f"label {n}" for n in range(3)), "share"]
    named = run.model.read(METRICS).replace(b"{", b'{"classes": ["cat", "<dog>", "newt"], ', 1)
    run.model.write(METRICS, named)
    table = section(parsed(run_report(run)), "labels")
    assert [words(cell) for cell in table.iter("th")] == ["category", "cat", "<dog>", "newt", "share"]
    charts = list(section(page, "curves").iter(f"{SVG}svg"))
    assert len(charts) == 7 and {"cat0", "uniform0"} <= set(labels(charts[0]))
    shown = [words(figure) for figure in section(page, "time").iter("figcaption")]
    assert shown == ["step 3", f"step {STEPS}"]
    assert "--codes" in words(section(page, "again")) and "--resume" not in words(section(page, "again"))


EACH_STEP = [*(name for group in ("loss", "discriminator", "gradient", "speed") for name in GROUPS[group]), "restarted"]


@pytest.mark.parametrize("metric", EACH_STEP)
def test_every_metric_of_a_step_has_a_curve(metric: str, run: RunDirectory) -> None:
    run.folder.write(run.METRICS, b"".join(json.dumps({"step": n, metric: 0.5 + n}).encode() + b"\n" for n in (1, 2)))
    charts = section(parsed(run_report(run)), "curves").iter(f"{SVG}svg")
    assert len(list(charts)) == 2, "an empty chart of bounds, and this chart"


def test_names_of_codes_are_shown(run: RunDirectory) -> None:
    name_codes(run.folder, {"uniform0": "slant"})
    page = run_report(run)
    assert "<td>uniform0</td><td>slant</td>" in page and "slant, bound" in page
    run.folder.write("names.json", b"[")
    assert f"{run.folder}/names.json" in run_report(run), "the error is shown with the rest of the report"


def test_of_many_checkpoints_some_are_shown_including_first_and_last(run: RunDirectory) -> None:
    for step in range(10, 1010, 10):
        run.samples.write(sample_picture_name(step), run.samples.read(sample_picture_name(STEPS)))
    shown = [words(figure) for figure in section(parsed(run_report(run)), "time").iter("figcaption")]
    assert len(shown) == 8 and shown[0] == "step 3" and shown[-1] == "step 1,000"


def test_a_running_run_shows_its_current_state(run: RunDirectory) -> None:
    run.model.delete_all()
    run.set_status("running", 55)
    page = parsed(run_report(run))
    assert "running at step 55" in words(page) and f"infogan report {run.folder.uri}" in words(page)
    captions = [words(figure) for figure in section(page, "codes").iter("figcaption")]
    assert captions == [f"cat0step {STEPS}", f"uniform0step {STEPS}"], "the latest traversals"
    assert "--resume" in words(section(page, "again"))
    assert len(list(section(page, "labels").iter("table"))) == 1, "the last measured table"


def test_missing_and_broken_files_give_a_note_in_the_report(tmp_path: Path, run: RunDirectory) -> None:
    bare = RunDirectory(open_storage(tmp_path / "bare"))
    bare.set_status("starting")
    page = parsed(run_report(bare))
    assert "Nothing has been measured yet" in words(page) and "has no config.json" in words(page)
    attack = "<script>alert(1)</script>\x00"
    run.set_status("failed", 7, message=attack)
    run.folder.write(run.CONFIG, b"{")
    run.folder.write(run.METRICS, b'{"step": 5, "d_loss": NaN, "mi/cat0": 0.5}\n{"step": "x"}\n[]\nhalf')
    run.model.write(METRICS, b"[")
    run.samples.write(sample_picture_name(STEPS), b"no picture")
    text = run_report(run)
    page = parsed(text)
    assert attack not in text and "alert(1)" in words(page)
    assert "config.json is not JSON" in words(page) and "metrics.json is not JSON" in words(page)
    assert "is not a PNG picture" in words(section(page, "time"))


def test_the_command_writes_the_report_into_the_run_folder(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", run.folder.path]) == DONE
    path = Path(capsys.readouterr().out.strip())
    assert path == Path(run.folder.path) / "report.html" and path.read_text().startswith("<!DOCTYPE html>")
    (tmp_path / "other").mkdir()
    assert main(["report", str(tmp_path / "other")]) == USAGE
    assert "is not a run; 'infogan runs" in capsys.readouterr().err
    assert not list((tmp_path / "other").iterdir())
