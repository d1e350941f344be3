"""What is sent to a cluster and what is refused before; manifests; jobs of this machine. No Ray is started."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml

from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.cli.submit import Submit, prepare
from infogan_ray.distributed.cluster.doctor import examine_door
from infogan_ray.distributed.submission.dashboard import Dashboard, compare
from infogan_ray.distributed.submission.kuberay import Fields, KubeRay, default_manifest, render, resource_name
from infogan_ray.distributed.submission.local import WATCHER, LocalJobs
from infogan_ray.distributed.submission.submitter import OVER, Job, SubmissionFailed
from infogan_ray.distributed.submission.work import LIMIT, Work, stage

RECIPE = Path(__file__).parents[2] / "tuning" / "quick.py"
GOLDEN = Path(__file__).parents[1] / "golden" / "rayjob.yaml"
REMOTE = "http://127.0.0.1:1"
TRAIN = ["train", "--preset", "mnist", "--steps", "300", "--storage", "s3://bucket/runs"]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


# What is sent ---------------------------------------------------------------------------------------------------------


def test_the_code_is_sent_and_neither_data_nor_secrets_nor_environments(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for name in (
        "priors.py", "sub/more.py", "package/data/__init__.py", ".git/config", "data/big.bin", "here/pyvenv.cfg",
        "here/bin/python", ".env", "key.pem", "model.safetensors", "node_modules/x.js", "runs/first/config.json",
    ):  # fmt: skip
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("x")
    (mine / "link.py").symlink_to("/etc/passwd")
    target = tmp_path / "sent"
    sizes = stage(Work("first", ("train",), (RECIPE,), mine), target)
    sent = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert sent == {name for name, _ in sizes}
    own = {name for name in sent if not name.startswith("infogan_ray/")}
    assert own == {"priors.py", "sub/more.py", "package/data/__init__.py", "files/quick.py"}
    assert {"infogan_ray/data/fetch.py", "infogan_ray/__main__.py", "infogan_ray/distributed/train/trainer.py"} <= sent
    assert not any("__pycache__" in name for name in sent)


def test_too_much_names_the_largest(tmp_path: Path) -> None:
    with (tmp_path / "images.bin").open("wb") as file:
        file.truncate(LIMIT)
    with pytest.raises(ValueError, match=r"2[01]\.\d MB would be sent, and 20 MB may be.*images\.bin \(20\.0 MB\)"):
        stage(Work("first", ("train",), folder=tmp_path), tmp_path / "sent")
    assert not (tmp_path / "sent").exists()


def test_the_name_is_pinned_and_files_are_sent_along() -> None:
    work = prepare(TRAIN, Submit(), remote=True)
    assert work.name.startswith("mnist-2") and work.arguments == (*TRAIN, "--name", work.name)
    work = prepare(["search", str(RECIPE), "--storage", "/nfs/runs"], Submit(), remote=True)
    assert work.arguments[:2] == ("search", "files/quick.py") and work.files == (RECIPE,)
    assert work.name.startswith("quick-2") and work.command.startswith(f"infogan search {RECIPE} ")
    assert prepare(["search", str(RECIPE)], Submit(), remote=False).arguments[1] == str(RECIPE)


def test_a_file_of_attributes_beside_the_laptop_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list_attr_celeba.txt").write_text("0\nSmiling\n")
    words = ["train", "--data", "/shared/celeba", "--storage", "/shared/runs", "--labels"]
    prepare([*words, "/shared/list_attr_celeba.txt:Smiling"], Submit(), remote=True)
    with pytest.raises(ValueError, match="labels is 'list_attr_celeba.txt', a path of this machine"):
        prepare([*words, "list_attr_celeba.txt:Smiling"], Submit(), remote=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "sample"], "what to run is 'sample'; valid are train and search"),
        (["--"], "what to run is nothing"),
        ([], "what to run is not given; write it behind '--'"),
        (["--cluster", REMOTE, "--", "train", "--preset", "mnist"], "storage is 'runs', a folder of this machine"),
        (
            [
                "--cluster",
                REMOTE,
                "--",
                "train",
                "--preset",
                "mnist",
                "--storage",
                "s3://b/x",
                "--mlflow",
                "sqlite:///m",
            ],
            "mlflow is 'sqlite:///m', a file of this machine",
        ),
        (["--cluster", REMOTE, "--", *TRAIN, "--data", "tests"], "data is 'tests', a path of this machine"),
        (["--", *TRAIN, "--presett", "x"], "--presett"),
        (["--", *TRAIN, "--name", "../x"], "name is '../x'"),
        (["--", *TRAIN, "--dry-run"], "--dry-run stands behind '--'"),
        (["--env", "AWS_SECRET_ACCESS_KEY=x", "--", *TRAIN], "env names 'AWS_SECRET_ACCESS_KEY'"),
        (["--env", "REGION", "--", *TRAIN], "env is 'REGION'; write NAME=VALUE"),
        (["--cluster", "ftp://x", "--", *TRAIN], "cluster is 'ftp://x'; valid are http://HOST:8265"),
        (["--cluster", "http://me:secret@host", "--", *TRAIN], "a token goes into the environment"),
        (["--cluster", "kuberay", "--manifest", "none.yaml", "--", *TRAIN], "manifest is none.yaml, which cannot"),
        (["--cluster", "kuberay", "--manifest", "pyproject.toml", "--", *TRAIN], "manifest is not a RayJob"),
    ],
)
def test_what_a_cluster_could_only_refuse_is_refused_here(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *words]) == USAGE
    error = capsys.readouterr().err
    assert said in error and "secret@" not in error and error.count("\n") == 1


def test_dry_run_shows_what_would_be_sent_and_asks_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--cluster", REMOTE, "--dry-run", "--env", "A=b", "--", *TRAIN, "--name", "first"]) == DONE
    out = capsys.readouterr().out
    assert f"exec python -m infogan_ray {' '.join(TRAIN)} --name first" in out and "A=b" in out
    assert re.search(r"\d+ files, [01]\.\d+ MB", out)


# The door -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def head(token: str | None, python: str = "3.11.7", moved_to: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """What a Ray head's door answers, and the tokens that it was shown."""
    shown: list[str | None] = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            shown.append(given)
            if moved_to:
                self.send_response(302)
                self.send_header("Location", moved_to)
                self.end_headers()
                return
            closed = token is not None and given != f"Bearer {token}"
            self.send_response(200 if not closed else 403 if given else 401)
            self.end_headers()
            if not closed:
                about = {"ray_version": "2.60.0", "data": {"pythonVersion": python}}
                self.wfile.write(json.dumps(about).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", shown
    finally:
        server.shutdown()
        server.server_close()


def test_the_token_is_found_as_ray_finds_it_and_its_lack_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with head("right") as (url, _):
        with pytest.raises(SubmissionFailed, match="wants a token, and there is none here; set RAY_AUTH_TOKEN_PATH"):
            Dashboard(url).versions()
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(SubmissionFailed, match="does not take the token that is set here"):
            Dashboard(url).versions()
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(ValueError, match=r"RAY_AUTH_TOKEN_PATH is '.*none', which cannot be read"):
            Dashboard(url).versions()
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        (tmp_path / "home" / ".ray").mkdir(parents=True)
        (tmp_path / "home" / ".ray" / "auth_token").write_text("right\n")
        assert Dashboard(url).versions() == {"ray": "2.60.0", "python": "3.11.7"}


def test_a_token_is_not_carried_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with head(None) as (elsewhere, shown), head(None, moved_to=f"{elsewhere}/api/version") as (url, _):
        with pytest.raises(SubmissionFailed, match="no Ray head"):
            Dashboard(url).versions()
        assert shown == []


def test_doctor_says_whether_a_door_stands_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with head(None) as (url, _):
        found = {finding.what: finding for finding in examine_door(url)}
        assert found["door"].mark == "bad" and "can run any command as Ray's user" in found["door"].finding
        assert main(["doctor", "--cluster", url]) == FAILED
    with head("right") as (url, _):
        assert main(["doctor", "--cluster", url]) == DONE
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        found = {finding.what: finding.mark for finding in examine_door(url)}
        assert found == {"door": "ok", "versions": "ok"}
    with pytest.raises(SubmissionFailed, match="nothing answers at http://127.0.0.1:1 "):
        examine_door(REMOTE)


def test_versions_that_cannot_run_the_code_are_refused_and_others_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SubmissionFailed, match=r"runs Ray 2\.44\.1, and this code is made for 2\.60"):
        compare({"ray": "2.44.1", "python": "3.11.7"})
    with pytest.raises(SubmissionFailed, match=r"Python 3\.9\.1, and this code needs 3\.11"):
        compare({"ray": "2.60.0", "python": "3.9.1"})
    assert compare({"ray": "2.60.0", "python": "3.11.2"}) == []
    with head(None, python="3.13.0") as (url, _):
        assert main(["submit", "--cluster", url, "--", *TRAIN]) == FAILED, "it takes no jobs"
    assert "the cluster runs Python 3.13.0, this machine" in capsys.readouterr().err


