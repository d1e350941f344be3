"""A trial with several workers: what it reports, and how it ends. Run: pytest tests/distributed/test_trials.py"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infogan_ray.distributed.tune import trials
from infogan_ray.distributed.tune.trials import TrialSettings, _train_with_workers
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import TrainingFailed

SETTINGS = TrialSettings([], "", "cpu", "mi_fraction", 2)


def train(monkeypatch: pytest.MonkeyPatch, launch: Callable[..., Any]) -> Any:
    monkeypatch.setattr(trials, "run_worker_group", launch)
    return _train_with_workers(RunConfig(workers=2), None, None, SETTINGS)  # type: ignore[arg-type]


def test_a_stopped_trial_interrupts_its_run_and_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def launch(config: Any, wanted: Any, run: Any, listen: Callable[[dict[str, Any]], None], grace_s: float) -> None:
        try:
            for step in range(1, 100):
                listen({"step": step})
                done.append(f"step {step}")
        except KeyboardInterrupt:
            listen({"phase": "stopping"})
            done.append("last checkpoint")
            raise

    reports = train(monkeypatch, launch)
    assert [next(reports)["step"] for _ in range(3)] == [1, 2, 3]
    assert done == ["step 1", "step 2"], "the run waits until its third report is processed"
    reports.close()
    assert done == ["step 1", "step 2", "last checkpoint"]


def test_the_reports_of_a_run_end_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(config: Any, wanted: Any, run: Any, listen: Callable[[dict[str, Any]], None], grace_s: float) -> None:
        listen({"step": 1})
        raise TrainingFailed("out of disk")

    reports = train(monkeypatch, launch)
    assert next(reports) == {"step": 1}
    with pytest.raises(TrainingFailed, match="out of disk"):
        next(reports)
