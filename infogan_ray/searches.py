"""A search on storage: its trials, the journal of its rungs, its board; and the rules by which a winner is picked.

A bound near its ceiling is reached by good models and bad ones, so the bound alone picks no winner: the default rule
asks for the best bound among the trials whose images are about as good as the best trial's. No Ray here.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infogan_ray import __version__, checkpoints
from infogan_ray.halving import Halving, Verdict, rungs
from infogan_ray.runs import RunDirectory, RunExists
from infogan_ray.storage import Storage, StorageError

GATE = 1.5  # how much worse than the best trial's images a winner's may be
RULES = ("gated", "bound", "quality")
Row = dict[str, Any]


@dataclass(frozen=True)
class SearchDirectory:
    """``<storage>/<search>``: the one owner of every file name in it."""

    folder: Storage

    SEARCH = "search.json"
    EVENTS = "events.json"
    BOARD = "leaderboard.json"
    TABLE = "leaderboard.parquet"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def exists(self) -> bool:
        return self.folder.is_file(self.SEARCH)

    def trial(self, number: int) -> RunDirectory:
        return RunDirectory(self.folder / "trials" / f"trial_{number:04d}")

    @classmethod
    def claim(cls, storage: Storage, name: str, described: dict[str, Any], resume: bool) -> SearchDirectory:
        """Take a name, or go on with the search of that name. ``described``: what decides it, as JSON.

        Raises RunExists for a taken one unless ``resume``; ValueError where there is none to resume, where the recipe
        or this version is another than that of the search, and where the storage cannot be written to.
        """
        search = cls(storage / name)
        described = {"version": __version__, **json.loads(json.dumps(described))}
        if search.folder.is_itself_a_file:
            raise ValueError(
                f"storage: {search.folder} is a file where a folder should be; name another with --storage"
            )
        if not resume:
            if search.folder.entries():
                raise RunExists(f"name '{name}' is taken in {storage}; take another --name, or go on by --resume")
            try:
                search.folder.write(cls.SEARCH, json.dumps(described, indent=1).encode())
            except StorageError as error:
                raise ValueError(f"storage: cannot write to {error}; name another with --storage") from None
            return search
        if not search.exists:
            raise ValueError(f"name is '{name}', and there is no such search in {storage}; drop --resume to start it")
        if changed := difference(search.description(), described):
            raise ValueError(f"name '{name}' belongs to another search: {changed}; take another --name")
        return search

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
        levels = rungs(about["grace"], about["budget"], about["reduction"])
        return Halving.replay(events, levels, about["reduction"] if about["early_stopping"] else 1)

    def board(self) -> list[Row]:
        """A row per trial that has begun, best first by the default rule: what storage says of it now."""
        about, halving = self.description(), self.halving()
        rows = [
            self._row(number, about, halving)
            for number in range(len(about["trials"]))
            if self.trial(number).folder.entries()
        ]
        return ranked(rows, about["metric"])

    def _row(self, number: int, about: dict[str, Any], halving: Halving) -> Row:
        run = self.trial(number)
        status = run.get_status()
        stopped_at = halving.stopped_at(number)
        state = "stopped" if stopped_at is not None else status["state"]
        metrics: dict[str, Any] = {}
        step = status["step"]
        try:
            if state == "finished":
                metrics = checkpoints.Manifest.of(run.model, required=("metrics.json",)).read_json("metrics.json")
            else:
                good, _ = checkpoints.list_checkpoints(run.checkpoints, thorough=False)
                measured = checkpoints.last([one for one in good if about["metric"] in one.metrics])
                metrics = measured.metrics if measured else {}
                step = measured.step if measured else 0
        except (ValueError, StorageError) as error:  # an odd trial does not hide the others
            state = f"{state}, {error}"
        names = ("mi_bound", "mi_fraction", "swd", "clustering_error", "nmi")
        return {
            "trial": number, "state": state, "stopped_at": stopped_at, "step": step,
            "images": step * about["trials"][number]["batch_size"], **{name: metrics.get(name) for name in names},
            "values": about["values"][number],
        }  # fmt: skip

    def publish_board(self) -> list[Row]:
        """Write leaderboard.json and leaderboard.parquet."""
        about, rows = self.description(), self.board()
        picks = {rule: winner(rows, about["metric"], rule) for rule in RULES}
        chosen = {rule: row and row["trial"] for rule, row in picks.items()}
        board = {
            "metric": about["metric"], "gate": GATE, "picks": chosen,
            "pareto": [row["trial"] for row in pareto(rows, about["metric"])], "rows": rows,
        }  # fmt: skip
        self.folder.write(self.BOARD, json.dumps(board, indent=1).encode())
        flat = [{**row, "values": json.dumps(row["values"])} for row in rows]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(flat), buffer)
        self.folder.write(self.TABLE, buffer.getvalue())
        return rows


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


def winner(rows: Sequence[Row], metric: str, rule: str) -> Row | None:
    """The trial that a rule picks among those that ran to their end; None if none did.

    ``bound``: the best metric. ``quality``: the least distance to the data (swd). ``gated``: the best metric among
    those whose distance is at most GATE times the least.
    """
    if rule not in RULES:
        raise ValueError(f"select is '{rule}'; valid are {', '.join(RULES)}")
    ended = [row for row in rows if row["state"] == "finished" and _finite(row[metric]) and _finite(row["swd"])]
    if not ended:
        return None
    least = min(row["swd"] for row in ended)
    if rule == "quality":
        return min(ended, key=lambda row: (row["swd"], row["trial"]))
    able = [row for row in ended if rule == "bound" or row["swd"] <= GATE * least]
    return max(able, key=lambda row: (row[metric], -row["trial"]))


def pareto(rows: Sequence[Row], metric: str) -> list[Row]:
    """The trials that no other one beats in both bound and image quality, best bound first."""
    ended = [row for row in rows if row["state"] == "finished" and _finite(row[metric]) and _finite(row["swd"])]
    front: list[Row] = []
    for row in sorted(ended, key=lambda row: (-row[metric], row["swd"], row["trial"])):
        if not front or row["swd"] < front[-1]["swd"]:
            front.append(row)
    return front


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """Finished trials by the default rule, one after the other; then the others by how far they came."""
    left, order = list(rows), list[Row]()
    while (best := winner(left, metric, "gated")) is not None:
        order.append(best)
        left.remove(best)

    def how_far(row: Row) -> tuple[float, float, int]:
        return -row["images"], -row[metric] if _finite(row[metric]) else 0.0, row["trial"]

    return order + sorted(left, key=how_far)


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


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
