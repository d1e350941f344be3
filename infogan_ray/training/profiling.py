"""A trace of a few training steps: which operation ran when, on the CPU and on a GPU, by torch.profiler.

``infogan train --profile`` makes it, on rank 0 alone. The trace is a gzipped JSON file of Chrome's format, which
https://ui.perfetto.dev and chrome://tracing open as it is.
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

WARM_UP = 15  # steps before the recorded ones: in the first, buckets are rebuilt, kernels chosen, memory is allocated
PROFILER_WARM_UP = 3  # the last of those, already under the profiler, whose own first steps are slow
RECORDED = 5
PATIENCE_S = 3.0  # for storage that is unavailable: training waits meanwhile
PRIVATE_FIELDS = ("host_name", "traceName")  # names of a machine and its folders; others may be given the trace


class Profile:
    """Records RECORDED steps after WARM_UP others, counted from ``step``, at which the state is."""

    def __init__(self, step: int, device: torch.device) -> None:
        self.first, self.last = step + WARM_UP + 1, step + WARM_UP + RECORDED
        self.trace = b""
        self._start, self._seen, self._missed = step, 0, False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profiler = profile(
            activities=activities, record_shapes=True, on_trace_ready=self._take,
            schedule=schedule(wait=WARM_UP - PROFILER_WARM_UP, warmup=PROFILER_WARM_UP, active=RECORDED, repeat=1),
        )  # fmt: skip
        self._profiler.start()

    def step(self) -> None:
        """A training step has ended."""
        if self._seen < WARM_UP + RECORDED:
            self._seen += 1
            self._profiler.step()

    def deliver(self, run: RunDirectory, again: bool) -> str:
        """Store the trace once there is one; returns a line for people.

        If storage was unavailable, it is tried again where ``again`` is true, which should be seldom.
        """
        if not self.trace or (self._missed and not again):
            return ""
        folder, name = run.with_retry_timeout(PATIENCE_S).profile, trace_name(self.first)
        try:
            folder.write(name, self.trace)
        except StorageError as error:
            self._missed = True
            return f"the trace is kept until the next checkpoint, as storage is unavailable: {error}"
        self.trace, self._missed = b"", False
        fetch = "" if folder.is_local else "fetch it and "
        return (
            f"trace of steps {self.first:,} to {self.last:,} of rank 0: {folder}/{name}; {fetch}open it at "
            "https://ui.perfetto.dev (it stays on your machine there) or in chrome://tracing"
        )

    def close(self, halted: bool = False) -> str:
        """End the recording; returns a line for people if there is no trace, or none that is stored."""
        if self._seen < WARM_UP + RECORDED:
            self._profiler.stop()
            seen, self._seen = self._seen, WARM_UP + RECORDED
            self.trace = b""
            advice = " before the run was stopped" if halted else "; give --steps more"
            return f"no trace was made: it takes {WARM_UP + RECORDED} steps, and {seen} were made{advice}"
        return "the trace was not stored, and is lost" if self.trace else ""

    def _take(self, profiler: profile) -> None:
        if self._seen < WARM_UP + RECORDED:  # stopped too early
            return
        with tempfile.TemporaryDirectory(prefix="infogan-profile-") as scratch:
            path = Path(scratch) / "trace.json"
            profiler.export_chrome_trace(str(path))
            trace = json.loads(path.read_text())
        for name in PRIVATE_FIELDS:
            trace.pop(name, None)
        for event in trace["traceEvents"]:
            if found := re.fullmatch(r"ProfilerStep#(\d+)", str(event.get("name"))):
                event["name"] = f"step {self._start + int(found[1]) + 1}"  # as the run counts
        self.trace = gzip.compress(json.dumps(trace).encode())


def trace_name(step: int) -> str:
    """The file name of a trace, by its first recorded step."""
    return f"{step_name(step)}.json.gz"
