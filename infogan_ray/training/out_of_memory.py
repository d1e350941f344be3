"""Errors of memory: how to recognise one, and which settings of a run need less. No Ray.

PyTorch raises its own class on a GPU and a plain RuntimeError on a CPU, so the text decides. A worker that starts again
with the same settings would fail again.
"""

from __future__ import annotations

import re

from infogan_ray.training.config import RunConfig

SIGNS = re.compile(
    "OutOfMemory|out of memory|allocate memory|not enough memory|MemoryError|Unable to allocate|ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)
REQUEST = re.compile(r"(?:allocate|request of) ([\d.,]+) ?(bytes|[KMGTP]?i?B)\b")
FOR_A_RUN = "use smaller values, or a larger optimizer.accumulate, and another --name"
FOR_A_TRIAL = (
    "use smaller values in the recipe, or run fewer trials at once with more --threads or a larger --gpus-per-worker"
)


def is_out_of_memory(error: BaseException) -> bool:
    return bool(SIGNS.search(f"{type(error).__name__}: {error}"))


def request(error: BaseException) -> str:
    """What the failed request was, in one line."""
    if found := REQUEST.search(str(error)):
        amount = f"{int(found[1].replace(',', '')):,}" if found[2] == "bytes" else found[1]
        return f"a request of {amount} {found[2]} failed"
    return " ".join(str(error).split()) or type(error).__name__


def out_of_memory(config: RunConfig, error: BaseException, advice: str = FOR_A_RUN) -> str:
    """The message for a run or a trial: what needs the memory, and what to change."""
    return (
        f"out of memory with batch_size {config.batch_size} and network.width {config.network.width}; {advice} "
        f"({request(error)})"
    )
