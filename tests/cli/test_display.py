"""The progress of a run as plain lines. Run: pytest tests/cli/test_display.py"""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from infogan_ray.cli import display
from infogan_ray.cli.display import TrainDisplay
from infogan_ray.data.progress import Pace
from tests.data.test_progress import Clock


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(display, "errors", Console(file=stream, width=60))
    monkeypatch.setattr(display, "PLAIN_EVERY_S", 0)
    return stream


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "phase": "training", "epoch": step / 40, "images_per_second": 64.0, "d_loss": 1.25,
        "g_loss": 0.5, "train_mi/cat0": 2.0, **more,
    }  # fmt: skip


def test_epochs_have_a_total_and_a_time_left(lines: io.StringIO) -> None:
    clock, shown = Clock(), TrainDisplay(epochs=3)
    shown.pace = Pace(clock)
    shown({"phase": "starting workers", "step": 0, "total_steps": 120})
    for step in range(0, 61, 10):
        shown(row(step))
        clock.now += 5
    last = lines.getvalue().splitlines()[-1]
    assert last.startswith("training: step 60/120  epoch 1.5 of 3  64 images/s") and last.endswith("  0m30s left")


def test_the_last_line_shows_the_last_step_and_not_the_best_checkpoint(lines: io.StringIO) -> None:
    shown = TrainDisplay()
    shown({"phase": "starting workers", "step": 0, "total_steps": 20})
    shown(row(10, mi_bound=2.25))
    shown(row(20, mi_bound=1.5, d_loss=9.0))
    shown({**row(10, mi_bound=2.25), "step": 20, "best_step": 10, "phase": "finished"})
    last = lines.getvalue().splitlines()[-1]
    assert last.startswith("finished: step 20/20") and "D 9.000" in last and "(measured 1.50)" in last
