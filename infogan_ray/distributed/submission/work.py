"""The content of a job: a command with a run's name, the files that it names, and this package."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.filesize import decimal

import infogan_ray
from infogan_ray import UserError

LIMIT = 20 * 10**6
"""Largest number of bytes to send: Ray's head keeps them in memory."""
LARGEST_LISTED = 5
FILES = "files"
"""Folder of the recipe or configuration among the sent files."""
OMITTED = {
    ".git", ".hg", ".venv", "venv", "env", "node_modules", "__pycache__", "build", "dist", ".mypy_cache", ".ruff_cache",
    ".pytest_cache", ".ipynb_checkpoints", ".env", ".ssh", ".aws", ".netrc", ".ray", "wandb", "mlruns",
    ".gitignore",  # Ray would apply it and omit more files
}  # fmt: skip
DATA_FOLDERS = ("data", "datasets", "runs")  # also omitted, unless they are Python packages
OMITTED_ENDINGS = (
    ".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".parquet", ".egg-info", ".pyc", ".pem", ".key",
)  # fmt: skip
SECRET_WORDS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL")


@dataclass(frozen=True)
class Work:
    """``arguments`` of infogan, which include ``--name name``. They name this machine's ``files`` as ``files/…``."""

    name: str
    arguments: tuple[str, ...]
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    """A folder of the user that is also sent, for recipes that import from it."""
    environment: dict[str, str] = field(default_factory=dict)
    workers: tuple[int, int] | None = None
    """The smallest and largest number of workers of a run; None if it is not set."""
    gpus: bool = True
    """False if the run uses the CPU."""

    def __post_init__(self) -> None:
        for name in self.environment:
            if any(part in name.upper() for part in SECRET_WORDS):
                raise UserError(
                    f"env contains '{name}': anyone who sees the cluster's jobs can read a job's variables; put "
                    "secrets into the cluster's own environment (cluster/README.md)"
                )

    @property
    def command(self) -> str:
        """The same command for this machine, with the files' local paths."""
        local = {f"{FILES}/{path.name}": str(path) for path in self.files}
        return shlex.join(["infogan", *(local.get(word, word) for word in self.arguments)])

    @property
    def restartable(self) -> tuple[str, ...]:
        """The arguments for a scheduler that may start the command again, which must then continue the run."""
        return (
            *(word for word in self.arguments if word not in ("--resume", "--start-or-resume")),
            "--start-or-resume",
        )


def stage(work: Work, into: Path) -> list[tuple[str, int]]:
    """Copy all files to send into an empty folder. Returns (name, bytes) of each. Raises UserError above LIMIT."""
    sources: dict[str, Path] = {}
    if work.folder is not None:
        if not work.folder.is_dir():
            raise UserError(f"working_dir is {work.folder}, which is not a folder")
        sources |= dict(files_to_send(work.folder))
    package = Path(infogan_ray.__file__).parent
    sources |= {f"{package.name}/{name}": path for name, path in files_to_send(package)}
    sources |= {f"{FILES}/{path.name}": path for path in work.files}
    sizes = sorted(((name, path.stat().st_size) for name, path in sources.items()), key=lambda entry: -entry[1])
    total = sum(size for _, size in sizes)
    if total > LIMIT:
        largest = ", ".join(f"{name} ({decimal(size)})" for name, size in sizes[:LARGEST_LISTED])
        raise UserError(
            f"working_dir is {work.folder}: {decimal(total)} would be sent; the limit is {decimal(LIMIT)}. The "
            f"largest files are {largest}. Name a smaller folder, and put data on storage that the cluster sees"
        )
    for name, path in sources.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return sizes


def files_to_send(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name below the folder, path) of each file to send: no data, no secrets, no virtual environments."""
    for path_of_folder, folders, files in os.walk(folder):
        here = Path(path_of_folder)
        folders[:] = sorted(
            name
            for name in folders
            if name not in OMITTED
            and (name not in DATA_FOLDERS or (here / name / "__init__.py").exists())
            and not name.endswith(OMITTED_ENDINGS)
            and not (here / name).is_symlink()
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            path = here / name
            if name not in OMITTED and not name.endswith(OMITTED_ENDINGS) and not path.is_symlink() and path.is_file():
                yield path.relative_to(folder).as_posix(), path