# Kubernetes -----------------------------------------------------------------------------------------------------------


def rendered(work: Work, fields: Fields) -> list[dict]:
    return list(yaml.safe_load_all(render(work, default_manifest().read_text(), fields)))


def test_the_rayjob_is_as_it_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wanted change: infogan submit --cluster kuberay --dry-run …, look at it, and keep it here."""
    monkeypatch.chdir(RECIPE.parent.parent)
    work = prepare(
        ["search", "tuning/quick.py", "--storage", "s3://bucket/runs", "--name", "Night_1", "--resume"],
        Submit(env=("AWS_REGION=eu-north-1",)), remote=True,
    )  # fmt: skip
    fields = Fields(image="registry.example/infogan-ray:1", namespace="vision", replicas=3, gpus=False)
    assert render(work, default_manifest().read_text(), fields) == GOLDEN.read_text()


def test_rendered_jobs_fit_kuberays_schema(request: pytest.FixtureRequest) -> None:
    folder = request.config.getoption("--kuberay-schemas")
    if not folder:
        pytest.skip("needs --kuberay-schemas DIR")
    schema = json.loads((Path(folder) / "RayJob.json").read_text())
    for words in (TRAIN, ["search", str(RECIPE), "--storage", "s3://bucket/runs"]):
        job = rendered(prepare(words, Submit(), remote=True), Fields(image="x", replicas=2))[-1]
        jsonschema.Draft202012Validator(schema).validate(job)


def test_fields_are_filled_and_a_retry_goes_on() -> None:
    work = Work("first", ("train", "--workers", "1:4", "--name", "first", "--resume"))
    [job] = rendered(work, Fields(replicas=4, least=1, gpus=False))
    assert job["spec"]["entrypoint"] == "infogan train --workers 1:4 --name first --start-or-resume"
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4)
    assert "nvidia.com/gpu" not in yaml.safe_dump(job) and "nvidia.com/gpu" in default_manifest().read_text()


@pytest.mark.parametrize("name", ["first", "Night_1", "night-1", "1st", "a.b", "x" * 80, "x" * 79 + "y", "_"])
def test_names_of_resources_are_valid_and_apart(name: str) -> None:
    made = resource_name(name)
    assert len(made) <= 47 and made[0].isalpha() and made.replace("-", "").isalnum() and made == made.lower()
    assert (made == name) == (name in ("first", "night-1"))
    others = {"first", "Night_1", "night_1", "x" * 80, "x" * 79 + "y"} - {name}
    assert made not in {resource_name(other) for other in others}


KUBECTL = """#!/bin/sh
# Stands in for kubectl, since there is no Kubernetes here: keeps what it was asked, answers with a running RayJob.
echo "$@" >> "$ASKED"
case "$*" in
  *"apply -f -"*) cat >> "$ASKED"; echo "rayjob.ray.io/first created" ;;
  *"get rayjobs"*) echo "{\\"items\\": [$JOB]}" ;;
  *"get rayjob first"*) echo "$JOB" ;;
  *"get rayjob"*) echo 'Error from server (NotFound): rayjobs.ray.io not found' >&2; exit 1 ;;
  *"get pods"*) echo '{"items": [{"metadata": {"name": "first-head"}}]}' ;;
  *"ray job logs"*) echo "step 10" ;;
