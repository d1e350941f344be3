"""Records a trace of a few training steps with torch.profiler: the times of all operations on the CPU and the GPU.

``infogan train --profile`` records it on rank 0. The trace is a gzipped JSON file in Chrome's format. Open it with
https://ui.perfetto.dev or chrome://tracing.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.storage.scratch import scratch_folder

WARM_UP = 15  # steps before the recorded ones; the first steps rebuild buckets, choose kernels and allocate memory
PROFILER_WARM_UP = 3  # the last steps of the warm-up run with the profiler, whose first steps are slow
RECORDED = 5
TIMEOUT_S = 3.0  # for a write to storage, while training waits
PRIVATE_FIELDS = ("host_name", "traceName")  # names of the machine and its folders, removed because traces are shared


class Profile:
    """Records RECORDED steps after WARM_UP steps. ``step`` is the number of steps that the state has made."""

    def __init__(self, step: int, device: torch.device) -> None:
        self.first, self.last = step + WARM_UP + 1, step + WARM_UP + RECORDED
        self.trace = b""
        self._start, self._steps, self._write_failed = step, 0, False
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profiler = profile(
            activities=activities, record_shapes=True, on_trace_ready=self._save_trace,
            schedule=schedule(wait=WARM_UP - PROFILER_WARM_UP, warmup=PROFILER_WARM_UP, active=RECORDED, repeat=1),
        )  # fmt: skip
        self._profiler.start()

    def step(self) -> None:
        """Call this after each training step."""
        if self._steps < WARM_UP + RECORDED:
            self._steps += 1
            self._profiler.step()

    def store(self, run: RunDirectory, retry: bool) -> str:
        """Store the trace if there is one. Returns a message for people, or an empty string.

        If storage was unavailable before, this tries again only if ``retry`` is true.
        """
        if not self.trace or (self._write_failed and not retry):
            return ""
        folder, name = run.with_retry_timeout(TIMEOUT_S).profile, trace_name(self.first)
        try:
            folder.write(name, self.trace)
        except StorageError as error:
            self._write_failed = True
            return f"storage is unavailable, so the trace is stored at the next checkpoint: {error}"
        self.trace, self._write_failed = b"", False
        fetch = "" if folder.is_local else "fetch it and "
        return (
            f"trace of steps {self.first:,} to {self.last:,} of rank 0: {folder}/{name}; {fetch}open it at "
            "https://ui.perfetto.dev (it stays on your machine there) or in chrome://tracing"
        )

    def close(self, halted: bool = False) -> str:
        """End the recording. Returns a message for people if no trace was recorded or stored."""
        if self._steps < WARM_UP + RECORDED:
            self._profiler.stop()
            steps, self._steps = self._steps, WARM_UP + RECORDED
            self.trace = b""
            advice = " before the run was stopped" if halted else "; give --steps more"
            return f"no trace was made: it takes {WARM_UP + RECORDED} steps, and {steps} were made{advice}"
        return "the trace was not stored, and is lost" if self.trace else ""

    def _save_trace(self, profiler: profile) -> None:
        if self._steps < WARM_UP + RECORDED:  # stopped too early
            return
        with scratch_folder() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            trace = json.loads(path.read_text())
        for name in PRIVATE_FIELDS:
            trace.pop(name, None)
        for event in trace["traceEvents"]:
            if found := re.fullmatch(r"ProfilerStep#(\d+)", str(event.get("name"))):
                event["name"] = f"step {self._start + int(found[1]) + 1}"  # the run's step number
        self.trace = gzip.compress(json.dumps(trace).encode())


def trace_name(step: int) -> str:
    """The file name of a trace, by its first recorded step."""
    return f"{step_name(step)}.json.gz"
