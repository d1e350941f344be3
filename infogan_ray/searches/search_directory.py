"""A search on storage: what decides it, its trials, the journal of its rungs, its board. No Ray here."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infogan_ray import UserError, __version__
from infogan_ray.evaluation.metrics import BOARD_COLUMNS, lower_is_better
from infogan_ray.evaluation.unsupervised_metrics import agreement
from infogan_ray.searches.asha import Halving, Verdict, rungs
from infogan_ray.searches.selection_rules import DEFAULT, GATE, RULES, Row, pareto, ranked, winner
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory, RunExists
from infogan_ray.training.publish import CATEGORIES, METRICS

# What a trial's scores depend on: a search continues with the same code, or where the user accepts the change.
DECISIVE = ("models", "training", "data", "evaluation", "searches", "distributed/tune")
# Grow while a search runs whose searcher learns, and are not compared with the recipe then.
GROWING = ("values", "parents", "trials")


@dataclass(frozen=True)
class SearchDirectory:
    """``<storage>/<search>``: the one owner of every file name in it."""

    folder: Storage

    SEARCH = "search.json"
    EVENTS = "events.json"
    BOARD = "leaderboard.json"
    TABLE = "leaderboard.parquet"
    REPORT = "report.html"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def exists(self) -> bool:
        return self.folder.is_file(self.SEARCH)

    def trial(self, number: int) -> RunDirectory:
        return RunDirectory(self.folder / "trials" / f"trial_{number:04d}")

    @classmethod
    def claim(
        cls, storage: Storage, name: str, described: dict[str, Any], resume: bool, accept_changes: bool = False
    ) -> SearchDirectory:
        """Take a name, or go on with the search of that name. ``described``: what decides it, as JSON.

        ``accept_changes``: trials that have not begun follow the recipe and the code as they are now (of a searcher
        that learns: those that are not proposed yet); the others stay what they were. Raises RunExists for a taken name
        unless ``resume``; ValueError where there is none to resume, where the recipe or the code is another than that
        of the search, and where the storage cannot be written to.
        """
        search = cls(storage / name)
        described = {"version": __version__, "code": code(), **json.loads(json.dumps(described))}
        if search.folder.is_itself_a_file:
            raise UserError(f"storage: {search.folder} is a file where a folder should be; name another with --storage")
        if not resume:
            if any(not entry.name.endswith(".tmp") for entry in search.folder.entries()):  # of a writer that was killed
                raise RunExists(f"name '{name}' is taken in {storage}; take another --name, or go on by --resume")
            try:
                search.folder.write(cls.SEARCH, json.dumps(described, indent=1).encode())
            except StorageError as error:
                raise UserError(f"storage: cannot write to {error}; name another with --storage") from None
            return search
        if not search.exists:
            raise UserError(f"name is '{name}', and there is no such search in {storage}; drop --resume to start it")
        saved = search.description()
        if not described["trials"]:
            described |= {name: saved.get(name) for name in GROWING}
        for number in saved.get("kept", []):  # of an earlier recipe, whose changes were accepted
            if number < len(described["trials"]):
                for part in ("values", "trials"):
                    described[part][number] = saved[part][number]
        own = {"changes": None, "kept": None}
        if changed := difference({**saved, **own}, {**described, **own}):
            if not accept_changes:
                raise UserError(
                    f"name '{name}' belongs to another search: {changed}; take another --name, or --accept-changes to "
                    "go on with trials that do not compare in this"
                )
            both = range(min(len(saved["trials"]), len(described["trials"])))
            kept = [number for number in both if search.has_begun(number)]
            for number in kept:
                for part in ("values", "trials"):
                    described[part][number] = saved[part][number]
            described |= {"kept": kept, "changes": [*saved.get("changes", []), changed]}
            search.folder.write(cls.SEARCH, json.dumps(described, indent=1).encode())
        return search

    def has_begun(self, number: int) -> bool:
        """Whether anything was ever said of a trial; its folder is prepared before that."""
        return self.trial(number).get_status()["state"] != "unknown"

    def scores(self, number: int) -> list[tuple[int, float]]:
        """What a trial has measured of the search's metric: images seen and score, in that order.

        A kill may come between a score and the journal; nothing of it is lost so.
        """
        about = self.description()
        batch_size, metric = about["trials"][number]["batch_size"], about["metric"]
        rows = [row for row in self.trial(number).read_metrics() if isinstance(row.get("step"), int)]
        return sorted((row["step"] * batch_size, row[metric]) for row in rows if isinstance(row.get(metric), float))

    def extend(self, values: list[dict[str, Any]], parents: list[int | None], trials: list[dict[str, Any]]) -> None:
        """Add the trials that a searcher has proposed: their searched values, whom they go on from, and all fields."""
        about = self.description()
        for name, more in zip(GROWING, (values, parents, trials), strict=True):
            about[name] += more
        self.folder.write(self.SEARCH, json.dumps(about, indent=1).encode())

    def description(self) -> dict[str, Any]:
        """Raises BadCheckpoint if search.json is not JSON."""
        return checkpoints.parse_json(f"{self.folder}/{self.SEARCH}", self.folder.read(self.SEARCH))

    def save_events(self, halving: Halving) -> None:
        self.folder.write(self.EVENTS, json.dumps(halving.events).encode())

    def halving(self) -> Halving:
        """The state of the rungs, as far as it was saved."""
        about = self.description()
        events: list[dict[str, Any]] = []
        if self.folder.is_file(self.EVENTS):
            try:
                events = json.loads(self.folder.read(self.EVENTS))
            except ValueError as error:
                raise checkpoints.BadCheckpoint(f"{self.folder}/{self.EVENTS} is not JSON ({error})") from None
        stops = about["early_stopping"] and about["searcher"] != "population"
        levels = rungs(about["grace"], about["budget"], about["reduction"])
        return Halving.replay(events, levels, about["reduction"] if stops else 1, lower_is_better(about["metric"]))

    def board(self) -> list[Row]:
        """A row per trial that has begun, best first by the default rule: what storage says of it now."""
        about, halving = self.description(), self.halving()
        rows = [
            self._row(number, about, halving)
            for number in range(len(about["trials"]))
            if self.trial(number).folder.entries()
        ]
        with_codes = [row for row in rows if row["state"] == "finished"]
        likeness = agreement([self._categories(row["trial"]) for row in with_codes])
        for row, value in zip(with_codes, likeness, strict=True):
            row["agreement"] = value
        return ranked(rows, about["metric"], DEFAULT)

    def _row(self, number: int, about: dict[str, Any], halving: Halving) -> Row:
        run = self.trial(number)
        status = run.get_status()
        stopped_at = halving.stopped_at(number)
        state = "stopped" if stopped_at is not None else status["state"]
        metrics: dict[str, Any] = {}
        step, batch_size = status["step"], about["trials"][number]["batch_size"]
        try:
            if state == "finished":
                metrics = checkpoints.Manifest.of(run.model, required=(METRICS,)).read_json(METRICS)
            else:
                good, _ = checkpoints.list_checkpoints(run.checkpoints, thorough=False)
                measured = checkpoints.last([one for one in good if about["metric"] in one.metrics])
                metrics = measured.metrics if measured else {}
                step = measured.step if measured else 0
        except (ValueError, StorageError) as error:  # an odd trial does not hide the others
            state = f"{state}, {error}"
        early = about["trials"][number]["steps"] * batch_size < about["budget"]
        if state == "finished" and about["searcher"] == "population" and early:
            state = "handed on"  # a population's earlier stage, which is no rival of those that have seen more
        heirs = any(parent is not None for parent in about.get("parents", []))
        parents = {"parent": about["parents"][number]} if heirs else {}
        return {
            "trial": number, "state": state, "stopped_at": stopped_at, "step": step, "images": step * batch_size,
            **{name: metrics.get(name) for name in BOARD_COLUMNS}, **parents,
            "values": about["values"][number],
        }  # fmt: skip

    def _categories(self, number: int) -> dict[str, list[int]]:
        """How a finished trial's model sorts the images that all are asked about; none without such codes."""
        try:
            manifest = checkpoints.Manifest.of(self.trial(number).model, required=())
            return manifest.read_json(CATEGORIES) if CATEGORIES in manifest.files else {}
        except (ValueError, StorageError):  # its state on the board says so
            return {}

    def publish_board(self) -> list[Row]:
        """Write leaderboard.json and leaderboard.parquet."""
        about, rows = self.description(), self.board()
        picks = {rule: winner(rows, about["metric"], rule) for rule in RULES}
        chosen = {rule: row and row["trial"] for rule, row in picks.items()}
        board = {
            "metric": about["metric"], "rule": DEFAULT, "gate": GATE, "picks": chosen,
            "pareto": [row["trial"] for row in pareto(rows, about["metric"])], "rows": rows,
        }  # fmt: skip
        self.folder.write(self.BOARD, json.dumps(board, indent=1).encode())
        flat = [{**row, "values": json.dumps(row["values"])} for row in rows]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(flat), buffer)
        self.folder.write(self.TABLE, buffer.getvalue())
        return rows


def code() -> dict[str, str]:
    """The first digits of the SHA-256 of each module that decides what a trial scores, by its path in the package."""
    root = Path(__file__).parents[1]
    files = sorted(file for package in DECISIVE for file in (root / package).rglob("*.py"))
    return {
        file.relative_to(root).with_suffix("").as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in files
    }


def remaining(search: SearchDirectory, halving: Halving, count: int) -> list[int]:
    """The trials that have still to run: not finished, diverged, failed for good, or stopped."""
    done = ("finished", "diverged")
    return [
        number
        for number in range(count)
        if halving.verdict(number) is not Verdict.STOP
        and not halving.has_ended(number)
        and search.trial(number).get_status()["state"] not in done
    ]


def difference(old: Any, new: Any, path: str = "") -> str:
    """The first difference of two JSON values in words; empty if there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            where = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                return f"{where} is {'new' if key not in old else 'gone'}"
            if found := difference(old[key], new[key], where):
                return found
        return ""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{path} has {len(new)} entries, and had {len(old)}"
        for number, pair in enumerate(zip(old, new, strict=True)):
            if found := difference(*pair, f"{path}[{number}]"):
                return found
        return ""
    return "" if old == new else f"{path} is {new!r}, and was {old!r}"
