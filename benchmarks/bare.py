"""Train trials without Ray, in one process per CPU: ``python -m benchmarks.bare CONFIGS.json FOLDER``."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch

from infogan_ray.data.datasets import load_images
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.worker import run_worker

images: ImageSet


def load() -> None:
    global images
    torch.set_num_threads(1)
    images = load_images("mnist", RunConfig(data="mnist").data_config, say=lambda line: None)


def run(saved: dict[str, Any], folder: str) -> None:
    config = RunConfig().override(saved, "the jobs")
    for _ in run_worker(config, images, RunDirectory(open_storage(folder)), device=torch.device("cpu")):
        pass


def main() -> int:
    configs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    jobs = [(config, str(folder / f"trial_{number}")) for number, config in enumerate(configs)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), initializer=load) as pool:
        pool.starmap(run, jobs, chunksize=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
