"""The leaderboard of a search: one row for each trial, and the trial that each selection rule picks."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import BOARD_COLUMNS, ONE_CATEGORY_ERROR
from infogan_ray.evaluation.unsupervised_metrics import agreement
from infogan_ray.searches.asha import Halving
from infogan_ray.searches.recipe import POPULATION
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, GATE, RULES, Row, pareto, ranked, winner
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.checkpoints import BadCheckpoint
from infogan_ray.storage.file_system import StorageError
from infogan_ray.training.publish import CATEGORIES, METRICS


def leaderboard(search: SearchDirectory) -> list[Row]:
    """One row for each trial that has started, read from storage, best first by the default rule."""
    description, halving = search.description(), search.halving()
    rows = [
        _row(search, number, description, halving)
        for number in range(len(description["trials"]))
        if search.trial(number).folder.entries()
    ]
    finished = [row for row in rows if row["state"] == "finished"]
    agreements = agreement([_categories(search, row["trial"]) for row in finished])
    for row, value in zip(finished, agreements, strict=True):
        row["agreement"] = value
    return ranked(rows, description["metric"], DEFAULT)


def publish_leaderboard(search: SearchDirectory) -> list[Row]:
    """Write leaderboard.json and leaderboard.parquet; returns the rows."""
    metric, rows = search.description()["metric"], leaderboard(search)
    winners = {rule: winner(rows, metric, rule) for rule in RULES}
    picks = {rule: row and row["trial"] for rule, row in winners.items()}
    board = {
        "metric": metric, "rule": DEFAULT, "gate": GATE, "picks": picks,
        "pareto": [row["trial"] for row in pareto(rows, metric)], "rows": rows,
    }  # fmt: skip
    search.folder.write(search.BOARD, json.dumps(board, indent=1).encode())
    flat = [{**row, "values": json.dumps(row["values"])} for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(flat), buffer)
    search.folder.write(search.TABLE, buffer.getvalue())
    return rows


def _row(search: SearchDirectory, number: int, description: dict[str, Any], halving: Halving) -> Row:
    run = search.trial(number)
    status = run.get_status()
    stopped_at = halving.stopped_at(number)
    state = "stopped" if stopped_at is not None else status["state"]
    metrics: dict[str, Any] = {}
    step, batch_size = status["step"], description["trials"][number]["batch_size"]
    try:
        if state == "finished":
            metrics = manifests.Manifest.load(run.model, required=(METRICS,)).read_json(METRICS)
        else:
            valid, _ = checkpoints.list_checkpoints(run.checkpoints, verify=False)
            measured = checkpoints.last([c for c in valid if description["metric"] in c.metrics])
            metrics = measured.metrics if measured else {}
            step = measured.step if measured else 0
    except (BadCheckpoint, UserError, StorageError) as error:  # the other trials are still listed
        state = f"{state}, {error}"
    is_short = description["trials"][number]["steps"] * batch_size < description["budget"]
    if description["searcher"] == POPULATION and state == "finished" and is_short:
        state = "continued"  # by a later trial: with fewer images it is not comparable with finished trials
    parents = description.get("parents", [])
    has_parents = any(parent is not None for parent in parents)
    return {
        "trial": number, "state": state, "stopped_at": stopped_at, "step": step, "images": step * batch_size,
        **{name: metrics.get(name) for name in (*BOARD_COLUMNS, ONE_CATEGORY_ERROR)},
        **({"parent": parents[number]} if has_parents else {}), "values": description["values"][number],
    }  # fmt: skip


def _categories(search: SearchDirectory, number: int) -> dict[str, list[int]]:
    """The categories that a finished trial's model predicts for the shared images; {} without categorical codes."""
    try:
        manifest = manifests.Manifest.load(search.trial(number).model, required=())
        return manifest.read_json(CATEGORIES) if CATEGORIES in manifest.files else {}
    except (BadCheckpoint, UserError, StorageError):  # the trial's row shows the reason in its state
        return {}
