"""The metric registry: one entry makes a metric available, measured, ranked, shown and logged.

Run: pytest tests/evaluation/test_metrics.py
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE, USAGE
from infogan_ray.cli.main import main
from infogan_ray.evaluation import texts
from infogan_ray.evaluation.clustering import CategoryCounts
from infogan_ray.evaluation.metrics import (
    BOARD_COLUMNS,
    BOARD_RANKED,
    CHECKPOINT,
    END,
    GROUPS,
    LABELLED,
    REGISTRY,
    RUNG_METRICS,
    SELECTABLE,
    check_needs,
    missing_packages,
    values_of,
)
from infogan_ray.models.latents import LatentSpec
from infogan_ray.searches.selection_rules import best_by
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.load_model import load
from infogan_ray.training.model_card import model_card
from infogan_ray.training.tracking.curves import DESCRIPTIONS, TAGS
from infogan_ray.web.reports.run import run_report
from tests.conftest import tiny_config
from tests.web.test_search_report import parsed, section, words


def test_every_entry_has_a_title_and_a_description() -> None:
    for name, metric in REGISTRY.items():
        assert name == metric.name and metric.group in GROUPS
        assert metric.sentence.endswith(".") and metric.title, name
        assert metric.text(0.5), "its format is valid"
        direction = "1 is" if metric.one_is_best else "Small is" if metric.lower_is_better else "Large is"
        assert metric.description.endswith(f"{direction} good.")
    assert {"mi_fraction", "mi_bound", "clustering_error", "nmi", "ari", "q_score", "step"} <= set(SELECTABLE), (
        "configurations of earlier versions have these"
    )


def test_an_entry_makes_a_metric_available_checked_and_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="metric is 'nim'") as error:
        dataclasses.replace(tiny_config(), metric="nim")
    for name in SELECTABLE:
        assert dataclasses.replace(tiny_config(), metric=name).metric == name and name in str(error.value)
    assert main(["train", "--help-all"]) == 0
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in output for name in SELECTABLE)
    check_needs("mi_fraction", "photos", labels=False, categorical=False)
    with pytest.raises(UserError, match="'nmi', which needs labels, and photos has none"):
        check_needs("nmi", "photos", labels=False, categorical=True)
    with pytest.raises(UserError, match="'q_score', which needs a categorical code"):
        check_needs("q_score", "photos", labels=False, categorical=False)
    assert not set(RUNG_METRICS) & {metric.name for metric in REGISTRY.values() if metric.group == LABELLED}
    assert "spread" in BOARD_COLUMNS and "spread" not in {*SELECTABLE, *RUNG_METRICS, *BOARD_RANKED}
    for name in BOARD_RANKED:
        rows = [{"trial": trial, "state": "finished", name: trial / 10} for trial in (1, 2)]
        best = best_by(rows, name)
        assert best is not None and best["trial"] == (1 if REGISTRY[name].lower_is_better else 2), name


def test_every_measured_metric_is_shown_in_all_outputs(
    finished: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(open_storage(finished))
    metrics = json.loads(run.model.read("metrics.json"))
    wanted = [metric for metric in REGISTRY.values() if metric.measured in (CHECKPOINT, END)]
    assert {metric.name for metric in wanted} <= set(metrics), "the end of a run measures all of them"
    rows = section(parsed(run_report(run)), "measured").iter("tr")
    listed = {words(row[0]) for row in rows if row[0].tag.endswith("td")}
    assert listed == {metric.name for metric in wanted}
    card = model_card(load(finished / "model"), tiny_config(data="bars"), metrics)
    results = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    assert [result["type"] for result in results] == [metric.name for metric in wanted]
    assert main(["evaluate", str(finished / "model"), "--samples", "100", "--data", str(npz)]) == DONE
    output = capsys.readouterr().out
    for metric in wanted:
        assert metric.title in output or metric.name in output, metric.name
        if metric.measured == CHECKPOINT:
            assert metric.sentence in DESCRIPTIONS[TAGS[metric.name]]
    assert main(["pull", str(finished), "--metric", "swd"]) == USAGE, "swd is measured only at the end"
    assert "valid are mi_fraction" in capsys.readouterr().err


def test_without_scipy_one_metric_is_left_out_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = CategoryCounts("cat0", np.diag([5, 7, 3]), np.diag([5, 7, 3]))
    assert values_of(LABELLED, counts)["clustering_acc_hungarian"] == 1 and missing_packages(labels=True) == []
    monkeypatch.setitem(sys.modules, "scipy", None)
    found = values_of(LABELLED, counts)
    assert "clustering_acc_hungarian" not in found and found["clustering_error"] == 0
    install = "clustering_acc_hungarian needs scipy: pip install 'infogan-ray[eval]'"
    assert missing_packages(labels=True) == [install] and missing_packages(labels=False) == []
    categorical, continuous = LatentSpec.parse("noise=2 cat=3"), LatentSpec.parse("noise=2 uniform=2")
    assert texts.clustering_text({"clustering_code": "cat0", **found}, categorical).endswith(install)
    assert texts.clustering_text({}, categorical) == "not measured: the data has no labels"
    for text in (texts.clustering_text, texts.sorting_text):
        assert text({}, continuous) == "not measured: the model has no categorical code"
    with pytest.raises(UserError, match="'clustering_acc_hungarian', and .* needs scipy"):
        check_needs("clustering_acc_hungarian", "mnist", labels=True, categorical=True)
