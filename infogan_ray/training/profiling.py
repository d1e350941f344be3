"""A trace of a few training steps: which operation ran when, on the CPU and on a GPU, by torch.profiler.

Made by ``infogan train --profile``, on the first rank alone; without it nothing here runs. The trace is a JSON file of
Chrome's format, gzipped, which https://ui.perfetto.dev and chrome://tracing open as it is.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name

WARM_UP = 15  # steps that are not recorded: buckets are rebuilt, kernels chosen, memory is taken in the first ones
SETTLING = 3  # the last of them run under the profiler, whose own first steps are slow
RECORDED = 5
PATIENCE_S = 3.0  # for storage that is away: training waits meanwhile
TELLING = ("host_name", "traceName")  # of a machine and its folders; a trace is passed on to others


class Profile:
    """Records RECORDED steps after WARM_UP others, counted from ``step``, at which the state is."""

    def __init__(self, step: int, device: torch.device) -> None:
        self.first, self.last = step + WARM_UP + 1, step + WARM_UP + RECORDED
        self.trace = b""
        self._start, self._seen, self._missed = step, 0, False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profiler = profile(
            activities=activities, record_shapes=True, on_trace_ready=self._take,
            schedule=schedule(wait=WARM_UP - SETTLING, warmup=SETTLING, active=RECORDED, repeat=1),
        )  # fmt: skip
        self._profiler.start()

    def step(self) -> None:
        """A training step has ended."""
        if self._seen < WARM_UP + RECORDED:
            self._seen += 1
            self._profiler.step()

    def deliver(self, run: RunDirectory, again: bool) -> str:
        """Store the trace once there is one; returns what is to be said of it.

        Where storage was away it is tried again when ``again`` says so, which should be seldom.
        """
        if not self.trace or (self._missed and not again):
            return ""
        folder, name = run.with_retry_timeout(PATIENCE_S).profile, trace_name(self.first)
        try:
            folder.write(name, self.trace)
        except StorageError as error:
            self._missed = True
            return f"the trace is kept until the next checkpoint, as storage is away: {error}"
        self.trace, self._missed = b"", False
        fetch = "" if folder.is_local else "fetch it and "
        return (
            f"trace of steps {self.first:,} to {self.last:,} of the first rank: {folder}/{name}; {fetch}open it at "
            "https://ui.perfetto.dev (it stays on your machine there) or in chrome://tracing"
        )

    def close(self, halted: bool = False) -> str:
        """End the recording; returns what is to be said where there is no trace, or none that is stored."""
        if self._seen < WARM_UP + RECORDED:
            self._profiler.stop()
            seen, self._seen = self._seen, WARM_UP + RECORDED
            self.trace = b""
            advice = " before the run was stopped" if halted else "; give --steps more"
            return f"no trace was made: it takes {WARM_UP + RECORDED} steps, and {seen} were made{advice}"
        return "the trace was not stored, and is lost" if self.trace else ""

    def _take(self, profiler: profile) -> None:
        if self._seen < WARM_UP + RECORDED:  # stopped before its time
            return
        with tempfile.TemporaryDirectory(prefix="infogan-profile-") as scratch:
            path = Path(scratch) / "trace.json"
            profiler.export_chrome_trace(str(path))
            trace = json.loads(path.read_text())
        for name in TELLING:
            trace.pop(name, None)
        for event in trace["traceEvents"]:
            if found := re.fullmatch(r"ProfilerStep#(\d+)", str(event.get("name"))):
                event["name"] = f"step {self._start + int(found[1]) + 1}"  # as the run counts
        self.trace = gzip.compress(json.dumps(trace).encode())


def trace_name(step: int) -> str:
    """Of the trace whose first recorded step this is."""
    return f"{step_name(step)}.json.gz"
