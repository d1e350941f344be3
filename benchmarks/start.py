"""The cost of Ray for a run: time to the first step, images per second, and time from the last step to the end.

    python -m benchmarks.start                      # on an idle machine without another Ray
    python -m benchmarks.start --rounds 5 --json start.json

The same training runs in turn with ``infogan train`` in local mode, on an embedded Ray and on a running local cluster,
and with the worker function without a driver. Figures are medians over the rounds. Scaling is weak: two workers with
one thread each have twice the batch.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

from benchmarks.figures import rows_of
from infogan_ray.distributed.cluster.threads import cores
from tests.servers import free_ports

BATCH = 128
INFOGAN = [sys.executable, "-m", "infogan_ray", "train"]
ALONE = [sys.executable, "-m", "benchmarks.start", "--alone"]
WITHOUT, LOCAL = "the worker function alone", "local mode"
WARM = "running cluster"
ONE, TWO = "local mode, 1 thread", "embedded Ray, 2 workers of 1 thread, twice the batch"


@dataclass
class Start:
    """Time the start, the training and the end of short runs."""

    rounds: int = 3
    steps: int = 120
    arms: tuple[str, ...] = (WITHOUT, LOCAL, WARM, ONE, TWO)
    json: Path | None = None


@dataclass(frozen=True)
class Timing:
    first_step: float
    """Seconds from the command to the first step."""
    rate: float
    """Images per second, without the first log line."""
    end: float
    """Seconds from the last step to the end of the process: checkpoint, evaluation, model folder, report."""


def main() -> int:
    if sys.argv[1:2] == ["--alone"]:
        return alone(sys.argv[2:])
    given = tyro.cli(Start)
    timings: dict[str, list[Timing]] = {arm: [] for arm in given.arms}
    with tempfile.TemporaryDirectory(prefix="infogan-start-") as folder, cluster(WARM in given.arms) as joined:
        warmed = False
        for round_ in range(given.rounds):
            for arm in given.arms:
                print(f"round {round_ + 1}: {arm}", file=sys.stderr)
                environment = os.environ | joined if arm == WARM else dict(os.environ)
                if arm == WARM and not warmed:  # the second job on the cluster is measured
                    warmed = bool(run(arm, given.steps, Path(folder) / "first", environment))
                timings[arm].append(run(arm, given.steps, Path(folder) / f"{arm}-{round_}", environment))
    print_table(timings)
    if given.json:
        given.json.write_text(
            json.dumps({arm: [vars(timing) for timing in each] for arm, each in timings.items()}, indent=1)
        )
    return 0


def run(arm: str, steps: int, folder: Path, environment: dict[str, str]) -> Timing:
    workers, threads = (2, 1) if arm == TWO else (1, 1) if arm == ONE else (1, cores())
    words = ["--preset", "mnist", "--steps", str(steps), "--log-every", "20", "--checkpoint-every", str(steps)]
    words += ["--batch-size", str(BATCH * workers), "--workers", str(workers), "--threads", str(threads)]
    words += ["--device", "cpu", "--storage", str(folder), "--name", "run"]
    start = time.monotonic()
    process = subprocess.Popen(
        [*(ALONE if arm == WITHOUT else INFOGAN), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    first = last = None
    messages = []
    assert process.stderr is not None
    for line in process.stderr:
        messages.append(line)
        now = time.monotonic()
        if line.startswith("training: step"):
            first = first or now
        elif line.startswith("evaluating: step"):
            last = last or now
    if process.wait() or first is None or last is None:
        raise SystemExit("".join(messages))
    rates = [
        row["images_per_second"] for row in rows_of(folder / "run" / "metrics.jsonl") if "images_per_second" in row
    ]
    return Timing(first - start, statistics.median(rates[1:]), time.monotonic() - last)


def alone(words: list[str]) -> int:
    """Run the worker function in this process."""
    import torch

    from infogan_ray.cli.train import train_config
    from infogan_ray.data.datasets import load_images
    from infogan_ray.storage.file_system import open_storage
    from infogan_ray.storage.run_directory import RunDirectory
    from infogan_ray.training.worker import run_worker

    config = train_config(words)
    torch.set_num_threads(config.threads or cores())
    assert config.data is not None
    images = load_images(config.data, config.data_config, lambda line: None)
    run = RunDirectory(open_storage(config.storage) / str(config.name))
    run.write_config(
        {"model": config.model_spec(images.image_size, images.channels).to_dict(), "run": config.to_dict()}
    )
    phase = ""
    for report in run_worker(config, images, run, device=torch.device("cpu")):
        if report.phase != phase:
            print(f"{report.phase}: step {report.metrics.get('step', 0)}", file=sys.stderr, flush=True)
        phase = report.phase
    return 0


@contextmanager
def cluster(wanted: bool) -> Iterator[dict[str, str]]:
    """Start a local head. Yields the environment variables for joining it."""
    if not wanted:
        yield {}
        return
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    # In the default folder Ray writes its address, and other processes would join it.
    place = tempfile.mkdtemp(prefix="ray-")
    ray = str(Path(sys.executable).parent / "ray")
    [port] = free_ports(1)
    head = subprocess.Popen(
        [ray, "start", "--head", f"--port={port}", f"--num-cpus={cores()}", "--include-dashboard=false", "--block",
         "--disable-usage-stats", "--dashboard-agent-listen-port=52370"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=os.environ | token | {"RAY_TMPDIR": place},
    )  # fmt: skip
    try:
        time.sleep(10)
        yield {**token, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()
        shutil.rmtree(place, ignore_errors=True)


def print_table(timings: dict[str, list[Timing]]) -> None:
    medians = {
        arm: {
            name: statistics.median(getattr(timing, name) for timing in each) for name in ("first_step", "rate", "end")
        }
        for arm, each in timings.items()
    }
    print("| | to the first step | images/s | from the last step to the prompt |\n|---|---|---|---|")
    for arm, found in medians.items():
        print(f"| {arm} | {found['first_step']:.1f} s | {found['rate']:,.0f} | {found['end']:.1f} s |")
    for arm, base, factor, what in (
        (LOCAL, WITHOUT, 1, "images/s of local mode relative to the worker function alone"),
        (WARM, WITHOUT, 1, "images/s on a cluster relative to the worker function alone"),
        (TWO, ONE, 2, "weak scaling of 2 workers of 1 thread"),
    ):
        if arm in timings and base in timings:
            ratios = [
                first.rate / second.rate / factor for first, second in zip(timings[arm], timings[base], strict=True)
            ]
            print(f"\n{what}: {statistics.median(ratios):.1%}")


if __name__ == "__main__":
    raise SystemExit(main())
