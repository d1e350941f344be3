"""The wheel that ``python -m build`` makes. Run: pytest tests/project/test_wheel.py (-m slow also installs it)"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import infogan_ray

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that nothing else is packed and the checkout stays as it is."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    for name in archive.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=240)
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"infogan_ray-{infogan_ray.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as content:
        packed = {name for name in content.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "infogan_ray"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, check=True,
    ).stdout.decode()  # fmt: skip
    assert packed == {name for name in tracked.split("\0") if name and (REPOSITORY / name).is_file()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_in_an_empty_environment(wheel: Path, npz: Path, tmp_path: Path) -> None:
    """Only the wheel and its dependencies are installed, without extras and without this repository."""
    venv.create(tmp_path / "venv", with_pip=True)
    run: dict[str, Any] = {"cwd": tmp_path, "check": True, "timeout": 900, "stdout": subprocess.PIPE, "text": True,
        "env": {**os.environ, "HOME": str(tmp_path)}}  # fmt: skip
    constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", *constraints, str(wheel)], **run)
    infogan = tmp_path / "venv/bin/infogan"
    assert "\ttorch " in subprocess.run([infogan, "doctor"], **run).stdout
    words = ["train", "--data", str(npz), "--steps", "2", "--batch-size", "16", "--network.width", "8", "--name", "a"]
    shown = subprocess.run([infogan, *words], **run).stdout
    assert "a: 2 steps in " in shown and (tmp_path / "runs/a/model/config.json").exists()
