"""InfoGAN's forms on images of other kinds than MNIST, with equal numbers of images and with equal time.

    python -m benchmarks.images --sets emoji32 letters --images 200000 --threads 1
    python -m benchmarks.images --only-tell --picture runs/images            # the table again, and PICTURE/SET.png
    python -m benchmarks.images --list                                       # sets and forms, with their flags

``benchmarks.image_data`` fetches the images. With ``--equal-time``, each faster form is trained once more, with as many
steps as it needs for the time of the slowest. Arguments after ``--`` go to every ``infogan train``, for example
``-- --network.width 32``. The same command continues an interrupted benchmark: finished runs are in
STORAGE/images.jsonl. docs/images.md has results and pictures.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image, ImageDraw

from benchmarks.figures import rows_of
from benchmarks.image_data import SOURCES, fetch
from infogan_ray.cli.train import train_config
from infogan_ray.data.progress import duration

JOURNAL, DATA = "images.jsonl", Path("runs/images")
CODES = "--codes 'noise=62 cat=10 uniform=2'"
SETS: dict[str, tuple[str, str]] = {  # the data, and flags
    "emoji32": ("emoji", f"--image-size 32 --channels 3 {CODES}"),
    "emoji64": ("emoji", f"--image-size 64 --channels 3 {CODES}"),
    "flags32": ("flags", f"--image-size 32 --channels 3 {CODES}"),
    "letters": ("letters", f"--image-size 32 --channels 1 {CODES}"),
    "fashion_mnist": ("fashion_mnist", f"--image-size 32 --channels 1 {CODES}"),
    "shapes64": ("shapes", "--image-size 64 --channels 1 --codes 'noise=52 uniform=5'"),
}
FORMS: dict[str, str] = {
    "paper": "",
    "mnist_robust": "--preset mnist_robust",
    "photos": "--preset photos",
}
COLUMNS = {
    "swd": ("SWD", ".1f"), "frechet_distance": ("Fréchet", ".1f"), "kernel_distance": ("kernel", ".3f"),
    "precision": ("precision", ".2f"), "recall": ("recall", ".2f"), "spread": ("spread", ".2f"),
    "spread_in_category": ("in a category", ".2f"), "clustering_error": ("error", ".1%"),
    "clustering_acc_hungarian": ("one-to-one", ".1%"),
}  # fmt: skip
MOST_IN_NAME = 120
TILES = 6  # images in a row and in a column of a picture


@dataclass
class Images:
    """Train forms of InfoGAN on sets of images, and compare the results."""

    sets: tuple[str, ...] = ("emoji32", "flags32", "letters")
    forms: tuple[str, ...] = ("paper", "photos")
    images: int = 200_000
    """Training images of each run: its steps times its batch."""
    seeds: int = 1
    equal_time: bool = False
    """Also train each faster form as long as the slowest."""
    storage: Path = Path("runs/images")
    threads: int | None = None
    picture: Path | None = None
    """A folder for pictures: real images beside those of each form, a file per set."""
    only_tell: bool = False
    """Train nothing; print the table of finished runs."""
    list: bool = False
    """Train nothing; print sets and forms with their flags."""


@dataclass(frozen=True)
class Run:
    """One training: a set, a form, a seed, and the number of steps."""

    set: str
    form: str
    seed: int
    steps: int
    more: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """The flags of ``infogan train``. The set's come last, since a form's preset has others."""
        words = [*shlex.split(FORMS[self.form]), *shlex.split(SETS[self.set][1]), *self.more]
        return [*words, "--steps", str(self.steps), "--seed", str(self.seed)]

    @property
    def name(self) -> str:
        """The same for the same flags. A name of a run has at most 200 bytes."""
        extra = "".join(f"-{word.strip('-')}" for word in self.more).replace(" ", "_").replace("/", "_")
        if len(extra) > MOST_IN_NAME:
            extra = f"{extra[:MOST_IN_NAME]}-{hashlib.sha256(extra.encode()).hexdigest()[:8]}"
        return f"{self.set}-{self.form}{extra}-{self.steps}-seed{self.seed}"


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given, more = tyro.cli(Images, args=arguments[:cut]), tuple(arguments[cut + 1 :])
    if given.list:
        for name, (data, flags) in SETS.items():
            print(f"{name:14} --data {data} {flags}")
        for name, flags in FORMS.items():
            print(f"{name:14} {flags}")
        return 0
    for chosen, known in ((given.sets, SETS), (given.forms, FORMS)):
        if unknown := [name for name in chosen if name not in known]:
            raise SystemExit(f"{unknown[0]} is not known; valid are {', '.join(known)}")
    for run in () if given.only_tell else runs(given, more):
        if not any(row["name"] == run.name for row in rows_of(given.storage / JOURNAL)):
            train(given, run)
    rows = [row for row in rows_of(given.storage / JOURNAL) if row["set"] in given.sets and row["more"] == list(more)]
    print_table([row for row in rows if row["form"] in given.forms])
    if given.picture is not None:
        given.picture.mkdir(parents=True, exist_ok=True)
        for name in given.sets:
            draw(given, name, [row for row in rows if row["set"] == name and row["code"] == 0])
    return 0


def runs(given: Images, more: tuple[str, ...]) -> Iterator[Run]:
    """All runs with equal numbers of images, and then those with equal time."""
    for seed in range(given.seeds):
        for name in given.sets:
            equal = []
            for form in given.forms:
                batch = train_config([*Run(name, form, seed, 1, more).flags, "--data", "mnist"]).batch_size
                equal.append(Run(name, form, seed, given.images // batch, more))
                yield equal[-1]
            if not given.equal_time:
                continue
            rows = {row["name"]: row for row in rows_of(given.storage / JOURNAL)}
            seconds = [rows[run.name].get("seconds") for run in equal]
            longest = max(second or 0 for second in seconds)
            for run, second in zip(equal, seconds, strict=True):
                if second and second < 0.95 * longest:
                    yield Run(name, run.form, seed, round(run.steps * longest / second / 10) * 10, more)


def data_of(name: str) -> str:
    """What --data gets for a set."""
    data = SETS[name][0]
    return next((str(fetch(source, DATA).resolve()) for source in SOURCES if source == data), data)


def train(given: Images, run: Run) -> None:
    """Train and measure a run, and write a row of the journal. A diverged run is a result; other errors are not."""
    command = [sys.executable, "-m", "infogan_ray", "train", *run.flags, "--data", data_of(run.set)]
    command += ["--name", run.name, "--storage", str(given.storage), "--start-or-resume", "--json"]
    command += ["--threads", str(given.threads)] if given.threads else []
    print(f"{run.name}: {shlex.join(command[1:])}", file=sys.stderr)
    resumed, start = (given.storage / run.name).exists(), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{run.name} ended with exit code {done.returncode}; fix the cause, then run this again")
    row: dict[str, Any] = {"name": run.name, "set": run.set, "form": run.form, "seed": run.seed, "steps": run.steps}
    row |= {"more": list(run.more), "code": done.returncode}
    if done.returncode == 0:
        row |= json.loads(done.stdout.splitlines()[-1])
        row |= {"seconds": None if resumed else time.monotonic() - start, "steps": run.steps}
        row["batch_size"] = train_config([*run.flags, "--data", "mnist"]).batch_size
        row |= quality(given, run)
    with open(given.storage / JOURNAL, "a") as file:
        file.write(json.dumps(row) + "\n")


def quality(given: Images, run: Run) -> dict[str, Any]:
    """The metrics of ``infogan evaluate --quality``. Empty for data without labels."""
    if SETS[run.set][0] in ("flags", "shapes"):
        return {}
    command = [sys.executable, "-m", "infogan_ray", "evaluate", str(given.storage / run.name), "--quality", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{run.name} is trained and could not be evaluated (exit code {done.returncode})")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found["quality"] | {name: found[name] for name in COLUMNS if name in found}


def print_table(rows: list[dict[str, Any]]) -> None:
    """A row for each set, form and number of steps: means over seeds."""
    print(
        f"| set | form | seeds | images | time | {' | '.join(title for title, _ in COLUMNS.values())} | bound (nats) |"
    )
    print(f"|{'---|' * (len(COLUMNS) + 6)}")
    keys = dict.fromkeys((row["set"], row["form"], row["steps"]) for row in rows)
    for key in sorted(keys, key=lambda key: list(SETS).index(key[0])):
        mine = [row for row in rows if (row["set"], row["form"], row["steps"]) == key]
        good = [row for row in mine if row["code"] == 0]
        if not good:
            print(f"| {key[0]} | {key[1]} | {len(mine)}, all diverged |")
            continue
        seconds = [row["seconds"] for row in good if row["seconds"]]
        cells = [key[0], key[1], str(len(good)), f"{key[2] * good[0]['batch_size']:,}"]
        cells.append(duration(statistics.fmean(seconds)) if seconds else "-")
        cells += [cell(good, name, form) for name, (_, form) in COLUMNS.items()]
        codes = [name for name in good[0] if name.startswith("mi/")]
        cells.append(", ".join(f"{name.removeprefix('mi/')} {cell(good, name, '.2f')}" for name in codes))
        print(f"| {' | '.join(cells)} |")


def cell(rows: list[dict[str, Any]], name: str, form: str) -> str:
    values = [row[name] for row in rows if isinstance(row.get(name), (int, float))]
    return f"{statistics.fmean(values):{form}}" if values else "-"


def draw(given: Images, name: str, rows: list[dict[str, Any]]) -> None:
    """Write PICTURE/SET.png: samples of the last run of each form, side by side, with the form's name above."""
    latest = {row["form"]: row for row in rows if row["form"] in given.forms}
    panels = [(form, Image.open(given.storage / row["name"] / "model/samples.png")) for form, row in latest.items()]
    if not panels:
        return
    side = panels[0][1].width * TILES // 8  # samples.png has 8 images in a row
    picture = Image.new("RGB", (len(panels) * (side + 12), side + 20), "white")
    pen = ImageDraw.Draw(picture)
    for number, (form, samples) in enumerate(panels):
        left = number * (side + 12)
        pen.text((left, 4), f"{form}, {latest[form]['steps'] * latest[form]['batch_size']:,} images", "black")
        picture.paste(samples.convert("RGB").crop((0, 0, side, side)), (left, 20))
    picture.save(given.picture / f"{name}.png")  # type: ignore[operator]
    print(given.picture / f"{name}.png")  # type: ignore[operator]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
