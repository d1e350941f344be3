"""What a Ray on this machine needs from its surroundings. Run: pytest tests/distributed/test_local_ray.py"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infogan_ray.cli.main import main
from infogan_ray.distributed.cluster import local_ray
from infogan_ray.distributed.cluster.doctor import shared_memory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import short_folder
from tests.conftest import small_disk


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that the variable is restored
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_a_temporary_folder_must_have_a_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    most = local_ray.PATH_BYTES - len(local_ray.SOCKET)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "a" * (most - 5))
    monkeypatch.setenv("TMPDIR", "/" + "a" * 200)
    local_ray.check_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/" + "a" * (most - 2) + "é")  # two bytes
    with pytest.raises(ValueError, match=f"RAY_TMPDIR is .* which has {most + 1} bytes; .* leave room for {most}"):
        local_ray.check_temporary_folder()


def test_a_temporary_folder_must_be_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        local_ray.check_temporary_folder()
        (folder / "ray").touch()
        with pytest.raises(ValueError, match=f"Ray cannot write to its temporary folder {folder}/ray; .* RAY_TMPDIR="):
            local_ray.check_temporary_folder()


def test_without_a_home_ray_gets_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    local_ray.create_token()
    assert (tmp_path / ".ray" / "auth_token").exists()
    assert local_ray.home_problem() is None and "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/dev/null/home")
    assert local_ray.home_problem() == "HOME is /dev/null/home, which is not a folder"
    local_ray.create_token()
    token = os.environ["RAY_AUTH_TOKEN"]
    local_ray.create_token()
    assert len(token) == 64 and os.environ["RAY_AUTH_TOKEN"] == token, "a token that is set stays"


def test_a_new_token_is_readable_by_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path, before = tmp_path / ".ray" / "auth_token", os.umask(0o022)
    try:
        local_ray.create_token()
    finally:
        os.umask(before)
    token = path.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token) and stat.S_IMODE(path.stat().st_mode) == 0o600
    local_ray.create_token()
    assert path.read_text() == token, "a token is kept"
    path.unlink()
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}.items():
        monkeypatch.setenv(name, value)
        local_ray.create_token()
        monkeypatch.delenv(name)
    assert not path.exists()


def test_an_argument_that_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    local_ray.check_command_line()
    monkeypatch.setattr(sys, "orig_argv", ["infogan", "train", "--data", os.fsdecode(b"caf\xe9")])
    with pytest.raises(ValueError, match="is not UTF-8.* symbolic link"):
        local_ray.check_command_line()


def test_doctor_examines_the_surroundings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def findings() -> dict[str, str]:
        main(["doctor", "--json"])
        found = json.loads(capsys.readouterr().out)["findings"]
        names = ("temporary folder", "home folder", "current folder")
        return {finding["what"]: finding["mark"] for finding in found if finding["what"] in names}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert findings() == {"temporary folder": "ok", "home folder": "ok", "current folder": "ok"}
    (tmp_path / "infogan_ray").mkdir()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 90)
    monkeypatch.setenv("HOME", "/dev/null/home")
    assert findings() == {"temporary folder": "bad", "home folder": "note", "current folder": "note"}


@pytest.mark.parametrize(("size", "mark"), [("64m", "note"), ("2g", "ok")])
def test_doctor_reports_small_shared_memory(size: str, mark: str, tmp_path: Path) -> None:
    """64 MB is Docker's default."""
    with small_disk(tmp_path / "shm", f"size={size}") as folder:
        found = shared_memory(folder)
    assert found.mark == mark and ("--shm-size=2g" in found.finding) == (mark == "note")
    assert shared_memory(tmp_path / "none").finding.startswith("there is no ")


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_two_workers_need_no_home_and_import_nothing_from_the_current_folder(npz: Path, tmp_path: Path) -> None:
    for name in ("infogan_ray/__init__.py", "json.py"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("raise ImportError('a file of the user')")
    program = "from infogan_ray.cli.main import main; raise SystemExit(main())"
    given = ["train", "--data", str(npz), "--codes", "noise=4 cat=3 uniform=1", "--batch-size", "16", "--steps", "4"]
    given += [
        "--network.width",
        "8",
        "--evaluation.samples",
        "200",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *given, "--name", "two", "--storage", "runs", "--json"],
        cwd=tmp_path / "here", env={**os.environ, "HOME": "/dev/null/home"}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    assert RunDirectory(open_storage(tmp_path / "here" / "runs" / "two")).get_status()["restarts"] == 0
