"""Several users of one machine, each with a Ray. As root: pytest -m slow tests/distributed/test_shared_machine.py"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import short_folder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes other users; needs root and setpriv"
    ),
]

USERS = (20001, 20002)
RAYS_PORTS = (6379, 8265, 10001, 52365)


def start(user: int, home: Path, npz: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a run with two workers as another user. That user may read every file: Python may be in root's home."""
    home.mkdir(exist_ok=True)
    os.chown(home, user, user)
    words = ["train", "--data", str(npz), "--codes", "noise=4 cat=3", "--batch-size", "16", "--steps", "4"]
    words += ["--network.width", "8", "--evaluation.samples", "200", "--device", "cpu", "--threads", "1"]
    words += ["--workers", "2", "--storage", "runs", "--name", "mine"]
    capability = "+dac_read_search"
    return subprocess.Popen(
        ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "--inh-caps", capability,
         "--ambient-caps", capability, sys.executable, "-m", "infogan_ray", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home, start_new_session=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)} | variables,
    )  # fmt: skip


@contextlib.contextmanager
def taken(ports: tuple[int, ...]) -> Iterator[None]:
    """Listen on these ports, unless another process does already."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


def test_two_users_train_at_the_same_time_and_rays_usual_ports_are_taken(npz: Path) -> None:
    with short_folder() as folder, taken(RAYS_PORTS):
        folder.chmod(0o777)
        started = [start(user, folder / str(user), npz, RAY_TMPDIR=str(folder)) for user in USERS]
        outputs = [process.communicate(timeout=360)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
        for user in USERS:
            home = folder / str(user)
            assert RunDirectory(open_storage(home / "runs") / "mine").get_status()["state"] == "finished"
            token = (home / ".ray" / "auth_token").stat()
            assert (token.st_uid, token.st_mode & 0o777) == (user, 0o600)


def test_a_temporary_folder_of_another_user_is_refused_before_ray_starts(npz: Path) -> None:
    with short_folder() as folder:
        (folder / "ray").mkdir(mode=0o755)
        process = start(USERS[0], folder / "home", npz, RAY_TMPDIR=str(folder))
        folder.chmod(0o755)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 2
        assert f"Ray cannot write to its temporary folder {folder}/ray; another user may have made it; " in output
        assert "Traceback" not in output
        assert not (folder / "home" / "runs").exists(), "no run takes the name"