esac
"""


def test_kubectl_is_asked_for_the_right_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    status = {"jobId": "first-abc", "rayClusterName": "first-xyz", "jobStatus": "RUNNING"}
    about = {"metadata": {"name": "first"}, "spec": {"entrypoint": "infogan train"}, "status": status}
    asked = tmp_path / "asked"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ASKED", str(asked))
    monkeypatch.setenv("JOB", json.dumps(about))
    kubernetes = KubeRay(fields=Fields(namespace="vision"))
    assert kubernetes.submit(Work("first", ("train", "--name", "first"))) == "first"
    assert "kind: RayJob" in asked.read_text()
    assert [job.state for job in kubernetes.jobs()] == ["running"]
    assert "".join(kubernetes.logs("first", follow=True)) == "step 10\n"
    kubernetes.stop("first")
    lines = asked.read_text().splitlines()
    assert "--namespace vision exec first-head -c ray-head -- ray job logs --follow first-abc" in lines
    assert lines[-1] == "--namespace vision exec first-head -c ray-head -- ray job stop first-abc"
    with pytest.raises(ValueError, match="job 'second' is not known"):
        kubernetes.job("second")


# This machine ---------------------------------------------------------------------------------------------------------


def ended(jobs: LocalJobs, id: str, within: float = 60.0) -> Job:
    deadline = time.monotonic() + within
    while (job := jobs.job(id)).state not in OVER and time.monotonic() < deadline:
        time.sleep(0.1)
    return job


def test_a_local_job_is_known_by_its_log_and_its_end(tmp_path: Path) -> None:
    jobs = LocalJobs(tmp_path)
    right, wrong = (jobs.submit(Work("a", words)) for words in (("--version",), ("nothing",)))
    assert ended(jobs, right).state == "succeeded" and "".join(jobs.logs(right, follow=True)) == "infogan-ray 0.1.0\n"
    assert (ended(jobs, wrong).state, jobs.job(wrong).exit_code) == ("failed", USAGE)
    assert {job.id for job in jobs.jobs()} == {right, wrong}
    with pytest.raises(ValueError, match="job '../x' is not known"):
        jobs.job("../x")


def test_a_local_job_whose_watcher_is_killed_is_not_running(tmp_path: Path) -> None:
    jobs = LocalJobs(tmp_path)
    id = jobs.submit(Work("a", ("--version",)))
    os.killpg(json.loads((tmp_path / id / WATCHER).read_text())["pid"], signal.SIGKILL)
    assert (ended(jobs, id).state, jobs.job(id).message) == ("failed", "its process is gone without a word")
    jobs.stop(id)  # touches nobody
