"""The data of a search, which its report reads once from storage. Missing or broken data leaves a gap and a note.

Bounds are in nats. Training progress is in images seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infogan_ray import UserError
from infogan_ray.searches.asha import Halving
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, GATE, RULES, Row, pareto, winner
from infogan_ray.storage.file_system import StorageError
from infogan_ray.training.config import RunConfig
from infogan_ray.training.learned_prior import with_measured_prior
from infogan_ray.web.reports.markup import is_number

CURVES = ("clustering_error", "d_loss", "g_loss")  # in addition to the search's metric
SETTLED = ("finished", "stopped", "diverged", "failed", "continued")
NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Trial:
    """One trial. ``row``: its row of the leaderboard. Before it begins, the row has only number, state and values."""

    number: int
    row: Row
    images: int
    """Images seen at its last status. Its last checkpoint can be older."""
    config: Mapping[str, Any]
    curves: dict[str, list[tuple[float, float]]]
    """By metric, pairs (images seen, value) in order."""
    bounds: dict[str, float]
    """The last measured bound in nats, by code."""
    priors: Mapping[str, float] = field(default_factory=dict)
    """The last logged values of learned priors: prior/<code>/<category>."""

    @property
    def label(self) -> str:
        return f"trial {self.number}"

    @property
    def state(self) -> str:
        return str(self.row.get("state", "unknown"))

    @property
    def has_finished(self) -> bool:
        return self.state == "finished"

    @property
    def is_over(self) -> bool:
        return self.state.partition(",")[0] in SETTLED

    @property
    def values(self) -> dict[str, Any]:
        values = self.row.get("values")
        return values if isinstance(values, dict) else {}

    @property
    def ceilings(self) -> dict[str, float]:
        """The largest possible bound of each code in nats. Empty if this version cannot read the configuration."""
        try:
            latents = RunConfig.from_dict(dict(self.config), "the search").latents
        except UserError:
            return {}
        return with_measured_prior(latents, self.priors).ceilings


@dataclass(frozen=True)
class Findings:
    """The data of a search. ``trials``: in the leaderboard's order, followed by those that have not begun."""

    search: SearchDirectory
    about: dict[str, Any]
    halving: Halving
    trials: list[Trial]
    picks: dict[str, int | None]
    """The trial that each selection rule picks."""
    rule: str
    front: list[int]
    gate: float
    as_of: float | None
    """The time of the latest status of a trial, in seconds since 1970."""
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        return str(self.about["metric"])

    @property
    def budget(self) -> int:
        return int(self.about["budget"])

    @property
    def planned(self) -> int:
        """The number of trials at the end; a searcher may not have proposed all of them yet."""
        return max(int(self.about.get("count") or 0), len(self.trials))

    @property
    def best(self) -> Trial | None:
        return self.trial(self.picks.get(self.rule))

    def trial(self, number: int | None) -> Trial | None:
        return next((trial for trial in self.trials if trial.number == number), None)


def read(search: SearchDirectory) -> Findings:
    """Read a search. Raises BadCheckpoint if search.json or events.json is not JSON, FileNotFoundError if missing."""
    about, halving = search.description(), search.halving()
    configs: list[dict[str, Any]] = about.get("trials") or []
    statuses: dict[int, dict[str, Any]] = {}
    notes: list[str] = []
    for number in range(len(configs)):
        try:
            if search.trial(number).folder.entries():
                statuses[number] = search.trial(number).get_status()
        except (UserError, StorageError) as error:
            notes.append(f"trial {number} could not be read: {error}")
    board = _saved_board(search)
    rows: list[Row] = board.get("rows") or []
    if _is_stale(rows, set(statuses)):
        board, rows = {}, leaderboard(search)
    known = {row["trial"] for row in rows}
    values = about.get("values") or []
    for number in range(len(configs)):
        if number not in known:
            rows = [
                *rows,
                {"trial": number, "state": NOT_BEGUN, "values": values[number] if number < len(values) else {}},
            ]
    trials = [_trial(search, row, configs, statuses.get(row["trial"], {}), about["metric"], notes) for row in rows]
    ranked = [row for row in rows if row["trial"] in known]
    picks = board.get("picks")
    if picks is None:
        chosen = {rule: winner(ranked, about["metric"], rule) for rule in RULES}
        picks = {rule: row["trial"] if row else None for rule, row in chosen.items()}
    front = board.get("pareto")
    times = [status["time"] for status in statuses.values() if is_number(status.get("time"))]
    return Findings(
        search, about, halving, trials, picks, _default_rule(board, picks),
        [row["trial"] for row in pareto(ranked, about["metric"])] if front is None else front,
        board.get("gate", GATE), max(times, default=None), notes,
    )  # fmt: skip


def _saved_board(search: SearchDirectory) -> dict[str, Any]:
    """The content of leaderboard.json. Empty if it is missing or invalid."""
    try:
        board = json.loads(search.folder.read(search.BOARD))
        valid = isinstance(board, dict) and all("trial" in row and "state" in row for row in board["rows"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return board if valid else {}


def _default_rule(board: Mapping[str, Any], picks: Mapping[str, Any]) -> str:
    """The rule that orders a leaderboard. Leaderboards of earlier versions have no rule; then it is the first pick."""
    return str(board.get("rule") or (DEFAULT if DEFAULT in picks else next(iter(picks), DEFAULT)))


def _is_stale(rows: list[Row], begun: set[int]) -> bool:
    """Whether a search continued after its leaderboard was saved: a trial is missing or was not finished then."""
    settled = all(str(row["state"]).partition(",")[0] in SETTLED for row in rows)
    return not settled or bool(begun - {row["trial"] for row in rows})


def _trial(
    search: SearchDirectory, row: Row, configs: list[dict[str, Any]], status: Mapping[str, Any], metric: str,
    notes: list[str],
) -> Trial:  # fmt: skip
    number = row["trial"]
    config = configs[number] if number < len(configs) else {}
    batch = config.get("batch_size") or 0
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in (metric, *CURVES)}
    bounds: dict[str, float] = {}
    priors: dict[str, float] = {}
    if status:
        try:
            for line in search.trial(number).read_metrics():
                step = line.get("step")
                if not is_number(step):
                    continue
                for name, points in curves.items():
                    if is_number(line.get(name)):
                        points.append((step * batch, line[name]))
                bounds |= {key[3:]: line[key] for key in line if key.startswith("mi/") and is_number(line[key])}
                priors |= {key: line[key] for key in line if key.startswith("prior/") and is_number(line[key])}
        except (UserError, StorageError) as error:
            notes.append(f"the curves of trial {number} could not be read: {error}")
    for points in curves.values():
        points.sort(key=lambda point: point[0])
    images = max(int(row.get("images") or 0), int(status.get("step") or 0) * batch)
    if row["state"] == "unknown" and not images:  # only its configuration exists
        row = {**row, "state": NOT_BEGUN}
    return Trial(number, row, images, config, curves, bounds, priors)
