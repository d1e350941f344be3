"""Formulas for what one machine cannot measure: failures, network links and rewritten files. Times are in seconds."""

from __future__ import annotations

import math
import random

from infogan_ray.training.checkpoint_uploader import HEARTBEAT_S

HOUR = 3600.0


def young(stall: float, mtbf: float) -> float:
    """The optimal training time between checkpoints, first-order approximation (Young 1974)."""
    return math.sqrt(2 * stall * mtbf)


def daly(stall: float, mtbf: float) -> float:
    """The same with a higher-order approximation (Daly 2006, equation 37)."""
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return young(stall, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def useful_share(interval: float, stall: float, mtbf: float, recovery: float) -> float:
    """The share of time with useful training, for exponential failures, also in stalls and recoveries (Daly 2006)."""
    return interval / (mtbf * math.exp(recovery / mtbf) * math.expm1((interval + stall) / mtbf))


def simulated_share(
    interval: float, stall: float, mtbf: float, recovery: float, count: int = 20_000, seed: int = 0
) -> float:
    """The same, simulated with ``count`` failures, some during recoveries. Steps after the last checkpoint are lost."""
    rng = random.Random(seed)
    clock, stored, recovering = 0.0, 0, False
    for _ in range(count):
        seconds_to_failure = rng.expovariate(1 / mtbf)
        clock += seconds_to_failure
        stored += int(max(0.0, seconds_to_failure - recovery * recovering) // (interval + stall))
        recovering = True
    return stored * interval / clock


def all_reduce_bytes(parameters: int, bytes_each: int, workers: int) -> float:
    """Bytes that each worker sends, and receives, in a ring all-reduce of all gradients."""
    return 2 * (workers - 1) / workers * parameters * bytes_each


def rewritten(line_bytes: float, lines_per_s: float, hours: float, upload: float) -> tuple[float, float]:
    """Bytes that all flushes of metrics.jsonl send to an object store, and the final size of the file.

    As in CheckpointUploader, the next flush starts after 10 s, or after 50 times the duration of the last flush.
    """
    clock = sent = 0.0
    while clock < hours * HOUR:
        content = clock * lines_per_s * line_bytes
        took = content / upload
        sent += content
        clock += took + max(HEARTBEAT_S, 50 * took)
    return sent, hours * HOUR * lines_per_s * line_bytes
