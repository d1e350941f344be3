"""Whether checkpoints fit on a disk: a warning before a run starts, and what to delete when the disk is full."""

from __future__ import annotations

from rich.filesize import decimal

from infogan_ray import UserError
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.storage import checkpoints
from infogan_ray.storage.errors import DiskFull, StorageError
from infogan_ray.storage.file_system import Storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_cost import checkpoint_count, checkpoint_size, kept_checkpoints, trials_bytes

MARGIN = 1.05  # a disk stores whole blocks, and a run writes more than checkpoints
MOST_NAMED = 3  # runs that a message names


def disk_warning(folder: Storage, needed: int, advice: str) -> str:
    """A line if the folder's disk has less than ``needed`` bytes free. Empty if there is room, and for a bucket."""
    free = folder.free_bytes()
    if free is None or free >= needed:
        return ""
    return f"{folder} has {decimal(free)} free, and up to {decimal(needed)} more will be written: {advice}"


def run_warning(config: RunConfig, steps: int, bytes_each: int, run: RunDirectory) -> str:
    """``disk_warning`` for a run's checkpoints: those that are kept, and one that is written before one is deleted.

    Raises UserError if the disk has no room for one checkpoint.
    """
    free = run.folder.free_bytes()
    if free is None or run.get_status().get("stored", 0) >= steps:
        return ""
    present = run.checkpoints.total_bytes()
    _check_one_fits(run.folder, free + max(0, present - max(config.keep - 1, 1) * bytes_each), bytes_each)
    most = min(kept_checkpoints(config, steps) + 1, checkpoint_count(config, steps))
    smaller = f"give a --keep below {config.keep}, " if config.keep > 2 else ""
    advice = f"{smaller}delete other files on this disk, or name another folder with --storage"
    return disk_warning(run.folder, most * bytes_each - present, advice)


def search_warning(configs: list[RunConfig], images: ImageSet, folder: Storage) -> str:
    """``disk_warning`` for the checkpoints of all trials. Raises UserError if the disk has no room for one of them."""
    free, present = folder.free_bytes(), folder.total_bytes() if folder.is_local else 0
    if free is None:
        return ""
    largest = max(checkpoint_size(config, images) for config in configs)
    _check_one_fits(folder, free + present, largest)
    advice = "give fewer --trials, delete other files on this disk, or name another folder with --storage"
    return disk_warning(folder, trials_bytes(configs, images) + largest - present, advice)


def _check_one_fits(folder: Storage, free: int, bytes_each: int) -> None:
    """Raises UserError if a checkpoint has more than ``free`` bytes."""
    if free < bytes_each:
        raise UserError(
            f"storage: {folder} has {decimal(free)} free, and one checkpoint takes {decimal(bytes_each)}; delete files "
            "there, or name another folder with --storage"
        )


def with_advice(error: StorageError, run: RunDirectory, keep: int, metric: str, needed: int = 0) -> str:
    """The error's message. If the disk is full, also what to delete. ``needed``: bytes of the checkpoint to write."""
    if not isinstance(error, DiskFull) or not run.folder.is_local:
        return str(error)
    try:
        return f"{error}; {_advice(run, keep, metric, needed)}"
    except (StorageError, UserError, OSError):  # a folder beside the run cannot be read: the error matters more
        return str(error)


def _advice(run: RunDirectory, keep: int, metric: str, needed: int) -> str:
    free = run.folder.free_bytes() or 0
    missing = round(needed * MARGIN) - free
    words = "to make room, "
    if missing > 0:
        words = f"it takes {decimal(needed)} and {decimal(free)} are free, so make room for {decimal(missing)} more: "
    spare = checkpoints.deletable(run.checkpoints, 2, metric, lower_is_better=lower_is_better(metric))
    if keep > 2 and spare and not _is_trial(run):
        size = decimal(sum(checkpoint.folder.total_bytes() for checkpoint in spare))
        words += f"add --keep 2, which deletes {', '.join(checkpoint.name for checkpoint in spare)} ({size}), or "
    others = ", ".join(f"{folder} ({decimal(size)})" for size, folder in _largest_beside(run))
    return f"{words}delete other files on this disk{', for example ' if others else ''}{others}"


def _is_trial(run: RunDirectory) -> bool:
    return run.folder.parent.name == "trials"


def _largest_beside(run: RunDirectory) -> list[tuple[int, Storage]]:
    """The largest other runs and searches in the run's storage: bytes and folder, the largest first."""
    own = run.folder.parent.parent if _is_trial(run) else run.folder
    others = [own.parent / entry.name for entry in own.parent.entries() if entry.is_folder and entry.name != own.name]
    ours = [folder for folder in others if RunDirectory(folder).looks_like_run or folder.exists("trials")]
    return sorted(((folder.total_bytes(), folder) for folder in ours), key=lambda each: -each[0])[:MOST_NAMED]
