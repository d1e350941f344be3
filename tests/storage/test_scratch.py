"""Temporary folders, also after a kill. Run: pytest tests/storage/test_scratch.py"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from infogan_ray.storage.scratch import MIN_AGE_S, PREFIX, scratch_folder

HOLD = "import time; from infogan_ray.storage.scratch import scratch_folder\nwith scratch_folder() as path: "
HOLD += "open(path + '/file', 'w').close(); print(path, flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def make_old(folder: Path) -> None:
    os.utime(folder, times=(time.time() - 2 * MIN_AGE_S,) * 2)


def test_the_folder_is_deleted_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch_folder() as path:
        Path(path, "file").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_next_start_deletes_what_a_killed_process_has_left(tmp_path: Path) -> None:
    living, killed = (
        subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        assert living.stdout is not None and killed.stdout is not None
        used, left = (Path(process.stdout.readline().strip()) for process in (living, killed))
        killed.send_signal(signal.SIGKILL)
        killed.wait(20)
        others = [tmp_path / "infogan-ray-train-other", tmp_path / f"{PREFIX}young", tmp_path / f"{PREFIX}link"]
        others[0].mkdir()
        others[1].mkdir()
        others[2].symlink_to(others[0])
        for folder in (used, left, others[0]):
            make_old(folder)
        with scratch_folder():
            pass
        assert not left.exists() and used.is_dir() and all(other.exists() for other in others)
    finally:
        for process in (living, killed):
            process.kill()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()
