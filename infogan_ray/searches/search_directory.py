"""A search on storage: its description, its trials, and its events (the scores at rungs). Does not import Ray."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infogan_ray import UserError, __version__
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.searches.asha import Decision, Halving, rungs
from infogan_ray.searches.recipe import POPULATION
from infogan_ray.storage import manifests
from infogan_ray.storage.claim import is_taken, take_folder
from infogan_ray.storage.file_system import Storage, StorageError
from infogan_ray.storage.run_directory import RunDirectory, RunExists, check_new_name
from infogan_ray.training.json_difference import difference

# A trial's scores depend on this code. A search continues only with the same code, unless the user accepts the change.
CODE_PACKAGES = ("models", "training", "data", "evaluation", "searches", "distributed/tune")
# An adaptive search adds to these lists while it runs, so they are not compared with its recipe.
TRIAL_LISTS = ("values", "trials")
# Not compared with the recipe: what may change freely, accepted changes, and the parents of trials in searches of
# earlier versions.
NOT_IN_RECIPES = ("threads", "flags", "changes", "kept", "parents")


@dataclass(frozen=True)
class SearchDirectory:
    """``<storage>/<search>``: defines the name of every file in it."""

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
    def check_name(cls, storage: Storage, name: str, resume: bool) -> SearchDirectory:
        """Check that a search may use a name, and return its directory. Writes nothing.

        Raises RunExists for a taken name unless ``resume``. Raises UserError if a file has the name, and for ``resume``
        without a search of that name.
        """
        search = cls(storage / name)
        if search.folder.path_is_file:
            raise UserError(f"storage: {search.folder} is a file, not a folder; name another with --storage")
        if not resume:
            check_new_name(name)
            if is_taken(search.folder):
                hint = ", or continue it with --resume" if search.exists else ""
                raise RunExists(f"name '{name}' is taken in {storage}; take another --name{hint}")
        if resume and not search.exists:
            raise UserError(f"name is '{name}', and {storage} has no such search; drop --resume to start it")
        return search

    @classmethod
    def claim(
        cls, storage: Storage, name: str, described: dict[str, Any], resume: bool, accept_changes: bool = False
    ) -> SearchDirectory:
        """Reserve a name for a new search, or continue the search with that name. ``described``: ``Recipe.describe()``.

        With ``accept_changes``, trials that have not started use the current recipe and code (in an adaptive search:
        trials that are not proposed yet). The other trials do not change. Raises UserError if the search has another
        recipe or code, if storage cannot be written to, and the errors of ``check_name``.
        """
        search = cls.check_name(storage, name, resume)
        described = {"version": __version__, "code": code(), **json.loads(json.dumps(described))}
        if not resume:
            try:
                take_folder(search.folder, cls.SEARCH, json.dumps(described, indent=1).encode())
            except FileExistsError as error:
                raise RunExists(
                    f"name '{name}' was taken in {storage} by another process just now ({error}); take another --name"
                ) from None
            except StorageError as error:
                raise UserError(f"storage: cannot write to {error}; name another with --storage") from None
            return search
        saved = search.description()
        if saved["searcher"] == POPULATION:
            raise UserError(
                f"name '{name}' is a search by the searcher '{POPULATION}', which was removed; infogan runs, report "
                "and pull still read it; take another --name, and searcher 'optuna' in the recipe"
            )
        if not described["trials"]:
            described |= {key: saved[key] for key in TRIAL_LISTS}
        for number in saved.get("kept", []):  # these use an earlier recipe; the user accepted its change
            if number < len(described["trials"]):
                for key in TRIAL_LISTS:
                    described[key][number] = saved[key][number]
        ignored = dict.fromkeys(NOT_IN_RECIPES)
        if changed := difference({**saved, **ignored}, {**described, **ignored}):
            if not accept_changes:
                raise UserError(
                    f"name '{name}' belongs to another search: {changed}; take another --name, or --accept-changes to "
                    "continue although trials before and after this change are not comparable"
                )
            common = range(min(len(saved["trials"]), len(described["trials"])))
            kept = [number for number in common if search.can_resume(number)]
            for number in kept:
                for key in TRIAL_LISTS:
                    described[key][number] = saved[key][number]
            described |= {"kept": kept, "changes": [*saved.get("changes", []), changed]}
            search.folder.write(cls.SEARCH, json.dumps(described, indent=1).encode())
        return search

    def can_resume(self, number: int) -> bool:
        """Whether a trial has written a status. Its folder may exist before that."""
        return self.trial(number).get_status()["state"] != "unknown"

    def scores(self, number: int) -> list[tuple[int, float]]:
        """All pairs (images seen, score) of a trial, sorted by images.

        They come from the trial's log: after a kill, events.json may lack the last score.
        """
        description = self.description()
        batch_size, metric = description["trials"][number]["batch_size"], description["metric"]
        rows = [row for row in self.trial(number).read_metrics() if isinstance(row.get("step"), int)]
        return sorted((row["step"] * batch_size, row[metric]) for row in rows if isinstance(row.get(metric), float))

    def add_trials(self, values: list[dict[str, Any]], trials: list[dict[str, Any]]) -> None:
        """Add trials that a searcher has proposed: their searched values, and their whole configurations."""
        description = self.description()
        for key, added in zip(TRIAL_LISTS, (values, trials), strict=True):
            description[key] += added
        self.folder.write(self.SEARCH, json.dumps(description, indent=1).encode())

    def description(self) -> dict[str, Any]:
        """The content of search.json. Raises BadCheckpoint if it is not JSON."""
        return manifests.parse_json(f"{self.folder}/{self.SEARCH}", self.folder.read(self.SEARCH))

    def save_events(self, halving: Halving) -> None:
        self.folder.write(self.EVENTS, json.dumps(halving.events).encode())

    def halving(self) -> Halving:
        """The scores and decisions at the rungs, restored from events.json."""
        description = self.description()
        events: list[dict[str, Any]] = []
        if self.folder.is_file(self.EVENTS):
            try:
                events = json.loads(self.folder.read(self.EVENTS))
            except ValueError as error:
                raise manifests.BadCheckpoint(f"{self.folder}/{self.EVENTS} is not JSON ({error})") from None
        reduction = description["reduction"]
        levels = rungs(description["grace"], description["budget"], reduction)
        stops = description["early_stopping"] and description["searcher"] != POPULATION
        return Halving.replay(events, levels, reduction if stops else 1, lower_is_better(description["metric"]))


def code() -> dict[str, str]:
    """The first digits of the SHA-256 of each module that a trial's scores depend on, by its path in the package."""
    root = Path(__file__).parents[1]
    files = sorted(file for package in CODE_PACKAGES for file in (root / package).rglob("*.py"))
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
        if halving.decision(number) is not Decision.STOP
        and not halving.has_ended(number)
        and search.trial(number).get_status()["state"] not in done
    ]
