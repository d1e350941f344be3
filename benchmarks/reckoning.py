"""What cannot be measured on one machine: failures, links, and files that are sent again and again. All in seconds."""

from __future__ import annotations

import math
import random

from infogan_ray.training.checkpoint_uploader import HEARTBEAT_S

HOUR = 3600.0


def young(stall: float, mtbf: float) -> float:
    """Seconds of training between checkpoints that lose the least (Young 1974); all in seconds."""
    return math.sqrt(2 * stall * mtbf)


def daly(stall: float, mtbf: float) -> float:
    """The same to a higher order (Daly 2006, equation 37)."""
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return young(stall, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def useful_share(interval: float, stall: float, mtbf: float, recovery: float) -> float:
    """The share of time that trains, for good: exponential failures, also during stalls and recoveries (Daly 2006)."""
    return interval / (mtbf * math.exp(recovery / mtbf) * math.expm1((interval + stall) / mtbf))


def simulated_share(
    interval: float, stall: float, mtbf: float, recovery: float, count: int = 20_000, seed: int = 0
) -> float:
    """The same by playing so many failures, some of which fall into a recovery. What was not stored is lost."""
    rng = random.Random(seed)
    clock, stored, recovering = 0.0, 0, False
    for _ in range(count):
        until = rng.expovariate(1 / mtbf)
        clock += until
        stored += int(max(0.0, until - recovery * recovering) // (interval + stall))
        recovering = True
    return stored * interval / clock


def all_reduce_bytes(parameters: int, bytes_each: int, workers: int) -> float:
    """What every worker of a ring sends, and receives, to sum a gradient over all."""
    return 2 * (workers - 1) / workers * parameters * bytes_each


def rewritten(line_bytes: float, lines_per_s: float, hours: float, upload: float) -> tuple[float, float]:
    """Bytes that all flushes of metrics.jsonl send to an object store, and the file's at the end.

    The rule is the outbox's: the next flush begins after 10 s, or after 50 times what the last one took.
    """
    clock = sent = 0.0
    while clock < hours * HOUR:
        content = clock * lines_per_s * line_bytes
        took = content / upload
        sent += content
        clock += took + max(HEARTBEAT_S, 50 * took)
    return sent, hours * HOUR * lines_per_s * line_bytes
