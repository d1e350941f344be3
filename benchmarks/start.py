"""What Ray costs a run: from the command to the first step, images a second, and from the last step to the prompt.

    python -m benchmarks.start                      # on a machine that does nothing else, without another Ray
    python -m benchmarks.start --rounds 5 --json start.json

The same training by ``infogan train`` in local mode, on an embedded Ray, on a local cluster that runs already, and by
the worker's generator without a driver, by turns; figures are medians over the rounds. Scaling is weak: twice the
workers, twice the batch, one thread each.
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
    """Time the beginnings, the middles and the ends of short runs."""

    rounds: int = 3
    steps: int = 120
    arms: tuple[str, ...] = (WITHOUT, LOCAL, WARM, ONE, TWO)
    json: Path | None = None


@dataclass(frozen=True)
class Timing:
    first_step: float
    """Seconds from the command."""
    rate: float
    """Images a second, without the first log line."""
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
                if arm == WARM and not warmed:  # its second job is what is asked for
                    warmed = bool(run(arm, given.steps, Path(folder) / "first", environment))
                timings[arm].append(run(arm, given.steps, Path(folder) / f"{arm}-{round_}", environment))
    tell(timings)
    if given.json:
        given.json.write_text(json.dumps({arm: [vars(one) for one in each] for arm, each in timings.items()}, indent=1))
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
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        now = time.monotonic()
        if line.startswith("training: step"):
            first = first or now
        elif line.startswith("evaluating: step"):
            last = last or now
    if process.wait() or first is None or last is None:
        raise SystemExit("".join(said))
    rates = [
        row["images_per_second"] for row in rows_of(folder / "run" / "metrics.jsonl") if "images_per_second" in row
    ]
    return Timing(first - start, statistics.median(rates[1:]), time.monotonic() - last)


def alone(words: list[str]) -> int:
    """The worker's part in this process."""
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
    """A local head that runs already, as the environment in which it is joined."""
    if not wanted:
        yield {}
        return
    asks = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    place = tempfile.mkdtemp(prefix="ray-")  # in the usual one Ray notes its address, where others would look for it
    ray = str(Path(sys.executable).parent / "ray")
    [port] = free_ports(1)
    head = subprocess.Popen(
        [ray, "start", "--head", f"--port={port}", f"--num-cpus={cores()}", "--include-dashboard=false", "--block",
         "--disable-usage-stats", "--dashboard-agent-listen-port=52370"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=os.environ | asks | {"RAY_TMPDIR": place},
    )  # fmt: skip
    try:
        time.sleep(10)
        yield {**asks, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()
        shutil.rmtree(place, ignore_errors=True)


def tell(timings: dict[str, list[Timing]]) -> None:
    middle = {
        arm: {name: statistics.median(getattr(one, name) for one in each) for name in ("first_step", "rate", "end")}
        for arm, each in timings.items()
    }
    print("| | to the first step | images/s | from the last step to the prompt |\n|---|---|---|---|")
    for arm, found in middle.items():
        print(f"| {arm} | {found['first_step']:.1f} s | {found['rate']:,.0f} | {found['end']:.1f} s |")
    for of, over, factor, what in (
        (LOCAL, WITHOUT, 1, "steady images/s of local mode, of those of the worker alone"),
        (WARM, WITHOUT, 1, "steady images/s on a cluster, of those of the worker alone"),
        (TWO, ONE, 2, "weak scaling of 2 workers of 1 thread"),
    ):
        if of in timings and over in timings:
            ratios = [one.rate / two.rate / factor for one, two in zip(timings[of], timings[over], strict=True)]
            print(f"\n{what}: {statistics.median(ratios):.1%}")


if __name__ == "__main__":
    raise SystemExit(main())
