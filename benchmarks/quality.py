"""Quality of presets over seeds, including the worst seed, and whether the best can be picked without labels.

    python -m benchmarks.quality mnist_robust --seeds 10 --threads 1
    python -m benchmarks.quality mnist mnist_robust fashion_mnist --seeds 5 -- --steps 2000
    python -m benchmarks.quality --search runs/seeds    # the same table for the trials of a search

Arguments after ``--`` go to every ``infogan train``. The same command continues an interrupted benchmark: finished runs
are in STORAGE/quality.jsonl, and an unfinished run continues from its last checkpoint. On a cluster, ``infogan search
tuning/seeds.py`` trains the seeds in parallel. Any search with ``seed`` in its space can be used.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.figures import rows_of
from infogan_ray.data.progress import duration
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage import manifests
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.training.publish import METRICS

JOURNAL = "quality.jsonl"
DISENTANGLEMENT = {
    "mig": "MIG", "sap": "SAP", "dci_disentanglement": "DCI: D", "dci_completeness": "C",
    "dci_informativeness": "I", "factor_vae": "FactorVAE", "beta_vae": "beta-VAE",
}  # fmt: skip
COLUMNS = ("clustering_error", "nmi", "ari", "mi_fraction", "swd", "q_score", "frechet_distance", "seconds")


@dataclass
class Quality:
    """Train presets with several seeds and compare the results."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ()
    seeds: int = 5
    first_seed: int = 0
    storage: Path = Path("runs/quality")
    threads: int | None = None
    """Threads per run. Two runs with one thread each are faster than one run with two: start the command twice, with
    different seeds."""
    frechet: bool = False
    """Also compute the Fréchet distance of each new run (``infogan evaluate --quality``), outside its measured time.
    Distances are comparable if ``quality.classifier`` in the journal is the same."""
    disentanglement: str | None = None
    """Also compute the disentanglement scores of each new run with these known factors: ``shapes`` or dSprites' file
    (``infogan evaluate --disentanglement``)."""
    only_tell: bool = False
    """Train nothing; print the table of finished runs."""
    search: str | None = None
    """STORAGE/SEARCH. Train nothing; print the table of this search's trials, grouped by all values except the seed."""


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    mine, more = arguments[:cut], arguments[cut + 1 :]
    given = tyro.cli(Quality, args=mine)
    if given.search:
        rows = trials(SearchDirectory(open_storage(given.search)))
        print_table(rows, "values")
        return 0 if rows else 1
    if not given.presets:
        raise SystemExit("presets are not given; name one or more (mnist_robust, ...), or a search by --search")
    for preset in given.presets:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            if not given.only_tell and not any(is_row_of(row, preset, seed, more) for row in journal(given.storage)):
                run(given, preset, seed, more)
    print_table([row for row in journal(given.storage) if row["preset"] in given.presets and row["flags"] == more])
    return 0


def trials(search: SearchDirectory) -> list[dict[str, Any]]:
    """A row for each finished or diverged trial. Other trials are reported on stderr."""
    if not search.exists:
        raise SystemExit(f"search {search.folder} does not exist; name STORAGE/SEARCH as `infogan runs` lists them")
    rows, about = [], search.description()
    for number, (config, values) in enumerate(zip(about["trials"], about["values"], strict=True)):
        trial = search.trial(number)
        state = trial.get_status()["state"]
        heading = ", ".join(f"{path} {value}" for path, value in values.items() if path != "seed") or search.name
        row = {"preset": heading, "seed": config["seed"], "code": 3 if state == "diverged" else 0}
        if state == "finished":
            try:
                row |= manifests.Manifest.load(trial.model, required=(METRICS,)).read_json(METRICS)
            except (ValueError, StorageError) as error:
                state = f"finished, and its model cannot be read ({error})"
        if state in ("finished", "diverged"):
            rows.append(row)
        else:
            print(f"trial {number} ({heading}, seed {row['seed']}) is left out: {state}", file=sys.stderr)
    return rows


def is_row_of(row: dict[str, Any], preset: str, seed: int, flags: list[str]) -> bool:
    return (row["preset"], row["seed"], row["flags"]) == (preset, seed, flags)


def journal(storage: Path) -> list[dict[str, Any]]:
    return rows_of(storage / JOURNAL)


