"""Jobs on a real Ray head that requires a token, and on this machine. Run: pytest -m ray"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infogan_ray.distributed.submission.backend import FINAL_STATES
from infogan_ray.distributed.submission.local import LocalJobs
from infogan_ray.distributed.submission.work import Work
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import Head, head_on_loopback, short_folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

TINY = [
    "--codes", "noise=4 cat=3 uniform=1", "--batch-size", "16", "--network.width", "8", "--evaluation.samples", "200",
    "--device", "cpu", "--precision", "fp32", "--threads", "1",
]  # fmt: skip
LONG = ["--steps", "100000", "--checkpoint-every", "50000"]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with short_folder() as folder, head_on_loopback(folder) as head:
        yield head


def until(condition: Callable[[], bool], within: float = 150) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.5)


@pytest.mark.slow
def test_requests_without_a_valid_token_are_refused(head: Head) -> None:
    command = json.dumps({"entrypoint": "touch /tmp/was-here"}).encode()
    for header, code in (({}, 401), ({"Authorization": "Bearer wrong"}, 403)):
        for method, path in (("POST", "/api/jobs/"), ("GET", "/api/jobs/"), ("PUT", "/api/packages/gcs/x.zip")):
            data = None if method == "GET" else command
            request = urllib.request.Request(head.url + path, data, header, method=method)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == code, (method, path)


@pytest.mark.slow
def test_a_driver_without_a_valid_token_reports_the_cause(head: Head, tmp_path: Path) -> None:
    """Ray itself only reports that it failed. It sends no token unless RAY_AUTH_MODE is set."""
    address = f"127.0.0.1:{head.gcs}"
    nowhere = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    (tmp_path / "token").write_text("a" * 64)
    unexpanded = {"RAY_AUTH_TOKEN_PATH": "~/token", "HOME": str(tmp_path)}  # Ray does not expand ~
    for more, message in {
        (): f"RAY_ADDRESS is '{address}', but no Ray cluster there accepts the connection; if it needs a token, export",
        (("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "a" * 64)): f"RAY_ADDRESS is '{address}', but its cluster "
        "refused the token; set the right one by",
        (("RAY_AUTH_MODE", "token"), *nowhere.items()): f"RAY_AUTH_TOKEN_PATH is '{tmp_path}/none', which cannot be",
        (("RAY_AUTH_MODE", "token"), *unexpanded.items()): "RAY_AUTH_MODE is 'token': ",
    }.items():
        known = dataclasses.replace(head, environment=head.environment | {"RAY_ADDRESS": address} | dict(more))
        for command in (["train"], ["search", "tuning/quick.py"])[: 1 if more else 2]:
            answer = known.infogan(*command, "--storage", str(tmp_path / "runs"))
            assert answer.returncode == 2 and answer.stderr.startswith(f"infogan: {message}"), answer.stderr
            assert answer.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_driver_outside_the_cluster_is_told(tmp_path: Path) -> None:
    """Ray ends such a process in native code, because the sockets of a node are not on its machine."""
    with short_folder() as folder, head_on_loopback(folder) as head:
        [sockets] = folder.glob("ray/session_2*/sockets")
        sockets.rename(folder / "elsewhere")
        address = {"RAY_ADDRESS": f"127.0.0.1:{head.gcs}", "RAY_AUTH_MODE": "token"}
        outside = dataclasses.replace(head, environment=head.environment | address)
        answer = outside.infogan("train", "--storage", str(tmp_path / "runs"))
    assert answer.returncode != 0 and "no Ray node runs on this machine; run the" in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_job_is_stopped_with_a_checkpoint_continued_and_followed(head: Head, npz: Path, tmp_path: Path) -> None:
    train = ["train", "--data", str(npz), *TINY, "--storage", str(tmp_path), "--name", "stopped"]
    run = RunDirectory(open_storage(str(tmp_path)) / "stopped")
    submitted = head.infogan("submit", "--", *train, *LONG)
    assert submitted.returncode == 0, submitted.stderr
    id = submitted.stdout.strip()
    until(lambda: run.get_status().get("step", 0) > 20)
    stopped = head.infogan("jobs", "stop", id)
    assert stopped.stdout == f"{id} stopped\n" and "-- train" in stopped.stderr and "--resume" in stopped.stderr
    status = run.get_status()
    assert status["state"] == "interrupted"
    assert checkpoints.choose(run.checkpoints, "last", "step", lower_is_better=False).step == status["step"]
    again = head.infogan("submit", "--follow", "--", *train, "--steps", str(status["step"] + 5), "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumed from step {status['step']}" in again.stdout.replace(",", "") and "succeeded" in again.stderr
    assert f"report: {run.folder}/report.html" in again.stdout
    assert f"finished at step {status['step'] + 5:,}" in run.folder.read(run.REPORT).decode()
    listed = head.infogan("jobs", "--json")
    assert sorted(job["state"] for job in json.loads(listed.stdout)["jobs"]) == ["stopped", "succeeded"]
    for answer in (submitted, stopped, again, listed):
        assert head.token not in answer.stdout + answer.stderr


@pytest.mark.slow
def test_the_printed_command_continues_a_job_whose_head_died(npz: Path, tmp_path: Path) -> None:
    steps = 1200
    run = RunDirectory(open_storage(str(tmp_path)) / "headless")
    train = ["train", "--data", str(npz), *TINY, "--steps", str(steps), "--checkpoint-every", "50"]
    with short_folder() as folder, head_on_loopback(folder) as first:
        words = ["--env", "A=b c", "--", *train, "--storage", str(tmp_path), "--name", "headless"]
        submitted = first.infogan("submit", *words)
        assert len(submitted.stderr.splitlines()) == 2, "Ray's own messages are not shown"
        until(lambda: run.get_status().get("stored", 0) >= 100)
    stored = run.get_status()["stored"]
    assert run.get_status()["state"] == "running" and stored < steps, "no process was left to record the end"
    printed = submitted.stderr.partition("if the cluster is lost, continue with: ")[2].splitlines()[0]
    assert shlex.split(printed) == ["infogan", "submit", *words, "--resume"]
    with short_folder() as folder, head_on_loopback(folder) as second:
        again = second.infogan("submit", "--follow", *shlex.split(printed)[2:])
    assert again.returncode == 0, again.stdout + again.stderr
    [resumed] = [line for line in again.stdout.splitlines() if "resumed from step" in line]
    assert int(re.search(r"from step ([\d,]+)", resumed)[1].replace(",", "")) >= stored  # type: ignore[index]
    assert run.get_status()["state"] == "finished" and run.get_status()["step"] == steps
    assert [row["step"] for row in run.read_metrics()] == list(range(10, steps + 1, 10)), "every step once"


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_are_refused_at_once(head: Head, npz: Path, tmp_path: Path) -> None:
    train = ["train", "--data", str(npz), *TINY, "--steps", "6", "--storage", str(tmp_path), "--name", "large"]
    answer = head.infogan("submit", "--follow", "--", *train, "--workers", "4")
    assert answer.returncode == 2, answer.stdout
    assert "workers is 4, more than the 2 available CPUs; use 1 to 2; --wait SECONDS" in answer.stdout
    assert not (tmp_path / "large").exists()
    answer = head.infogan("jobs", "status", "nothing")
    assert answer.returncode == 2 and "there is no job 'nothing' at" in answer.stderr


@pytest.mark.slow
def test_a_local_job_is_stopped_with_a_checkpoint(npz: Path, tmp_path: Path) -> None:
    jobs = LocalJobs(folder=tmp_path / "jobs")
    run = RunDirectory(open_storage(str(tmp_path)) / "local")
    words = ("train", "--data", str(npz), *TINY, *LONG, "--storage", str(tmp_path), "--name", "local")
    id = jobs.submit(Work("local", words))
    until(lambda: run.get_status().get("step", 0) > 20)
    jobs.stop(id)
    until(lambda: jobs.job(id).state in FINAL_STATES, within=60)
    assert (jobs.job(id).state, jobs.job(id).exit_code) == ("stopped", 130), "".join(jobs.logs(id, follow=False))
    assert checkpoints.choose(run.checkpoints, "last", "step", lower_is_better=False).step == run.get_status()["step"]
