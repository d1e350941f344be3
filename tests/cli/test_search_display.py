"""The table of a running search. Run: pytest tests/cli/test_search_display.py"""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from infogan_ray.cli import display
from infogan_ray.cli.search_display import MAX_ROWS, SearchDisplay
from infogan_ray.data.progress import Pace
from tests.data.test_progress import Clock


def text(shown: SearchDisplay) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(shown.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_the_state_of_each_trial() -> None:
    shown = SearchDisplay(trials=4, budget=9000, rungs=(1000, 3000))
    shown({"trial": 0, "event": "progress", "images": 500, "say": ""})
    shown({"trial": 1, "event": "score", "images": 3000, "mi_bound": 2.5, "mi_fraction": 0.4, "say": ""})
    shown({"trial": 2, "event": "stopped", "images": 1000, "mi_bound": 1.0, "mi_fraction": 0.1, "say": ""})
    shown({"trial": 1, "event": "finished", "swd": 33.25, "say": ""})
    lines = text(shown).splitlines()
    assert lines[0].startswith("2 of 4 trials ended, 1 of them stopped early")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        ["1", "finished", "2/2", "3,000 (33%)", "0.400", "2.500", "", "", "33.2"],
        ["2", "stopped", "1/2", "1,000 (11%)", "0.100", "1.000", "", "", ""],
        ["0", "running", "0/2", "500 (6%)", "", "", "", "", ""],
    ]


def test_time_left_counts_images_since_the_start_and_each_trial_once() -> None:
    clock, shown = Clock(), SearchDisplay(trials=3, budget=1000, rungs=(100,))
    shown.pace = Pace(clock)
    shown({"trial": 0, "event": "progress", "images": 800})  # of a resumed search: counted before
    assert "left at most" not in shown.heading()
    clock.now += 10
    shown({"trial": 0, "event": "progress", "images": 900})
    shown({"trial": 1, "event": "stopped", "images": 0})
    assert "10 images/s, 1m50s left at most" in shown.heading(), "100 of trial 0 and 1000 of trial 2, at 10 a second"


def test_many_trials_do_not_fill_the_screen() -> None:
    shown = SearchDisplay(trials=100, budget=1000, rungs=(100,))
    for number in range(100):
        shown({"trial": number, "event": "progress", "images": 1})
    assert f"and {100 - MAX_ROWS} more" in text(shown)


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(display, "errors", Console(file=stream, width=60))
    with SearchDisplay(trials=1, budget=1000, rungs=(100,)) as shown:
        shown({"trial": 0, "event": "progress", "images": 10, "say": ""})
        shown({"trial": 0, "event": "score", "images": 100, "say": "trial 0: [100] images, " + "long " * 20})
    assert stream.getvalue() == "0m00s  trial 0: [100] images, " + "long " * 20 + "\n"


def test_without_a_terminal_progress_comes_between_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("infogan_ray.cli.search_display.time.monotonic", clock)
    monkeypatch.setattr(display, "errors", Console(stderr=True, force_terminal=False))
    shown = SearchDisplay(trials=2, budget=1000, rungs=(100,))
    shown.pace = Pace(clock)
    for seconds, event in [(1, {"event": "data", "say": "data: 9 images"}), (20, {"trial": 0, "images": 40}),
                           (11, {"trial": 0, "images": 60}), (5, {"trial": 0, "images": 70})]:  # fmt: skip
        clock.now += seconds
        shown({"event": "progress", "say": "", **event})
    assert capsys.readouterr().err.splitlines() == [
        "0m01s  data: 9 images",
        "0m32s  0 of 2 trials ended, 0 of them stopped early; 2 images/s, 17m47s left at most",
    ]