def run(given: Quality, preset: str, seed: int, flags: list[str]) -> None:
    """Train one run with ``infogan train``. Its time includes the start and every evaluation."""
    name = "-".join([preset, *(flag.strip("-").replace("/", "_").replace(" ", "_") for flag in flags), f"seed{seed}"])
    command = [sys.executable, "-m", "infogan_ray", "train", "--preset", preset, "--seed", str(seed), "--name", name]
    command += ["--storage", str(given.storage), "--start-or-resume", "--json", *flags]
    command += ["--threads", str(given.threads)] if given.threads else []
    resumed = (given.storage / name).exists()
    print(f"{preset}, seed {seed}: {shlex.join(command[1:])}", file=sys.stderr)
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = {"preset": preset, "seed": seed, "flags": flags, "name": name, "code": done.returncode}
    if done.returncode == 0:
        row |= json.loads(done.stdout.splitlines()[-1])
        row["seconds"] = None if resumed else time.monotonic() - start
        if given.frechet:
            row["quality"] = evaluated(given, name, "quality", "--quality")
            row["frechet_distance"] = row["quality"]["frechet_distance"]
        if given.disentanglement:
            row["disentanglement"] = evaluated(
                given, name, "disentanglement", "--disentanglement", given.disentanglement
            )
    elif done.returncode != 3:  # a diverged run is a result; other errors are not
        raise SystemExit(f"{name} ended with exit code {done.returncode}; fix the cause, then run the command again")
    given.storage.mkdir(parents=True, exist_ok=True)
    with open(given.storage / JOURNAL, "a") as file:
        file.write(json.dumps(row) + "\n")


def evaluated(given: Quality, name: str, part: str, *flags: str) -> dict[str, Any]:
    """This part of the results of ``infogan evaluate`` with these flags, for a finished run's best checkpoint."""
    command = [sys.executable, "-m", "infogan_ray", "evaluate", str(given.storage / name), *flags, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} is trained and could not be evaluated (exit code {done.returncode}); fix the "
                         "cause, then run the command again")  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])[part]
    return found


def print_table(rows: list[dict[str, Any]], heading: str = "preset") -> None:
    """Print a table with a row per value of ``preset`` in the rows, and the seed that is picked without labels."""
    print(f"| {heading} | seeds | error mean | worst | best | NMI | ARI | bound fraction | SWD | Fréchet | time |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for preset in dict.fromkeys(row["preset"] for row in rows):
        ended = [row for row in rows if row["preset"] == preset]
        good = [row for row in ended if row["code"] == 0]
        if not good:
            print(f"| {preset} | {len(ended)}, {len(ended)} diverged |{' - |' * 8}")
            continue
        errors = column(good, "clustering_error")
        means = {name: mean(column(good, name)) for name in COLUMNS}
        diverged = f", {len(ended) - len(good)} diverged" if len(ended) > len(good) else ""
        cells = [
            preset, f"{len(ended)}{diverged}", f"{means['clustering_error']:.2%}",
            f"{max(errors):.2%}", f"{min(errors):.2%}", f"{means['nmi']:.3f}", f"{means['ari']:.3f}",
            f"{means['mi_fraction']:.3f}", f"{means['swd']:.1f}" if column(good, "swd") else "-",
            f"{means['frechet_distance']:.2f}" if column(good, "frechet_distance") else "-",
            duration(means["seconds"]) if column(good, "seconds") else "-",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print_disentanglement([row for row in rows if "disentanglement" in row], heading)
    for preset in dict.fromkeys(row["preset"] for row in rows):
        good = [row for row in rows if row["preset"] == preset and row["code"] == 0 and row.get("q_score") is not None]
        if len(good) > 1:
            pick, best = max(good, key=lambda row: row["q_score"]), min(good, key=lambda row: row["clustering_error"])
            print(
                f"\n{preset}: without labels (q_score) seed {pick['seed']} is picked, {pick['clustering_error']:.2%}; "
                f"the best is seed {best['seed']}, {best['clustering_error']:.2%}"
            )


def print_disentanglement(rows: list[dict[str, Any]], heading: str) -> None:
    """Print means over seeds with the minimum and maximum of each score."""
    if not rows:
        return
    print(f"\n| {heading} | seeds | {' | '.join(DISENTANGLEMENT.values())} |\n|---|---|{'---|' * len(DISENTANGLEMENT)}")
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row["disentanglement"] for row in rows if row["preset"] == preset]
        cells = []
        for name in DISENTANGLEMENT:
            values = column(mine, name)
            cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {preset} | {len(mine)} | {' | '.join(cells)} |")


def column(rows: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
