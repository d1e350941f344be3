"""Compare a uniform and a learned prior on digits of which five are ten times as frequent as the others.

    python -m benchmarks.imbalance --seeds 3
    python -m benchmarks.imbalance --seeds 1 --settings uniform real -- --steps 1500 --network.width 16

It writes a subset of MNIST's training images to images.npz and trains the preset mnist_robust on it in this process,
without Ray. Arguments after ``--`` go to every training. The same command continues an interrupted benchmark: finished
runs are in STORAGE/imbalance.jsonl, and others continue from their last checkpoint.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from scipy.optimize import linear_sum_assignment

from benchmarks.figures import rows_of
from infogan_ray.cli.train import train_config
from infogan_ray.data.datasets import load_images
from infogan_ray.data.progress import duration
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.load_model import load
from infogan_ray.training.worker import run_worker

JOURNAL, IMAGES = "imbalance.jsonl", "images.npz"
SETTINGS = {
    "uniform": [],
    "real": ["--prior.learn", "--prior.method", "real"],
    "gumbel": ["--prior.learn", "--prior.method", "gumbel"],
}


@dataclass
class Imbalance:
    """Train on uneven digits with a uniform prior and with learned ones, and compare."""

    settings: tuple[Literal["uniform", "real", "gumbel"], ...] = ("uniform", "real")
    seeds: int = 1
    first_seed: int = 0
    ratio: int = 10
    """Frequency of the frequent digits divided by that of the rare digits."""
    storage: Path = Path("runs/imbalance")
    threads: int = 1
    only_tell: bool = False
    """Train nothing; print the table of finished runs."""


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given, more = tyro.cli(Imbalance, args=arguments[:cut]), arguments[cut + 1 :]
    torch.set_num_threads(given.threads)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for setting in given.settings:
            if not given.only_tell and not any(
                is_row_of(row, given, setting, seed, more) for row in journal(given.storage)
            ):
                train(given, setting, seed, more)
    mine = [row for row in journal(given.storage) if row["flags"] == more and row["ratio"] == given.ratio]
    print_table([row for row in mine if row["setting"] in given.settings])
    return 0


def is_row_of(row: dict[str, Any], given: Imbalance, setting: str, seed: int, flags: list[str]) -> bool:
    return (row["setting"], row["seed"], row["ratio"], row["flags"]) == (setting, seed, given.ratio, flags)


def journal(storage: Path) -> list[dict[str, Any]]:
    return rows_of(storage / JOURNAL)


def subset(labels: np.ndarray, ratio: int, seed: int) -> np.ndarray:
    """(N,) True for images to keep: all of five labels that the seed chooses, and every ratio-th of the others."""
    rare = np.random.default_rng(seed).permutation(10)[5:]
    kept = np.ones(len(labels), bool)
    for label in rare:
        at = np.flatnonzero(labels == label)
        kept[at] = np.arange(len(at)) % ratio == 0
    return kept


def write(path: Path, ratio: int, seed: int) -> None:
    """Write the uneven digits as an .npz file, unless it exists. An existing file is complete."""
    if path.exists():
        return
    digits = load_images("mnist", RunConfig().data_config, say=lambda line: print(line, file=sys.stderr))
    assert digits.labels is not None
    kept = torch.from_numpy(subset(digits.labels.numpy(), ratio, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, images=digits.images[kept].squeeze(1).numpy(), labels=digits.labels[kept].numpy())
    part.rename(path)


def train(given: Imbalance, setting: str, seed: int, flags: list[str]) -> None:
    """Train or continue one run, and add its row to the journal."""
    data = given.storage / f"ratio{given.ratio}-seed{seed}" / IMAGES
    write(data, given.ratio, seed)
    name = "-".join([setting, f"ratio{given.ratio}", *(flag.strip("-").replace("/", "_") for flag in flags), f"{seed}"])
    words = ["--preset", "mnist_robust", "--data", str(data), "--seed", str(seed), "--name", name, "--device", "cpu"]
    config = train_config([*words, *SETTINGS[setting], *flags])
    images = load_images(str(data), config.data_config, say=lambda line: None)
    folder = open_storage(given.storage / name)
    run, resumed = RunDirectory(folder), bool(list(folder.entries()))
    spec = config.model_spec(images.image_size, images.channels)
    run.write_config({"model": spec.to_dict(), "run": replace(config, resume=resumed).to_dict()})
    start, output = time.monotonic(), 0
    for report in run_worker(config, images, run, device=torch.device("cpu")):
        if (step := report.metrics.get("step", 0)) >= output + 100:
            output = step
            print(f"{name}: step {step:,}, {duration(time.monotonic() - start)}", file=sys.stderr)
        final = report.metrics
    assert images.labels is not None
    counts = torch.bincount(images.labels, minlength=10).double()
    row = {"setting": setting, "seed": seed, "ratio": given.ratio, "flags": flags, "name": name}
    row |= {key: final[key] for key in ("clustering_error", "nmi", "ari", "mi_bound", "mi_fraction", "swd", "q_score")}
    code = load(run.model.uri).spec.latents[final["clustering_code"]]
    table, p = np.array(final["confusion"]), np.array(code.probabilities)
    row |= {"balanced_accuracy": balanced_accuracy(table), "prior": p.tolist()}
    row |= {"prior_distance": prior_distance(table, p, (counts / counts.sum()).numpy()), "confusion": table.tolist()}
    row["seconds"] = None if resumed else time.monotonic() - start
    with open(given.storage / JOURNAL, "a") as file:
        file.write(json.dumps(row) + "\n")


def matching(table: np.ndarray) -> np.ndarray:
    """The one-to-one label of each category with the largest sum in a table (k, k) of categories and labels."""
    return linear_sum_assignment(table, maximize=True)[1]


def balanced_accuracy(table: np.ndarray) -> float:
    """Mean over labels of the fraction of images in the matching category. Rare and frequent labels count equally."""
    labels = matching(table)
    return float(np.mean(table[np.arange(len(table)), labels] / table.sum(0)[labels]))


def prior_distance(table: np.ndarray, prior: np.ndarray, frequencies: np.ndarray) -> float:
    """Total variation (0 to 1) between the prior and the frequencies of the labels that its categories match."""
    return float(np.abs(prior - frequencies[matching(table)]).sum() / 2)


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| prior | seeds | clustering error | NMI | ARI | balanced accuracy | prior's distance | SWD | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == setting]
        columns = ("clustering_error", "nmi", "ari", "balanced_accuracy", "prior_distance", "swd")
        means = {name: statistics.fmean(row[name] for row in mine) for name in columns}
        seconds = [row["seconds"] for row in mine if row["seconds"] is not None]
        cells = [
            setting, str(len(mine)), f"{means['clustering_error']:.2%}", f"{means['nmi']:.3f}", f"{means['ari']:.3f}",
            f"{means['balanced_accuracy']:.1%}", f"{means['prior_distance']:.3f}", f"{means['swd']:.1f}",
            duration(statistics.fmean(seconds)) if seconds else "-",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
