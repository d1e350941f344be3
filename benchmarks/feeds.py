"""Speed of each feed compared with training, and the memory of the streaming feed.

    python -m benchmarks.feeds        # two minutes; writes about 900 MB to the temporary folder and deletes them

Speed: MNIST (downloaded if it is missing) in memory and as prepared shards, raw and PNG. Memory: images of 64 x 64 x 3
that are larger than two windows, also with a manifest that lists the shards four times. One process, one torch thread.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from PIL import Image

from infogan_ray.data.datasets import load_images
from infogan_ray.data.feeds.feed_policy import make_feed
from infogan_ray.data.feeds.memory import Feed
from infogan_ray.data.feeds.streaming import StreamingFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.shards.dataset import COLUMNS, ENCODED, MANIFEST, RAW, Shard, ShardSet
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import train
from infogan_ray.training.train_state import TrainState

from .figures import publish

GROUP = 1000  # rows of a row group
SHARD = 10_000
LARGE = 60_000  # images of 64 x 64 x 3


@dataclass
class Feeds:
    """Measure both feeds."""

    steps: int = 40
    """Training steps per feed."""
    out: Path | None = None
    """JSON file for the figures."""
    hold: str | None = None
    """Stream these shards once and print the peak memory. The benchmark starts itself with this flag."""


def main() -> int:
    given = tyro.cli(Feeds)
    torch.set_num_threads(1)
    if given.hold:
        print(json.dumps(stream_once(given.hold)))
        return 0
    images = load_images("mnist", say=lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="infogan-feeds-") as scratch:
        publish(measure(images, Path(scratch), given.steps), given.out)
    return 0


def measure(images: ImageSet, scratch: Path, steps: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    sets = {"in memory": images}
    for encoding in (RAW, ENCODED):
        folder = scratch / encoding
        write(folder, iter(images.images.numpy()), encoding)
        config = dataclasses.replace(RunConfig(preset="mnist").data_config, image_size=28, channels=1)
        name = "streaming, raw" if encoding == RAW else "streaming, PNG"
        sets[name] = load_images(str(folder), config, feed="stream")
    for name, image_set in sets.items():
        figures[f"{name}: images/s, two epochs"] = (
            f"{rate(lambda image_set=image_set: make_feed(image_set, 128, 0)):,.0f}"
        )
    for name, image_set in sets.items():
        figures[f"{name}: seconds to the first batch"] = f"{first_batch(image_set):.2f}"
    for name, image_set in sets.items():
        figures[f"{name}: images/s of training"] = f"{training(image_set, steps):,.0f}"
    noise = np.random.default_rng(0)
    large = (noise.integers(0, 256, (3, 64, 64), dtype=np.uint8) for _ in range(LARGE))
    shards = write(scratch / "large", large, RAW)
    for times in (1, 4):
        store = open_storage(scratch / "large")
        store.write(MANIFEST, dataclasses.replace(shards, train=shards.train * times).to_json())
        command = [sys.executable, "-m", "benchmarks.feeds", "--hold", str(scratch / "large")]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        what = f"streaming {found['images']:,} images of 64x64x3, {found['bytes'] / 1e6:,.0f} MB"
        figures[f"{what}: images/s"] = f"{found['rate']:,.0f}"
        figures[f"{what}: peak memory above the start"] = f"{found['peak'] / 1e6:,.0f} MB"
    return figures


def write(folder: Path, images: Iterator[np.ndarray], encoding: str) -> ShardSet:
    folder.mkdir()
    shards = []
    rows: list[bytes] = []
    size: tuple[int, ...] = ()

    def close() -> None:
        name = f"train-{len(shards):05d}.parquet"
        with pq.ParquetWriter(folder / name, COLUMNS, use_dictionary=["label"], compression="NONE") as writer:
            for start in range(0, len(rows), GROUP):
                part = rows[start : start + GROUP]
                table = pa.table([part, [None] * len(part), [""] * len(part)], schema=COLUMNS)
                writer.write_table(table, row_group_size=len(part))
        groups = tuple(min(GROUP, len(rows) - start) for start in range(0, len(rows), GROUP))
        shards.append(Shard(name, groups, (folder / name).stat().st_size, ""))
        rows.clear()

    for image in images:
        size = image.shape
        rows.append(image.tobytes() if encoding == RAW else png(image))
        if len(rows) == SHARD:
            close()
    if rows:
        close()
    raw = encoding == RAW
    found = ShardSet(
        open_storage(folder), encoding, size[-1] if raw else None, size[0] if raw else None, None, tuple(shards)
    )  # fmt: skip
    found.folder.write(MANIFEST, found.to_json())
    return found


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "PNG")
    return file.getvalue()


def rate(make: Callable[[], Feed], epochs: int = 2) -> float:
    """Images per second, including the creation of the feed."""
    started = time.monotonic()
    feed = make()
    steps = epochs * feed.steps_per_epoch
    for step in range(steps):
        feed.batch(step)
    took = time.monotonic() - started
    feed.close()
    return steps * feed.batch_size / took


def first_batch(images: ImageSet) -> float:
    started = time.monotonic()
    feed = make_feed(images, 128, 0)
    feed.batch(0)
    took = time.monotonic() - started
    feed.close()
    return took


def training(images: ImageSet, steps: int) -> float:
    """Images per second of the preset's training steps, after the same number of warm-up steps.

    The first windows are already read: in a long run the reader is busy for only a small part of the time.
    """
    config = RunConfig(preset="mnist")
    state = TrainState(config, 28, 1)
    feed = make_feed(images, config.batch_size, 0)
    feed.batch(0)
    while isinstance(feed, StreamingFeed) and not all(f.done() for lane in feed.lanes for f in lane.held.values()):
        time.sleep(0.1)
    loop = train(state, feed, steps=2 * steps, log_every=steps, checkpoint_every=2 * steps)
    found = [metrics["images_per_second"] for metrics in loop]
    feed.close()
    return found[-1]


def stream_once(path: str) -> dict[str, Any]:
    images = load_images(path, feed="stream", sample=0)
    before = peak_memory()
    speed = rate(lambda: make_feed(images, 128, 0), epochs=1)
    return {"images": images.count, "bytes": images.bytes, "rate": speed, "peak": peak_memory() - before}


def peak_memory() -> int:
    """The peak memory of this process in bytes. getrusage would include that of the parent process."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    raise SystemExit(main())
