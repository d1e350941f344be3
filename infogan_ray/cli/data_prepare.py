"""infogan data prepare writes images as shards that training streams. infogan data verify checks the shards."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.exit_codes import DONE, FAILED, INTERRUPTED, Failed
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.data.datasets import DataConfig
from infogan_ray.data.image_files import describe
from infogan_ray.data.progress import Pace, counted
from infogan_ray.data.shards.dataset import RAW, TEST, TRAIN, ShardSet, check, open_shards
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.visible_text import shell_command, shell_word
from infogan_ray.training.disk_room import disk_warning


@dataclass
class Prepare:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A named dataset, or a path that infogan train --data accepts."""
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """A new folder, s3://bucket/prefix or gs://bucket/prefix."""
    encoding: Literal["raw", "encoded"] = "raw"
    """raw: pixels of one size, which training does not decode. encoded: the bytes of the image files, checked."""
    image_size: int | None = None
    """Height and width of raw images; by default the data's own size, if it has one."""
    channels: int | None = None
    """Channels of raw images: 1 (grey) or 3 (RGB)."""
    labels: str | None = None
    """CSV or JSON file with the columns file and label; by default class folders, if any."""
    data_dir: str | None = None
    """Folder to search first for a named dataset."""
    rows_per_shard: int | None = None
    """Images per shard; by default about 64 MB of images, or less so that there are at least 16 shards."""
    rows_per_group: int | None = None
    """Images that are read together; by default about 4 MB, 64 to 4096 images."""
    seed: int = 0
    """Seed of the shuffle."""
    max_bad: float = 0.01
    """Largest allowed share of broken images; they are skipped."""
    pixel_range: str | None = None
    """LOW:HIGH, for images of more than 8 bits: the values that become black and white; by default it is found from
    all images, or from 10,000 of them."""
    fit: Literal["crop", "pad", "squeeze"] = "crop"
    """How raw images that are not square become square: crop takes the middle, pad adds a border in the colour of the
    image's own, squeeze changes the proportions."""
    workers: int | None = None
    """Number of parallel processes; by default one per CPU."""
    overwrite: bool = False
    """Replace a dataset that was prepared in DEST with other settings."""
    dry_run: bool = False
    """Print the plan and its size; write nothing."""
    json: bool = False
    """Print one JSON object on stdout."""


