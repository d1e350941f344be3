"""The limits at 1,000 GPUs and 10,000 trials: parts are measured on this machine, the rest is computed from them.

    python -m benchmarks.scale                              # a minute and a half on one core
    python -m benchmarks.scale --parts link failures        # only computed figures, immediately
    python -m benchmarks.scale --parts ray                  # operations per second of an embedded Ray

Measured: the package's modules with real files, and storage operations, which are counted below ``Storage``. Links,
failures and the latency of an object store cannot be measured on one machine: they are flags, and named in the figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.cost_model import HOUR, all_reduce_bytes, daly, rewritten, simulated_share, useful_share
from benchmarks.counting import counting_storage
from benchmarks.figures import publish
from infogan_ray.cli import runs as runs_command
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.unsupervised_metrics import IMAGES, agreement
from infogan_ray.models.batch_norm import BatchNorm
from infogan_ray.searches.asha import Decision, Halving
from infogan_ray.searches.leaderboard import publish_leaderboard
from infogan_ray.searches.recipe import Recipe, load_recipe
from infogan_ray.searches.search_directory import SearchDirectory, remaining
from infogan_ray.searches.selection_rules import DEFAULT, ranked
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.metrics_log import MetricsLog
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.checkpoint_uploader import HEARTBEAT_S, CheckpointUploader, PendingCheckpoint
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import train
from infogan_ray.training.train_state import TrainState, checkpoint_bytes
from infogan_ray.web.reports.search import write_search_report

PARTS = ("halving", "journal", "board", "agreement", "run", "metrics", "draw", "link", "failures")
ALL = Literal["halving", "journal", "board", "agreement", "run", "metrics", "draw", "link", "failures", "ray"]
RECIPE = Path(__file__).parents[1] / "tuning" / "mnist.py"
LINKS = {"10 GbE": 1.25e9, "100 Gb/s InfiniBand": 12.5e9, "NVLink": 450e9}
"""Bytes per second in one direction; nominal."""
Figures = dict[str, Any]


@dataclass
class Scale:
    """Measure the parts and compute the totals at scale."""

    parts: tuple[ALL, ...] = PARTS
    gpus: int = 1000
    trials: int = 10_000
    boards: tuple[int, ...] = (100, 1000)
    """Numbers of trials of the searches that are written to disk."""
    gpu_step_ms: float = 5.0
    """Assumed: a step of the paper's network on one GPU."""
    stall_s: float = 2.0
    """Assumed: seconds that training waits for a checkpoint (rank 0 evaluates and packs, the others wait)."""
    mtbf_h: tuple[float, ...] = (50_000.0, 1000.0, 24.0)
    """Assumed: hours between failures of one GPU with its share of a machine. 50,000 is Llama 3's cluster
    (arXiv:2407.21783: 419 unexpected stops of 16,384 GPUs in 54 days); 24 is a spot machine that is reclaimed daily."""
    recovery_s: tuple[float, ...] = (46.0, 300.0)
    """Seconds from a failure to training. 46 was measured with two machines (docs/cluster.md); 300 is a guess."""
    call_ms: float = 30.0
    """Assumed: milliseconds per call of an object store."""
    upload: float = 100e6
    """Assumed: bytes per second of one writer to an object store."""
    seed: int = 0
    json: Path | None = None
    """File for the figures."""


def main() -> int:
    given = tyro.cli(Scale)
    measure: dict[str, Callable[[Scale, Path], Figures]] = {
        "halving": halving_cost, "journal": journal, "board": boards, "agreement": agreements, "run": run_storage,
        "metrics": metrics_growth, "draw": latents, "link": link, "failures": failures,
        "ray": on_ray,
    }  # fmt: skip
    figures: Figures = {}
    for part in given.parts:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="infogan-scale-") as folder:
            figures |= measure[part](given, Path(folder))
        print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    publish(figures, given.json)
    return 0


