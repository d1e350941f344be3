"""Fault tolerance: killed workers, killed uploads, and an unavailable storage. Prints a table.

    python -m benchmarks.chaos                      # all tests, about 20 minutes on two cores
    python -m benchmarks.chaos --kills 3 --uploads 20 --outage 10 --json chaos.json

It uses MNIST, an embedded Ray with two workers, SIGKILL, and an S3 server on loopback that is also killed.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.figures import publish
from tests.servers import BUCKET, CREDENTIALS, S3Server, s3_server

EVERY = 100
KIB = 1024
UPLOAD_BYTES = 6 * 1024 * KIB


@dataclass
class Chaos:
    """Inject faults and count the lost steps and checkpoints."""

    kills: int = 20
    """SIGKILLs of workers in one run."""
    uploads: int = 200
    """SIGKILLs of a writer during an upload to S3."""
    outage: float = 30.0
    """Seconds for which the S3 server is unavailable."""
    seed: int = 0
    json: Path | None = None
    """File for the figures."""


def main() -> int:
    given = tyro.cli(Chaos)
    random.seed(given.seed)
    os.environ.update(CREDENTIALS)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="infogan-chaos-") as folder, s3_server(Path(folder) / "s3") as server:
        figures |= kills_in_uploads(server, given.uploads)
        figures |= kills_of_workers(Path(folder), given.kills)
        figures |= outage(server, given.outage)
    publish(figures, given.json)
    return 0


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- kills of workers


def config(storage: str, name: str, steps: int) -> Any:
    """MNIST with a narrow network, so that many checkpoint intervals take only minutes."""
    from infogan_ray.training.config import RunConfig

    small = {"network": {"width": 16}, "evaluation": {"samples": 1000, "labelled": 1000}, "log_every": 5}
    run = RunConfig(preset="mnist").override(small, "chaos")
    return dataclasses.replace(
        run, storage=storage, name=name, steps=steps, checkpoint_every=EVERY, keep=3, workers=2, threads=1,
        device="cpu", precision="fp32",
    )  # fmt: skip


class WorkerKiller:
    """A listener that kills a random worker at the given steps and measures each recovery."""

    def __init__(self, steps: list[int]) -> None:
        self.kill_steps, self.reached = steps, 0
        self.killed_at: float | None = None
        self.recoveries: list[float] = []
        self.lost: list[int] = []

    def __call__(self, report: dict[str, Any]) -> None:
        from tests.fault_injection import workers_of

        step = report.get("step", 0)
        if report.get("say"):
            say(report["say"])
        if self.killed_at is not None and report.get("say", "").startswith("resumed from step"):
            self.lost.append(self.reached - step)
            self.reached = step
        elif self.killed_at is not None and "d_loss" in report and len(self.lost) > len(self.recoveries):
            self.recoveries.append(time.monotonic() - self.killed_at)
            self.killed_at = None
        self.reached = max(self.reached, step)
        if self.killed_at is None and self.kill_steps and step >= self.kill_steps[0]:
            self.kill_steps.pop(0)
            time.sleep(random.uniform(0, 0.3))  # at any time in a step, an evaluation or an upload
            worker = random.choice(workers_of(os.getpid()))
            self.killed_at = time.monotonic()
            worker.kill()
            say(f"killed a worker near step {step}")


def kills_of_workers(folder: Path, kills: int) -> dict[str, Any]:
    from infogan_ray import train
    from tests.fault_injection import digest

    steps = EVERY * (kills + 2)
    killer = WorkerKiller([EVERY * (i + 1) + random.randrange(EVERY) for i in range(kills)])
    started = time.monotonic()
    interrupted = train(config(str(folder / "runs"), "interrupted", steps), killer)
    took = time.monotonic() - started
    say(f"{interrupted.state} after {took:.0f} s; now the same run without kills")
    started = time.monotonic()
    reference = train(config(str(folder / "runs"), "reference", steps))
    reference_seconds = time.monotonic() - started
    hashes = [digest(result.run, steps)[:16] for result in (interrupted, reference)]
    return {
        "SIGKILLs of workers in one run of two workers": kills,
        "recoveries": len(killer.recoveries),
        "restarts counted by the run": interrupted.restarts,
        "run ended": f"{interrupted.state}, {steps} steps in {took:.0f} s; without kills {reference_seconds:.0f} s",
        f"steps lost, median and maximum (interval {EVERY})": (
            f"{statistics.median(killer.lost):.0f}, {max(killer.lost)}"
        ),
        "seconds from kill to training, median and maximum": (
            f"{statistics.median(killer.recoveries):.1f}, {max(killer.recoveries):.1f}"
        ),
        "SHA-256 of the final tensors with kills": hashes[0],
        "SHA-256 of the final tensors without kills": hashes[1],
    }


# -------------------------------------------------------------------------------------------------- kills in uploads


def upload(uri: str, step: int, started: Any) -> None:
    """A writer process: it uploads a checkpoint of 6 MB."""
    import torch

    from infogan_ray.storage import checkpoints, manifests
    from infogan_ray.storage.file_system import open_storage
    from infogan_ray.storage.run_directory import step_name

    generator = torch.Generator().manual_seed(step)
    model, training = (torch.randn(UPLOAD_BYTES // 8, generator=generator) for _ in range(2))
    files = checkpoints.serialize(step, {"x": model}, {"x": training}, {"metrics": {"mi_fraction": step}})
    folder = open_storage(uri) / step_name(step)
    folder.entries()  # the client is ready
    started.set()
    manifests.write_with_manifest(folder, files)


def kills_in_uploads(server: S3Server, kills: int) -> dict[str, Any]:
    """Kill writers at random times during their upload. After each kill, a reader verifies the checkpoints."""
    from infogan_ray.storage import checkpoints, manifests
    from infogan_ray.storage.file_system import open_storage

    uri = f"s3://{BUCKET}/uploads?endpoint_override=127.0.0.1:{server.port}&scheme=http&region=us-east-1"
    store = open_storage(uri)
    context = multiprocessing.get_context("forkserver")  # a new process for each upload, with torch already imported
    context.set_forkserver_preload(["infogan_ray.storage.checkpoints", "infogan_ray.storage.file_system", "torch"])
    whole_took = statistics.median(one_upload(context, uri, step, None)[1] for step in range(1, 6))
    say(f"an upload takes {whole_took:.2f} s without a kill")
    killed_uploads = bad = listed = 0
    step = 5
    while killed_uploads < kills:
        step += 1
        killed, _ = one_upload(context, uri, step, random.uniform(0, 1.1 * whole_took))
        killed_uploads += killed
        good, _ = checkpoints.list_checkpoints(store, verify=False)
        for checkpoint in good[-3:]:
            listed += 1
            try:
                checkpoint.manifest.verify()
            except manifests.BadCheckpoint as error:
                bad += 1
                say(f"BAD: {error}")
        last = checkpoints.last_valid(store, warn=say)
        bad += last is None or last.name != good[-1].name
        for old in good[:-3]:
            checkpoints.delete_checkpoint(old.folder)
        if step % 50 == 0:
            say(f"{killed_uploads} of {step - 5} writers killed during their upload")
    unfinished = len(checkpoints.list_checkpoints(store, verify=False)[1])
    orphans = len(checkpoints.delete_incomplete(store))
    return {
        "SIGKILLs during an upload to S3": killed_uploads,
        "bad checkpoints listed or loaded": f"{bad} of {listed} checked",
        "incomplete folders found and deleted": f"{orphans} of {unfinished}",
    }


def one_upload(context: Any, uri: str, step: int, kill_after: float | None) -> tuple[bool, float]:
    """Run one upload. Returns whether the writer was killed before its end, and the seconds that it took."""
    started = context.Event()
    writer = context.Process(target=upload, args=(uri, step, started))
    writer.start()
    started.wait(60)
    started_at = time.monotonic()
    writer.join(kill_after)
    if writer.is_alive():
        writer.kill()
        writer.join()
    return writer.exitcode != 0, time.monotonic() - started_at


# ------------------------------------------------------------------------------------------------------------ outage


def outage(server: S3Server, seconds: float) -> dict[str, Any]:
    """Kill the S3 server during a run and start it again."""
    from infogan_ray import train
    from infogan_ray.storage import checkpoints

    reported: list[str] = []
    times: dict[str, float] = {}

    def stop_server() -> None:
        server.kill()
        times["down"] = time.monotonic()
        time.sleep(seconds)
        server.start()
        times["up"] = time.monotonic()

    thread = threading.Thread(target=stop_server)
    steps_while_down: list[int] = []

    def listen(report: dict[str, Any]) -> None:
        if report.get("say"):
            say(report["say"])
            reported.append(report["say"])
        if report.get("step", 0) >= 250 and not thread.ident:
            thread.start()
        if "down" in times and "up" not in times and "d_loss" in report:
            steps_while_down.append(report["step"])

    uri = f"s3://{BUCKET}/runs?endpoint_override=127.0.0.1:{server.port}&scheme=http&region=us-east-1"
    result = train(config(uri, "outage", 1500), listen)
    thread.join()
    good, bad = checkpoints.list_checkpoints(result.run.checkpoints)
    span = steps_while_down[-1] - steps_while_down[0] if steps_while_down else 0
    messages = sum("unavailable" in line for line in reported)
    return {
        "S3 server unavailable for": f"{times['up'] - times['down']:.0f} s, including its start",
        "the run": f"{result.state}; {span} steps trained during the outage, {messages} messages about it",
        "checkpoints at the end": f"{len(good)} valid, {len(bad)} bad, the last at step {good[-1].step}",
    }


if __name__ == "__main__":
    raise SystemExit(main())