def prepare(arguments: list[str]) -> int:
    given = parse(
        Prepare,
        "data prepare",
        arguments,
        "Write images as Parquet shards, which training streams. The same command continues after a kill.",
        [
            "data prepare photos shards --image-size 64",
            "data prepare photos.tar s3://bucket/photos --encoding encoded",
            "data prepare photos shards --image-size 64 --dry-run",
        ],
    )
    raw = given.encoding == RAW
    if not raw and (given.image_size or given.channels or given.fit != "crop"):
        raise UserError(
            "encoding is 'encoded', which takes no --image-size, --channels or --fit; set them for infogan train"
        )
    folder = open_storage(given.dest)
    source = Path(given.source).expanduser().absolute()
    if folder.is_local and source.is_dir() and Path(folder.path).resolve().is_relative_to(source.resolve()):
        raise UserError(f"DEST is {folder}, which is inside {given.source}; name a folder outside it")
    config = DataConfig(
        given.data_dir, given.image_size, given.channels, given.labels, given.max_bad, given.pixel_range, given.fit
    )
    job = _job(given, config)
    from infogan_ray.data.preparation.progress_log import ProgressLog

    ProgressLog(folder).check(job.request, given.overwrite)
    if folder.is_local:
        needed = job.image_bytes * job.count() - folder.total_bytes()  # what is there is kept or replaced
        if warning := disk_warning(folder, needed, "delete other files on this disk, or name another DEST"):
            warn(warning)
    if given.dry_run:
        return _plan(given, job, folder)
    from infogan_ray.distributed.cluster import data_preparation
    from infogan_ray.training.run_outcome import TrainingFailed

    in_memory = job.kind == "arrays"
    shown, started = ProgressLine(job.count(), "images"), time.monotonic()
    again = shell_command(["infogan", "data", "prepare", *(word for word in arguments if word != "--overwrite")])
    try:
        with shown:
            shards = data_preparation.prepare(
                job, folder, None if in_memory else source, given.workers, given.max_bad, given.overwrite,
                lambda now: shown(now.images, now.earlier, shards_text(now.shards, now.of_shards), now.broken),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Failed(f"interrupted: {shown.text or 'nothing'} done; continue with: {again}", INTERRUPTED) from None
    except data_preparation.TooManyBroken as error:
        raise Failed(str(error)) from None
    except (data_preparation.PreparingFailed, TrainingFailed) as error:
        raise Failed(f"{error}. Continue with: {again}") from None
    return _report(given, shards, time.monotonic() - started, shown.fresh)


def _job(given: Prepare, config: DataConfig) -> Any:
    from infogan_ray.data.preparation.shard_plan import plan_shards
    from infogan_ray.data.preparation.shard_source import SourceInMemory, open_source

    opened = open_source(given.source, config, say=print_progress)
    size, channels = given.image_size, given.channels or 3
    if isinstance(opened.train, SourceInMemory):
        size, channels = opened.train.images.shape[-1], opened.train.images.shape[1]
    if given.encoding == RAW and size is None:
        raise UserError(
            f"image_size is not set; raw images of {given.source} need it, for example --image-size 64; to see the "
            f"sizes: infogan data inspect {shell_word(given.source)}; or keep the files unchanged: --encoding encoded"
        )
    if size is not None and (size < 1 or channels not in (1, 3)):
        raise UserError(f"image_size is {size} and channels is {channels}; valid are 1 or more, and 1 or 3")
    return plan_shards(opened, given.encoding, size, channels, given.rows_per_shard, given.rows_per_group, given.seed)


def _plan(given: Prepare, job: Any, folder: Any) -> int:
    from infogan_ray.data.preparation.progress_log import ProgressLog

    tasks = job.tasks()
    done = 0 if given.overwrite else len(ProgressLog(folder).done(tasks))
    plan = {
        "dest": str(folder), **job.request, "train": job.count(TRAIN), "test": job.count(TEST), "tasks": len(tasks),
        "done": done, "image_bytes": job.image_bytes, "bytes": job.image_bytes * job.count(),
    }  # fmt: skip
    if given.json:
        print_json(plan)
        return DONE
    print_result(
        f"source: {job.name}, {job.kind}: {job.count(TRAIN):,} training images, {job.count(TEST):,} test images"
    )
    settings = job.settings
    images = counted(settings.rows_per_shard, "image")
    print_result(f"tasks: {len(tasks):,} of {images}; row groups of {settings.rows_per_group:,}")
    print_result(f"bytes: {display.size(plan['bytes'])} before compression, {job.image_bytes:,} per image, in {folder}")
    print_result(f"already done: {counted(done, 'task')}")
    return DONE


def _report(given: Prepare, shards: ShardSet, seconds: float, fresh: int) -> int:
    both, about = (*shards.train, *shards.test), shards.about
    total = sum(shard.bytes for shard in both)
    if given.json:
        print_json({
            "dest": shards.folder.uri, "images": {TRAIN: shards.count(TRAIN), TEST: shards.count(TEST)},
            "classes": shards.classes and len(shards.classes), "bytes": total, "shards": len(both),
            "conversions": about["conversions"], "broken": about["broken"], "seconds": round(seconds, 1),
            "made_now": fresh,
        })  # fmt: skip
        return DONE
    rate = f", {fresh / seconds:,.0f} images/s" if fresh and seconds > 0 else ", all tasks were already done"
    classes = counted(len(shards.classes), "class", "classes") if shards.classes else "no classes"
    print_result(f"{shards.folder}: {shards.count(TRAIN):,} training and {shards.count(TEST):,} test images, {classes}")
    print_result(f"{counted(len(both), 'shard')}, {display.size(total)}, in {display.duration(seconds)}{rate}")
    print_result(f"conversions: {describe(Counter(about['conversions'])) or 'none'}")
    if about["broken"]:
        some = ", ".join(list(about["broken_files"])[:3])
        print_result(
            f"broken and skipped: {about['broken']:,} ({some}); the full list is in {shards.folder}/MANIFEST.json"
        )
    size = "" if shards.encoding == RAW else " --image-size 64 --channels 3"
    print_result(f"next: infogan train --data {shell_word(shards.folder.uri)}{size} --steps 20000")
    return DONE


@dataclass
class Verify:
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder or URI of a dataset that infogan data prepare wrote."""
    json: bool = False
    """Print one JSON object on stdout."""


def verify(arguments: list[str]) -> int:
    given = parse(
        Verify,
        "data verify",
        arguments,
        "Read all shards and compare their SHA-256.",
        [
            "data verify shards",
            "data verify s3://bucket/photos",
        ],
    )
    shards = open_shards(open_storage(given.dest))
    both, wrong, read = (*shards.train, *shards.test), [], 0
    with ProgressLine(sum(shard.bytes for shard in both) // 1000, "kB") as shown:
        shown.pace.report(0)
        for number, shard in enumerate(both, start=1):
            if reason := check(shards, shard):
                wrong.append(reason)
            read += shard.bytes
            shown(read // 1000, 0, shards_text(number, len(both)), len(wrong))
    if given.json:
        print_json({"dest": shards.folder.uri, "shards": len(both), "bytes": read, "wrong": wrong})
    for line in wrong:
        warn(line)
    if not given.json and not wrong:
        print_result(f"{shards.folder}: {counted(len(both), 'shard')}, {display.size(read)}, all correct")
    return FAILED if wrong else DONE


def shards_text(done: int, total: int) -> str:
    return f"{done:,} of {counted(total, 'shard')}"


class ProgressLine:
    """Progress on stderr: one updated line on a terminal, or a line every PLAIN_EVERY_S seconds elsewhere."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.pace = total, unit, Pace()
        self.printed, self.text, self.fresh = 0.0, "", 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if display.errors.is_terminal:
            display.errors.print()

    def __call__(self, done: int, earlier: int, what: str, broken: int) -> None:
        now = time.monotonic()
        self.fresh, self.text = done - earlier, what
        self.pace.report(done)
        speed = [f"{self.pace.speed:,.0f} {self.unit}/s", self.pace.left(self.total)] if self.pace.speed else []
        line = ", ".join([f"{done:,} of {self.total:,} {self.unit}", what, *speed, f"{broken:,} broken"])
        if display.errors.is_terminal:
            display.errors.print(f"\r{line}   ", end="", soft_wrap=True, markup=False)
        elif now - self.printed >= display.PLAIN_EVERY_S or done == self.total:
            display.errors.print(line, soft_wrap=True, markup=False)
            self.printed = now
