"""A search on storage: its description, its trials, and the journal of scores at its rungs. No Ray here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infogan_ray import UserError, __version__
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.searches.asha import Halving, Verdict, rungs
from infogan_ray.searches.recipe import POPULATION
from infogan_ray.storage import manifests
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory, RunExists
from infogan_ray.training.json_difference import difference

# A trial's scores depend on this code: a search continues with the same code, or where the user accepts the change.
DECISIVE = ("models", "training", "data", "evaluation", "searches", "distributed/tune")
# An adaptive search adds to these while it runs, so they are not compared with its recipe.
GROWING = ("values", "trials")
# Not compared with the recipe: what was accepted, and the parents of trials, which searches of earlier versions have.
NOT_IN_RECIPES = ("changes", "kept", "parents")


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
        """Take a name for a new search, or continue the search of that name. ``described``: ``Recipe.describe()``.

        With ``accept_changes``, trials that have not begun follow the recipe and the code as they are now (of an
        adaptive search: trials that are not proposed yet). The others stay what they were. Raises RunExists for a taken
        name unless ``resume``. Raises UserError where there is no search to resume, where the recipe or the code is not
        that of the search, and where the storage cannot be written to.
        """
        search = cls(storage / name)
        described = {"version": __version__, "code": code(), **json.loads(json.dumps(described))}
        if search.folder.path_is_file:
            raise UserError(f"storage: {search.folder} is a file where a folder should be; name another with --storage")
        if not resume:
            if any(not entry.name.endswith(".tmp") for entry in search.folder.entries()):  # .tmp: of a killed writer
                raise RunExists(f"name '{name}' is taken in {storage}; take another --name, or continue with --resume")
            try:
                search.folder.write(cls.SEARCH, json.dumps(described, indent=1).encode())
            except StorageError as error:
                raise UserError(f"storage: cannot write to {error}; name another with --storage") from None
            return search
        if not search.exists:
            raise UserError(f"name is '{name}', and there is no such search in {storage}; drop --resume to start it")
        saved = search.description()
        if saved["searcher"] == POPULATION:
            raise UserError(
                f"name '{name}' is a search by the searcher '{POPULATION}', which was removed; infogan runs, report "
                "and pull still read it; take another --name, and searcher 'optuna' in the recipe"
            )
        if not described["trials"]:
            described |= {part: saved[part] for part in GROWING}
        for number in saved.get("kept", []):  # these follow an earlier recipe, whose change was accepted
            if number < len(described["trials"]):
                for part in GROWING:
                    described[part][number] = saved[part][number]
        ignored = dict.fromkeys(NOT_IN_RECIPES)
        if changed := difference({**saved, **ignored}, {**described, **ignored}):
            if not accept_changes:
                raise UserError(
                    f"name '{name}' belongs to another search: {changed}; take another --name, or --accept-changes to "
                    "continue with trials that do not compare in this"
                )
            both = range(min(len(saved["trials"]), len(described["trials"])))
            kept = [number for number in both if search.can_resume(number)]
            for number in kept:
                for part in GROWING:
                    described[part][number] = saved[part][number]
            described |= {"kept": kept, "changes": [*saved.get("changes", []), changed]}
            search.folder.write(cls.SEARCH, json.dumps(described, indent=1).encode())
        return search

    def can_resume(self, number: int) -> bool:
        """Whether a trial has ever reported a status. Its folder is written before that."""
        return self.trial(number).get_status()["state"] != "unknown"

    def scores(self, number: int) -> list[tuple[int, float]]:
        """All (images seen, score) that a trial has measured, by rising images.

        A kill may come after a trial has logged a score and before the journal has it; this reads the trial's log.
        """
        about = self.description()
        batch_size, metric = about["trials"][number]["batch_size"], about["metric"]
        rows = [row for row in self.trial(number).read_metrics() if isinstance(row.get("step"), int)]
        return sorted((row["step"] * batch_size, row[metric]) for row in rows if isinstance(row.get(metric), float))

    def add_trials(self, values: list[dict[str, Any]], trials: list[dict[str, Any]]) -> None:
        """Add trials that a searcher has proposed: their searched values, and their whole configurations."""
        about = self.description()
        for part, more in zip(GROWING, (values, trials), strict=True):
            about[part] += more
        self.folder.write(self.SEARCH, json.dumps(about, indent=1).encode())

    def description(self) -> dict[str, Any]:
        """Raises BadCheckpoint if search.json is not JSON."""
        return manifests.parse_json(f"{self.folder}/{self.SEARCH}", self.folder.read(self.SEARCH))

    def save_events(self, halving: Halving) -> None:
        self.folder.write(self.EVENTS, json.dumps(halving.events).encode())

    def halving(self) -> Halving:
        """The state of the rungs, from the journal."""
        about = self.description()
        events: list[dict[str, Any]] = []
        if self.folder.is_file(self.EVENTS):
            try:
                events = json.loads(self.folder.read(self.EVENTS))
            except ValueError as error:
                raise manifests.BadCheckpoint(f"{self.folder}/{self.EVENTS} is not JSON ({error})") from None
        stops = about["early_stopping"] and about["searcher"] != POPULATION
        levels = rungs(about["grace"], about["budget"], about["reduction"])
        return Halving.replay(events, levels, about["reduction"] if stops else 1, lower_is_better(about["metric"]))


def code() -> dict[str, str]:
    """The first digits of the SHA-256 of each module that a trial's scores depend on, by its path in the package."""
    root = Path(__file__).parents[1]
    files = sorted(file for package in DECISIVE for file in (root / package).rglob("*.py"))
    return {
        file.relative_to(root).with_suffix("").as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in files
    }


def remaining(search: SearchDirectory, halving: Halving, count: int) -> list[int]:
    """The trials that must still run: those that have not finished, diverged, failed or been stopped."""
    done = ("finished", "diverged")
    return [
        number
        for number in range(count)
        if halving.verdict(number) is not Verdict.STOP
        and not halving.has_ended(number)
        and search.trial(number).get_status()["state"] not in done
    ]