def calls_text(calls: Counter[str], over: int = 1) -> str:
    each = ", ".join(f"{count / over:.3g} {kind}" for kind, count in sorted(calls.items()))
    return f"{sum(calls.values()) / over:.3g} ({each})" if calls else "0"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def span(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.3g} h"


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


# --------------------------------------------------------------------------------------------------- the search's side


def halving_cost(given: Scale, folder: Path) -> Figures:
    """Time of the halving for each report, and for all trials when a search is resumed."""
    recipe, rng = load_recipe(RECIPE), random.Random(given.seed)
    halving, silent = (Halving(recipe.rungs, recipe.reduction) for _ in range(2))
    reported = timed(lambda: [halving.report(n, r, rng.random()) for n in range(given.trials) for r in recipe.rungs])
    decided = timed(lambda: [halving.stopped_at(n) for n in range(given.trials)])
    for trial in range(1, given.trials):
        silent.report(trial, recipe.grace, rng.random())
    waiting = min(timed(lambda: silent.decision(given.trials - 1)) for _ in range(3))
    return {
        f"halving: one report, the mean of {given.trials:,} trials": f"{1e6 * reported / len(halving.events):.2g} µs",
        f"halving: all verdicts of {given.trials:,} trials, which a resume computes": span(decided),
        f"halving: a verdict of trial {given.trials:,} while trial 0 has not reported": f"{1e6 * waiting:.2g} µs",
    }


