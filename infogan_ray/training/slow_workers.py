"""Finds a slow worker. In each step, all workers wait for the slowest one. No Ray.

Each worker measures the time of G's forward passes, for which it waits for no other worker. The whole step says
nothing: it takes as long on all workers.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

RATIO = 1.5
"""A worker is slow if its forward passes take this many times as long as those of a typical worker."""
IN_A_ROW = 3
"""Comparisons in a row that must agree, so that a short disturbance is not reported."""
LEAST_S = 0.5
"""Seconds of forward passes of a typical worker before a comparison."""
NAME_BYTES = 64


class SlowWorkers:
    """The times of all workers, and where each worker runs. Every rank has one, and calls ``compare`` at equal steps.

    ``place``: the address of this worker's machine.
    """

    def __init__(self, generator: nn.Module, device: torch.device, place: str, rank: int, world_size: int) -> None:
        self.device, self.rank, self.places = device, rank, gather_names(place, rank, world_size, device)
        self.seconds = torch.zeros(world_size, dtype=torch.float64)
        self.own = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.suspect, self.in_a_row, self.reported = -1, 0, -1
        generator.register_forward_pre_hook(self._begin)
        generator.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        if self.device.type == "cuda":
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record()
        else:
            self.began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        if self.device.type == "cuda":
            self.events[-1][1].record()
        else:
            self.own += time.perf_counter() - self.began

    def compare(self) -> str:
        """Exchange the times since the last call. Returns a line if a worker has become slow, or is no longer slow.

        The device must have finished all steps. All ranks return the same line.
        """
        own = self.own + sum(begin.elapsed_time(end) for begin, end in self.events) / 1000
        self.own, self.events = 0.0, []
        times = torch.zeros(len(self.places), dtype=torch.float64, device=self.device)
        times[self.rank] = own
        dist.all_reduce(times)
        self.seconds += times.cpu()
        typical = float(self.seconds.median())  # of two workers, the faster one
        if typical < LEAST_S:
            return ""
        slowest, ratio = int(self.seconds.argmax()), float(self.seconds.max()) / typical
        self.seconds.zero_()
        suspect = slowest if ratio > RATIO else -1
        self.in_a_row = self.in_a_row + 1 if suspect == self.suspect else 1
        self.suspect = suspect
        if self.in_a_row < IN_A_ROW or suspect == self.reported:
            return ""
        before, self.reported = self.reported, suspect
        if suspect == -1:
            return f"worker {before} on {self.places[before]} is no longer slow"
        return (
            f"warning: worker {suspect} on {self.places[suspect]} is slow: it takes {ratio:.1f} times as long as a "
            "typical worker, and all workers wait for it; look for other work on that machine"
        )


def gather_names(own: str, rank: int, world_size: int, device: torch.device) -> list[str]:
    """The text ``own`` of every rank, at most NAME_BYTES bytes each."""
    names = torch.zeros(world_size, NAME_BYTES, dtype=torch.uint8, device=device)
    encoded = own.encode()[:NAME_BYTES]
    names[rank, : len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    dist.all_reduce(names)
    return [_decoded(row) for row in names.cpu()]


def _decoded(row: Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
