"""What is sent: a command with its run's name pinned, the files that it names, and this code."""

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
"""Bytes that are sent at most: the head holds them in memory for as long as it lives."""
NAMED = 5  # of the largest entries, when there is too much
FILES = "files"  # where a recipe or a configuration lies in what is sent
LEFT_OUT = {
    ".git", ".hg", ".venv", "venv", "env", "node_modules", "__pycache__", "build", "dist", ".mypy_cache", ".ruff_cache",
    ".pytest_cache", ".ipynb_checkpoints", ".env", ".ssh", ".aws", ".netrc", ".ray", "wandb", "mlruns",
    ".gitignore",  # Ray would follow it, and leave out what we have said is sent
}  # fmt: skip
DATA = ("data", "datasets", "runs")  # left out too, unless they are Python packages
ENDINGS_LEFT_OUT = (
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".npz",
    ".npy",
    ".parquet",
    ".egg-info",
    ".pyc",
    ".pem",
    ".key",
)
SECRET = ("KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL")


@dataclass(frozen=True)
class Work:
    """``arguments`` of infogan, with ``--name name`` among them; local ``files`` that they name as ``files/…``."""

    name: str
    arguments: tuple[str, ...]
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    """A folder of the user's that is sent along, for recipes that import from it."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.environment:
            if any(part in name.upper() for part in SECRET):
                raise UserError(
                    f"env names '{name}': what is sent with a job can be read by all who see the cluster's jobs; give "
                    "secrets to the cluster's own environment (cluster/README.md)"
                )

    @property
    def command(self) -> str:
        """For people, and to be given again: with the files where they lie here."""
        here = {f"{FILES}/{path.name}": str(path) for path in self.files}
        return shlex.join(["infogan", *(here.get(word, word) for word in self.arguments)])


def stage(work: Work, into: Path) -> list[tuple[str, int]]:
    """Lay out what is sent in an empty folder; (name, bytes) of all. Raises UserError for more than LIMIT."""
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
        largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in sizes[:NAMED])
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
    """(name below the folder, path) of the files that are sent; neither data nor secrets nor environments."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name not in LEFT_OUT
            and (name not in DATA or (here / name / "__init__.py").exists())
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