def journal(given: Scale, folder: Path) -> Figures:
    """Sizes of events.json and search.json, and the cost of writing and reading them."""
    figures: Figures = {}
    small = load_recipe(RECIPE)
    weights = []
    for count in (given.trials // 100, given.trials // 10, given.trials):
        search = SearchDirectory(open_storage(folder) / f"s{count}")
        halving = simulate_search(count, small, given.seed)[0]
        took = statistics.median(timed(lambda s=search, h=halving: s.save_events(h)) for _ in range(3))
        weight = (folder / f"s{count}" / search.EVENTS).stat().st_size
        weights.append((len(halving.events), weight, took))
        figures[f"journal: events.json of {count:,} trials; one save on this disk"] = (
            f"{len(halving.events):,} events, {size(weight)}; {span(took)}"
        )
    events, weight, took = weights[-1]
    figures[f"journal: all saves of {given.trials:,} trials (one per event, the whole file each)"] = (
        f"{size(events * weight / 2)}; {span(events * took / 2)} here, {span(events * given.call_ms / 500)} of a store "
        f"at {given.call_ms:g} ms a call, all in the driver's loop"
    )
    part = given.trials // 10
    recipe = dataclasses.replace(small, trials=part)
    made = timed(lambda: dataclasses.replace(small, trials=part))
    search = SearchDirectory(open_storage(folder) / "described")
    search.folder.write(search.SEARCH, json.dumps(recipe.describe(), indent=1).encode())
    weight = (folder / "described" / search.SEARCH).stat().st_size
    parsed = min(timed(search.description) for _ in range(3))
    scale = given.trials / part
    figures[f"journal: search.json of {part:,} trials; to parse it"] = f"{size(weight)}; {span(parsed)}"
    figures[f"journal: read and parsed once per trial that starts, {given.trials:,} trials (computed)"] = (
        f"{size(weight * scale)} and {span(parsed * scale)} each, {size(weight * scale * given.trials)} and "
        f"{span(parsed * scale * given.trials)} of CPU in total"
    )
    figures[f"journal: a recipe of {given.trials:,} trials is checked (extrapolated from {part:,})"] = span(
        made * scale
    )
    return figures


def simulate_search(count: int, recipe: Recipe, seed: int) -> tuple[Halving, list[int | None]]:
    """The halving of a search whose trials ran one after another, and the rung at which each was stopped.

    Verdicts are random instead of computed: one trial in three passes a rung. File sizes do not depend on this.
    """
    rng = random.Random(seed)
    halving, stopped = Halving(recipe.rungs, recipe.reduction), list[int | None]()
    for trial in range(count):
        for rung in recipe.rungs:
            halving.report(trial, rung, rng.random())
            if rng.random() > 1 / recipe.reduction:
                stopped.append(rung)
                break
        else:
            halving.end(trial)
            stopped.append(None)
    return halving, stopped


def write_search(search: SearchDirectory, count: int, recipe: Recipe, seed: int, line: bytes) -> None:
    """Write a finished search with the file sizes of a real one, except for weights, which no leaderboard reads."""
    rng = random.Random(seed)
    halving = Halving(recipe.rungs, recipe.reduction)
    about = dataclasses.replace(recipe, trials=count).describe()
    root = Path(search.folder.path)
    root.mkdir(parents=True)
    (root / search.SEARCH).write_text(json.dumps(about, indent=1))
    batch, every = about["trials"][0]["batch_size"], about["trials"][0]["checkpoint_every"]
    for trial in range(count):
        quality = rng.random()
        reached, stopped = recipe.budget, False
        for rung in recipe.rungs:
            halving.report(trial, rung, quality + rng.gauss(0, 0.02))
            if halving.decision(trial) is Decision.STOP:
                reached, stopped = rung, True
                break
        else:
            halving.end(trial)
        run, place = search.trial(trial), root / "trials" / f"trial_{trial:04d}"
        place.mkdir(parents=True)
        step = -(-reached // batch)
        state = "stopped" if stopped else "finished"
        (place / run.STATUS).write_text(json.dumps({"state": state, "step": step, "time": time.time()}))
        (place / run.CONFIG).write_text(json.dumps({"run": about["trials"][trial]}, indent=1))
        (place / run.METRICS).write_bytes(b"".join(line.replace(b"STEP", b"%d" % s) for s in range(10, step, 10)))
        scores = {name: quality for name in ("mi_bound", "mi_fraction", "q_score", "clustering_error", "nmi")}
        kept = list(range(every, step + 1, every))[-5:]
        for kept_step in kept:
            files = {checkpoints.MODEL: b"m", checkpoints.STATE: json.dumps(
                {"format": checkpoints.FORMAT, "step": kept_step, "metrics": scores}).encode()}  # fmt: skip
            write_quickly(place / "checkpoints" / step_name(kept_step), files)
        if not stopped:
            categories = {"cat0": [rng.randrange(10) for _ in range(IMAGES)]}
            metrics = {"step": step, "swd": 30 + 10 * rng.random(), **scores}
            write_quickly(place / "model", {
                "metrics.json": json.dumps(metrics).encode(), "categories.json": json.dumps(categories).encode(),
            })  # fmt: skip
    (root / search.EVENTS).write_text(json.dumps(halving.events))


def write_quickly(place: Path, files: dict[str, bytes]) -> None:
    """Like ``manifests.write_with_manifest`` without atomic writes, because there are tens of thousands of files."""
    import hashlib

    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    listed = {k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in files.items()}
    (place / manifests.MANIFEST).write_text(json.dumps({"format": checkpoints.FORMAT, "files": listed}))


def boards(given: Scale, folder: Path) -> Figures:
    """Leaderboard, report, and the calls of a resumed driver before it starts, for searches on this disk."""
    recipe, line = load_recipe(RECIPE), metrics_line()
    figures: Figures = {}
    for count in given.boards:
        local = SearchDirectory(open_storage(folder) / f"b{count}")
        write_search(local, count, recipe, given.seed, line)
        took = timed(lambda s=local: publish_leaderboard(s))
        report_took = timed(lambda s=local: write_search_report(s))
        weight = (Path(local.folder.path) / local.REPORT).stat().st_size
        storage, counter = counting_storage(folder)
        search = SearchDirectory(storage / f"b{count}")
        publish_leaderboard(search)
        calls = counter.pop_calls()
        bytes_each = counter.read / count
        write_search_report(search)
        report_calls = counter.pop_calls()
        halving = search.halving()
        counter.pop_calls()
        todo = remaining(search, halving, count)
        remaining_calls = counter.pop_calls()
        counter.read = 0
        for number in range(min(count, 20)):
            search.scores(number)
        scores, again = counter.pop_calls(), counter.read / min(count, 20)
        store_s = sum(calls.values()) * given.call_ms / 1000
        figures[f"board: leaderboard of {count:,} trials on this disk; calls per trial; bytes read per trial"] = (
            f"{span(took)}; {calls_text(calls, count)}; {size(bytes_each)}"
        )
        figures[f"board: the same on a store at {given.call_ms:g} ms a call, one after the other (computed)"] = (
            f"{span(store_s)} for {count:,}; {span(store_s / count * given.trials)} for {given.trials:,}"
        )
        figures[f"report: report.html of {count:,} trials; time; calls per trial"] = (
            f"{size(weight)}; {span(report_took)}; {calls_text(report_calls, count)}"
        )
        figures[f"resume: calls per trial of remaining(), {len(todo)} of {count:,} left; of scores(); its bytes"] = (
            f"{calls_text(remaining_calls, count)}; {calls_text(scores, min(count, 20))}; {size(again)}"
        )
        if count == given.boards[-1]:
            figures[f"report: of {given.trials:,} trials, in proportion"] = size(weight / count * given.trials)
    return figures


def agreements(given: Scale, folder: Path) -> Figures:
    """Agreement of every pair of finished trials, and ``ranked``, which selects winners repeatedly."""
    rng = np.random.default_rng(given.seed)
    figures: Figures = {}
    for count in (30, 60, 120):
        sortings = [{"cat0": rng.integers(0, 10, IMAGES).tolist()} for _ in range(count)]
        took = timed(lambda s=sortings: agreement(s))
        pairs = count * (count - 1) // 2
        figures[f"board: agreement of {count} finished trials"] = f"{span(took)}, {span(took / pairs)} a pair"
    for finished in (given.trials // 9, given.trials):
        figures[f"board: agreement of {finished:,} finished trials (computed)"] = span(
            took / pairs * finished * (finished - 1) / 2
        )
    for count in (100, 1000, given.trials // 9):
        rows = [
            {
                "trial": n, "state": "finished", "images": 1, "mi_fraction": float(rng.random()),
                "q_score": float(rng.random()), "swd": float(30 + 30 * rng.random()),
            }
            for n in range(count)
        ]  # fmt: skip
        rows += [{**row, "trial": count + n, "state": "stopped"} for n, row in enumerate(rows * 8)]
        took = timed(lambda r=rows: ranked(r, "q_score", DEFAULT))
        figures[f"board: ranked() of {len(rows):,} rows, {count:,} of them finished"] = span(took)
    return figures


# ------------------------------------------------------------------------------------------------------ a run's side


def run_storage(given: Scale, folder: Path) -> Figures:
    """Storage calls of one checkpoint, one heartbeat and ``infogan runs``."""
    images = ImageSet("none", torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    config = RunConfig(preset="mnist")
    weight = checkpoint_bytes(config.model_spec(images.image_size, images.channels))
    storage, counter = counting_storage(folder)
    run = RunDirectory(storage / "run")
    run.write_config({"model": {}, "run": config.to_dict()})
    uploader = CheckpointUploader(run, step=0, keep=5, metric="mi_fraction", max_misses=10)
    pictures = {("samples", "x.png"): b"p"} | {("traversals", f"{n}.png"): b"p" for n in range(3)}
    calls: list[Counter[str]] = []
    for step in range(1, 10):
        counter.pop_calls()
        about = {"metrics": {"mi_fraction": step / 10}}
        files = checkpoints.serialize(step, {"x": torch.zeros(8)}, {"x": torch.zeros(8)}, about)
        uploader.log({"step": step})
        uploader.step = step
        uploader.put(PendingCheckpoint(step, files, pictures))
        uploader.flush()
        time.sleep(0.3)  # the thread's last status update
        calls.append(counter.pop_calls())
    uploader.close("interrupted")
    counter.pop_calls()
    figures: Figures = {
        "run: a checkpoint of the paper's MNIST network": size(weight),
        "run: calls per checkpoint with 5 kept and 4 images (checkpoint, images, pruning, status, metrics)": calls_text(
            calls[-1]
        ),
        "run: calls for the first checkpoint": calls_text(calls[0]),
    }
    log = MetricsLog(run, 9)
    counter.pop_calls()
    run.get_status()
    run.set_status("running", 1)
    log.add({"step": 10})
    log.flush(1.0)
    beat = counter.pop_calls()
    figures["run: calls of a heartbeat and a metrics flush, each 10 s"] = calls_text(beat)
    for at_once in (100, given.gpus, 10_000):
        writes = beat["put"] * at_once / HEARTBEAT_S
        figures[f"run: heartbeats of {at_once:,} trials at once (computed)"] = (
            f"{writes:,.0f} writes a second, {(sum(beat.values()) - beat['put']) * at_once / HEARTBEAT_S:,.0f} others"
        )
    big = torch.zeros(weight // 8)
    packed = timed(lambda: files.update(checkpoints.serialize(1, {"x": big}, {"x": big}, {})))
    sealed = timed(lambda: manifests.write_with_manifest(open_storage(folder) / "big", files))
    read = timed(lambda: checkpoints.open_checkpoint(open_storage(folder) / "big").training_tensors())
    figures["run: that checkpoint here: pack (training waits); write with SHA-256; verify and read one half"] = (
        f"{span(packed)}; {span(sealed)}; {span(read)}"
    )
    figures[f"run: read from storage by a restart of {given.gpus:,} workers (each verifies, then reads; computed)"] = (
        size(2 * weight * given.gpus)
    )
    figures |= list_runs(given, folder, weight)
    return figures


def list_runs(given: Scale, folder: Path, weight: int) -> Figures:
    """``infogan runs`` with 5 checkpoints per run: on a bucket, and in a folder, where it reads all bytes."""
    count, kept, each = 20, 5, 100_000
    config = json.dumps({"model": {}, "run": RunConfig(preset="mnist").to_dict()}).encode()
    state = {"format": checkpoints.FORMAT, "metrics": {"mi_fraction": 0.5}}
    for number in range(count):
        place = folder / "runs" / f"run{number}"
        place.mkdir(parents=True)
        (place / RunDirectory.CONFIG).write_bytes(config)
        (place / RunDirectory.STATUS).write_text(json.dumps({"state": "finished", "step": 5, "time": time.time()}))
        for step in range(1, kept + 1):
            files = {checkpoints.MODEL: bytes(each), checkpoints.STATE: json.dumps({**state, "step": step}).encode()}
            write_quickly(place / "checkpoints" / step_name(step), files)
    found: dict[bool, tuple[Counter[str], int]] = {}
    for as_local in (False, True):
        storage, counter = counting_storage(folder / "runs", as_local)
        with (
            replaced(runs_command, "open_storage", lambda text, s=storage: s),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            runs_command.runs([str(folder / "runs"), "--json"])
        found[as_local] = counter.pop_calls(), counter.read
    calls, _ = found[False]
    share = found[True][1] / (count * kept * each)
    every = sum(calls.values()) / count
    return {
        f"runs: calls per run of 'infogan runs' on a bucket, {kept} checkpoints each": calls_text(calls, count),
        f"runs: of 1,000 runs at {given.call_ms:g} ms a call (computed)": span(1000 * every * given.call_ms / 1000),
        "runs: in a folder (NFS, too): share of the checkpoints' bytes that it reads; of 1,000 runs (computed)": (
            f"{share:.0%}; {size(1000 * kept * weight * share)}"
        ),
    }


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def metrics_line() -> bytes:
    """A line of metrics.jsonl from training, with STEP in place of its step."""
    config = RunConfig(preset="mnist").override({"network": {"width": 4}, "batch_size": 8}, "benchmark")
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = TrainState(config, 28, 1)
    [row] = train(state, InMemoryFeed(images, 8, 0), steps=10, log_every=10, checkpoint_every=1000)
    return json.dumps({**row, "step": "STEP"}).replace('"STEP"', "STEP").encode() + b"\n"


def metrics_growth(given: Scale, folder: Path) -> Figures:
    """Whether a flush writes the whole file, and the resulting traffic."""
    line = metrics_line()
    sent: dict[str, list[int]] = {}
    for kind in ("folder", "bucket"):
        storage, counter = counting_storage(folder, as_local=kind == "folder")
        log = MetricsLog(RunDirectory(storage / kind), 0)
        for _ in range(3):
            before = counter.written
            for step in range(100):
                log.add({"step": step, "pad": "x" * 100})
            log.flush(1.0)
            sent.setdefault(kind, []).append(counter.written - before)
    rate = 1000 / given.gpu_step_ms / 10
    figures: Figures = {
        "metrics: bytes of three flushes of equally many lines, to a folder; to a bucket": (
            f"{', '.join(map(str, sent['folder']))}; {', '.join(map(str, sent['bucket']))}"
        ),
        "metrics: a line; an hour of them at log_every=10": (
            f"{len(line)} B; {size(len(line) * rate * HOUR)} at {given.gpu_step_ms:g} ms a step"
        ),
    }
    for hours in (1.0, 24.0, 240.0):
        written, final = rewritten(len(line), rate, hours, given.upload)
        figures[f"metrics: sent to a bucket in {hours:g} h (computed; {size(given.upload)}/s)"] = (
            f"{size(written)} for a file of {size(final)}"
        )
    return figures


def latents(given: Scale, folder: Path) -> Figures:
    """Every rank samples the latents of the global batch and takes its share: the time of this on a CPU."""
    config = RunConfig(preset="mnist").override({"network": {"width": 4}}, "benchmark")
    state = TrainState(config, 28, 1)
    figures: Figures = {}
    for batch in (128, 128 * given.gpus):
        took = statistics.median(timed(lambda b=batch: state.latents(b, 0, min(given.gpus, b))) for _ in range(5))
        figures[f"latents: those of a global batch of {batch:,}, on every rank, CPU"] = span(took)
    return figures


# ------------------------------------------------------------------------------------------------ links and failures


def link(given: Scale, folder: Path) -> Figures:
    """Bytes of a step's all-reduces, and their time on nominal links without overlap."""
    figures: Figures = {}
    config = RunConfig(preset="mnist")
    spec = config.model_spec(28, 1)
    generator, discriminator = spec.build()
    g, d = (sum(p.numel() for p in module.parameters()) for module in (generator, discriminator))
    figures["link: parameters of the paper's MNIST network, G and D with Q"] = f"{g:,} and {d:,}"
    for kind, width in (("fp32, as DDP sends it", 4), ("bf16, with a compressing hook", 2)):
        sent = all_reduce_bytes(g + d, width, given.gpus)
        figures[f"link: sent and received per worker and step, {kind}, {given.gpus:,} workers"] = (
            f"D {size(all_reduce_bytes(d, width, given.gpus))} + G {size(all_reduce_bytes(g, width, given.gpus))}"
            f" = {size(sent)}"
        )
        for name, speed in LINKS.items():
            seconds = sent / speed
            busy = given.gpu_step_ms / 1000 / (given.gpu_step_ms / 1000 + seconds)
            figures[f"link: {name}, {kind.split(',')[0]}: time of it; share of a step left for computing"] = (
                f"{span(seconds)}; {busy:.0%} with {given.gpu_step_ms:g} ms of computing"
            )
    norms = sum(isinstance(m, BatchNorm) for m in generator.modules())
    d_norms = sum(isinstance(m, BatchNorm) for m in discriminator.trunk.modules())
    q_norms = sum(isinstance(m, BatchNorm) for m in discriminator.recognition.modules())
    # Two all-reduces forward and two backward for each normalised group. D's step: G forward, the trunk for real and
    # generated images, Q for generated images (only the trunk has groups). G's step: D and Q again, and G backward.
    rounds = 4 * (norms + 2 * d_norms + q_norms + d_norms + q_norms)
    figures["link: all-reduces per step; with --network.sync-batchnorm"] = (
        f"2 (and DDP's buckets); {rounds} more, small ones, one after another"
    )
    return figures


def failures(given: Scale, folder: Path) -> Figures:
    """Useful training time with exponential failures of independent GPUs. Each failure stops the run."""
    figures: Figures = {}
    every = 1000 * given.gpu_step_ms / 1000
    for hours in given.mtbf_h:
        mtbf = hours * HOUR / given.gpus
        for recovery in given.recovery_s:
            best = daly(given.stall_s, mtbf)
            name = f"failures: {given.gpus:,} GPUs of {hours:,.0f} h each, one every {span(mtbf)}; back after "
            shares = [
                (at, useful_share(at, given.stall_s, mtbf, recovery),
                 simulated_share(at, given.stall_s, mtbf, recovery, seed=given.seed))
                for at in (every, best)
            ]  # fmt: skip
            figures[f"{name}{recovery:g} s"] = "; ".join(
                f"{word} {span(at)}: {exact:.1%} (simulated {simulated:.1%})"
                for word, (at, exact, simulated) in zip(("every", "best, every"), shares, strict=True)
            )
    return figures


# -------------------------------------------------------------------------------------------------------------- Ray


def on_ray(given: Scale, folder: Path) -> Figures:
    """An embedded Ray: the status mailbox, polls of actors, and results of Tune's loop."""
    import ray
    from ray import tune

    from infogan_ray.distributed.cluster.connection import connect
    from infogan_ray.distributed.train.status_mailbox import start_mailbox

    connect(folder / "ray.log")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"], os.environ["RAY_AIR_NEW_OUTPUT"] = "1", "0"
    figures: Figures = {}
    try:
        mailbox = start_mailbox()
        ray.get(mailbox.start.remote())
        report = {"phase": "training", "say": "", **json.loads(metrics_line().replace(b"STEP", b"1"))}
        pins = 5000
        pinned = timed(lambda: ray.get([mailbox.put.remote(report) for _ in range(pins)][-1]))
        drained = timed(lambda: ray.get(mailbox.pop_reports.remote()))
        figures["ray: reports put into the mailbox a second, by one caller"] = f"{pins / pinned:,.0f}"
        figures[f"ray: the driver fetches {pins:,} of them in"] = span(drained)
        others = [start_mailbox() for _ in range(4)]
        ray.get([other.is_stopping.remote() for other in others])

        def poll(count: int) -> None:
            requests = [others[n % len(others)].is_stopping.remote() for n in range(count)]
            done, _ = ray.wait(requests, num_returns=count, timeout=30)
            for answer in done:  # one after another, as in Ray Train's controller
                ray.get(answer)

        poll(100)
        took = min(timed(lambda: poll(given.gpus)) for _ in range(3))
        figures[f"ray: one round of {given.gpus:,} polls by one process (as Ray Train's controller each 0.2 s)"] = span(
            took
        )
        for each in (*others, mailbox):
            ray.kill(each)
        rounds = 50

        def trial(chosen: dict[str, Any]) -> None:
            for _ in range(rounds):
                tune.report({"x": 1})

        counts = (2, 42)
        times = []
        for count in counts:
            tuner = tune.Tuner(
                tune.with_resources(trial, {"cpu": 1}), param_space={"trial": tune.grid_search(list(range(count)))},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(storage_path=str(folder / f"tune{count}"), verbose=0),
            )  # fmt: skip
            times.append(timed(tuner.fit))
        results = (counts[1] - counts[0]) * rounds
        figures[f"ray: results that Tune's loop takes a second ({os.cpu_count()} trials at once, nothing else)"] = (
            f"{results / (times[1] - times[0]):,.0f}"
        )
    finally:
        ray.shutdown()
    figures["ray: memory of the driver process"] = size(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
