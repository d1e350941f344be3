"""infogan runs: lists the runs of a storage folder, or the checkpoints of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from infogan_ray.cli.display import print_rows
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.cli.search import board_rows
from infogan_ray.data.progress import counted
from infogan_ray.evaluation.metrics import CHECKPOINT, headlines_of
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, list_runs
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.training.run_listing import outcome, run_row, state_of


@dataclass
class Runs:
    storage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORAGE[/NAME]")]
    """STORAGE for all runs, or STORAGE/NAME for one run's checkpoints."""
    json: bool = False
    """Print one JSON object on stdout."""


def runs(arguments: list[str]) -> int:
    given = parse(
        Runs,
        "runs",
        arguments,
        "List runs, the checkpoints of a run, or the trials of a search.",
        [
            "runs runs",
            "runs runs/first",
            "runs s3://bucket/runs --json",
        ],
    )
    storage = open_storage(given.storage)
    if SearchDirectory(storage).exists:
        print_rows(str(storage), board_rows(leaderboard(SearchDirectory(storage)), given.json), given.json)
        return DONE
    if RunDirectory(storage).looks_like_run:
        return _one_run(RunDirectory(storage), given.json)
    rows = [run_row(run) for run in list_runs(storage)]
    if not given.json:
        for row in rows:
            counts = {word: row.pop(word.replace(" ", "_") + "s") for word in _COUNTS}
            row["notes"] = ", ".join(counted(count, word) for word, count in counts.items() if count) or None
    print_rows(str(storage), rows, given.json)
    for entry in storage.entries():
        if entry.is_folder and (search := SearchDirectory(storage / entry.name)).exists:
            warn(f"{entry.name} is a search; its leaderboard: infogan runs {shell_word(search.folder.uri)}")
    return DONE


_COUNTS = ("unfinished checkpoint", "broken checkpoint", "restart")


def _one_run(run: RunDirectory, as_json: bool) -> int:
    found = outcome(run)
    good, bad, chosen, state = state_of(run, found["state"], verify=run.folder.is_local)
    last = checkpoints.last(good)
    rows = []
    for checkpoint in good:
        marks = [word for word, other in (("best", chosen), ("last", last)) if other is checkpoint]
        marks += ["last good"] if checkpoint.name == found["last_good"] else []
        shown = headlines_of(checkpoint.metrics, (CHECKPOINT,))
        rows.append({"checkpoint": checkpoint.name, **shown, "is": ", ".join(marks)})
    if as_json:
        print_json({**found, "state": state, "rows": rows})
    else:
        cause = f": {found['cause']}" if found["cause"] else ""
        print_result(f"{run.folder}: {state} at step {found['step']:,}{cause}")
        print_rows(f"checkpoints of {run.name}", rows, False)
    for error in bad:
        kind = "unfinished" if isinstance(error, manifests.IncompleteCheckpoint) else "broken"
        print_progress(f"{kind}: {error}")
    return DONE
