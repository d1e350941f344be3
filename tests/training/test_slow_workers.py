"""A slow worker is named. Three processes connected by gloo, without Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from infogan_ray.training.slow_workers import IN_A_ROW, LEAST_S, SlowWorkers

PLACES = ["10.0.0.1", "10.0.0.2", "Rechner-ü"]
PASS_S = 0.02


class Sleeping(nn.Module):
    """A network whose forward pass takes ``seconds``, and uses no CPU, which the other processes would need."""

    seconds = PASS_S

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def work(rank: int, folder: str) -> None:
    """Worker 2 is slow in the second of four parts, and for only one comparison in the fourth."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    generator = Sleeping()
    slow_workers = SlowWorkers(generator, torch.device("cpu"), PLACES[rank], rank, 3)
    lines: list[tuple[int, str]] = []

    def comparisons(part: int, slow: float, count: int = IN_A_ROW + 1) -> None:
        generator.seconds = slow * PASS_S if rank == 2 else PASS_S
        for _ in range(count):
            for _ in range(2):  # the first call has too short times to compare
                for _ in range(round(0.6 * LEAST_S / PASS_S)):
                    generator(torch.zeros(1))
                if line := slow_workers.compare():
                    lines.append((part, line))

    comparisons(1, 1)
    comparisons(2, 3)
    comparisons(3, 1)
    comparisons(4, 3, count=1)
    comparisons(4, 1)
    Path(folder, f"{rank}.json").write_text(json.dumps(lines))
    dist.destroy_process_group()


def test_a_slow_worker_is_named_once_and_again_when_it_is_fast(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=3)
    lines = json.loads((tmp_path / "0.json").read_text())
    (first, slow), (second, fast) = lines
    assert (first, second) == (2, 3)
    assert slow.startswith("warning: worker 2 on Rechner-ü is slow: it takes ")
    assert 2 < float(slow.split("it takes ")[1].split()[0]) < 4
    assert fast == "worker 2 on Rechner-ü is no longer slow"
    assert all(json.loads((tmp_path / f"{rank}.json").read_text()) == lines for rank in (1, 2))
