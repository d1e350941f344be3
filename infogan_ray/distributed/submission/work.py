"""What is sent to a backend: a command with its run's name, the files that it names, and this code."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import infogan_ray
from infogan_ray import UserError

LIMIT = 20 * 10**6
"""Most bytes that are sent: Ray's head keeps them in memory."""
LARGEST_NAMED = 5
FILES = "files"
"""Folder of the recipe or configuration, in what is sent."""
LEFT_OUT = {
    ".git", ".hg", ".venv", "venv", "env", "node_modules", "__pycache__", "build", "dist", ".mypy_cache", ".ruff_cache",
    ".pytest_cache", ".ipynb_checkpoints", ".env", ".ssh", ".aws", ".netrc", ".ray", "wandb", "mlruns",
    ".gitignore",  # Ray would obey it, and leave out more than is left out here
}  # fmt: skip
DATA_FOLDERS = ("data", "datasets", "runs")  # left out too, unless they are Python packages
ENDINGS_LEFT_OUT = (
    ".safetensors", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".parquet", ".egg-info", ".pyc", ".pem", ".key",
)  # fmt: skip
SECRET_WORDS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL")


@dataclass(frozen=True)
class Work:
    """``arguments`` of infogan, with ``--name name`` among them. They name ``files`` of this machine as ``files/…``."""

    name: str
    arguments: tuple[str, ...]
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    """A folder of the user's that is sent too, for recipes that import from it."""
    environment: dict[str, str] = field(default_factory=dict)
    workers: tuple[int, int] | None = None
    """The least and the largest number of workers of a run; None where it is not said."""
    gpus: bool = True
    """False where the run asks for the CPU."""

    def __post_init__(self) -> None:
        for name in self.environment:
            if any(part in name.upper() for part in SECRET_WORDS):
                raise UserError(
                    f"env names '{name}': what is sent with a job can be read by all who see the cluster's jobs; give "
                    "secrets to the cluster's own environment (cluster/README.md)"
                )

    @property
    def command(self) -> str:
        """The same command for this machine, with the paths that files have here."""
        local = {f"{FILES}/{path.name}": str(path) for path in self.files}
        return shlex.join(["infogan", *(local.get(word, word) for word in self.arguments)])


def stage(work: Work, into: Path) -> list[tuple[str, int]]:
    """Copy what is sent into an empty folder. Returns (name, bytes) of every file. Raises UserError above LIMIT."""
    sources: dict[str, Path] = {}
    if work.folder is not None:
        if not work.folder.is_dir():
            raise UserError(f"working_dir is {work.folder}, which is not a folder")
        sources |= dict(walk(work.folder))
    package = Path(infogan_ray.__file__).parent
    sources |= {f"{package.name}/{name}": path for name, path in walk(package)}
    sources |= {f"{FILES}/{path.name}": path for path in work.files}
    sizes = sorted(((name, path.stat().st_size) for name, path in sources.items()), key=lambda entry: -entry[1])
    total = sum(size for _, size in sizes)
    if total > LIMIT:
        largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in sizes[:LARGEST_NAMED])
        raise UserError(
            f"working_dir is {work.folder}: {total / 1e6:.1f} MB would be sent, and {LIMIT / 1e6:.0f} MB may be; the "
            f"largest are {largest}; name a smaller folder, and put data on storage that the cluster sees"
        )
    for name, path in sources.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return sizes


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name below the folder, path) of the files that are sent: no data, no secrets, no virtual environments."""
    for path_of_folder, folders, files in os.walk(folder):
        here = Path(path_of_folder)
        folders[:] = sorted(
            name
            for name in folders
            if name not in LEFT_OUT
            and (name not in DATA_FOLDERS or (here / name / "__init__.py").exists())
            and not name.endswith(ENDINGS_LEFT_OUT)
            and not (here / name).is_symlink()
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            path = here / name
            if (
                name not in LEFT_OUT
                and not name.endswith(ENDINGS_LEFT_OUT)
                and not path.is_symlink()
                and path.is_file()
            ):
                yield path.relative_to(folder).as_posix(), path
