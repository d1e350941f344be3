"""Uploads to a cluster, refused submissions, manifests and local jobs. Ray is not started."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import platform
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import jsonschema
import pytest
import yaml

from infogan_ray import UserError
from infogan_ray.cli.exit_codes import DONE, FAILED, USAGE
from infogan_ray.cli.main import main
from infogan_ray.cli.submit import Submit, work_of
from infogan_ray.distributed.cluster.doctor import findings_of_the_network
from infogan_ray.distributed.submission import registry
from infogan_ray.distributed.submission.backend import FINAL_STATES, Backend, Job, NoFlags, SubmissionFailed
from infogan_ray.distributed.submission.dashboard import Dashboard, compare_versions, examine
from infogan_ray.distributed.submission.kuberay import KubeRay, SubmitFlags, default_manifest, render, resource_name
from infogan_ray.distributed.submission.local import WATCHER, LocalJobs
from infogan_ray.distributed.submission.slurm import Slurm, default_script
from infogan_ray.distributed.submission.work import LIMIT, Work, stage
from tests.servers import RecordingProxy, http_server

RECIPE = Path(__file__).parents[2] / "tuning" / "quick.py"
GOLDEN = Path(__file__).parents[1] / "golden" / "rayjob.yaml"
REMOTE = "http://127.0.0.1:1"
TRAIN = ["train", "--preset", "mnist", "--steps", "300", "--storage", "s3://bucket/runs"]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


# Uploads --------------------------------------------------------------------------------------------------------------


def test_code_is_sent_without_data_secrets_and_virtual_environments(tmp_path: Path) -> None:
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


def test_an_upload_above_the_limit_names_the_largest_files(tmp_path: Path) -> None:
    with (tmp_path / "images.bin").open("wb") as file:
        file.truncate(LIMIT)
    with pytest.raises(ValueError, match=r"2[01]\.\d MB would be sent; the limit is 20.0 MB.*images\.bin \(20\.0 MB\)"):
        stage(Work("first", ("train",), folder=tmp_path), tmp_path / "sent")
    assert not (tmp_path / "sent").exists()


def test_the_run_name_is_fixed_and_recipe_files_are_sent() -> None:
    work = work_of(TRAIN, Submit(), remote=True)
    assert work.name.startswith("mnist-2") and work.arguments == (*TRAIN, "--name", work.name)
    work = work_of(["search", str(RECIPE), "--storage", "/nfs/runs"], Submit(), remote=True)
    assert work.arguments[:2] == ("search", "files/quick.py") and work.files == (RECIPE,)
    assert work.name.startswith("quick-2") and work.command.startswith(f"infogan search {RECIPE} ")
    assert work_of(["search", str(RECIPE)], Submit(), remote=False).arguments[1] == str(RECIPE)


def test_a_labels_file_of_this_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list_attr_celeba.txt").write_text("0\nSmiling\n")
    words = ["train", "--data", "/shared/celeba", "--storage", "/shared/runs", "--labels"]
    work_of([*words, "/shared/list_attr_celeba.txt:Smiling"], Submit(), remote=True)
    with pytest.raises(ValueError, match="labels is 'list_attr_celeba.txt', a path of this machine"):
        work_of([*words, "list_attr_celeba.txt:Smiling"], Submit(), remote=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "sample"], "the command is 'sample'; valid are train and search"),
        (["--"], "the command is nothing"),
        ([], "the command is not given; write it after '--'"),
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
        (["--", *TRAIN, "--dry-run"], "--dry-run comes after '--'"),
        (["--env", "AWS_SECRET_ACCESS_KEY=x", "--", *TRAIN], "env contains 'AWS_SECRET_ACCESS_KEY'"),
        (["--env", "REGION", "--", *TRAIN], "env is 'REGION'; write NAME=VALUE"),
        (["--cluster", "ftp://x", "--", *TRAIN], "cluster is 'ftp://x'; valid are http://HOST:8265"),
        (["--cluster", "http://me:secret@host", "--", *TRAIN], "set a token in the environment"),
        (
            ["--cluster", "http://me:secret@host:x", "--", *TRAIN],
            "cluster is 'host:x'; give a Ray head's http://HOST:8265",
        ),
        (["--cluster", "kuberey", "--", *TRAIN], "cluster is 'kuberey' (did you mean 'kuberay'?); valid are http"),
        (["--image", "x", "--", *TRAIN], "--image needs --cluster kuberay, but the cluster is 'local'"),
        (["--cluster", "kuberay", "--manifest", "none.yaml", "--", *TRAIN], "manifest is none.yaml, which cannot"),
        (["--cluster", "kuberay", "--manifest", "pyproject.toml", "--", *TRAIN], "manifest is not a RayJob"),
    ],
)
def test_bad_submissions_are_refused_before_sending(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *words]) == USAGE
    error = capsys.readouterr().err
    assert message in error and "secret@" not in error and error.count("\n") == 1


def test_dry_run_shows_the_upload_and_contacts_no_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--cluster", REMOTE, "--dry-run", "--env", "A=b", "--", *TRAIN, "--name", "first"]) == DONE
    out = capsys.readouterr().out
    assert f"exec python -m infogan_ray {' '.join(TRAIN)} --name first" in out and "A=b" in out
    assert re.search(r"\d+ files, [\d.]+ [kM]B; largest files", out)


# A cluster's dashboard ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def head(
    token: str | None, python: str = platform.python_version(), moved_to: str = ""
) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers like a Ray head's dashboard. Yields its URL and the tokens that it received."""
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
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
                if self.path == "/api/jobs/first":
                    about = {"type": "SUBMISSION", "submission_id": "first", "status": "FAILED", "entrypoint": "x"}
                self.wfile.write(json.dumps(about).encode())

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Handler) as url:
        yield url, shown


def test_the_token_is_found_like_ray_and_a_missing_one_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with head("right") as (url, _):
        with pytest.raises(SubmissionFailed, match="needs a token, and none is set; set RAY_AUTH_TOKEN_PATH"):
            Dashboard(url).versions()
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(SubmissionFailed, match="refuses the token"):
            Dashboard(url).versions()
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(ValueError, match=r"RAY_AUTH_TOKEN_PATH is '.*none', which cannot be read"):
            Dashboard(url).versions()
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        (tmp_path / "home" / ".ray").mkdir(parents=True)
        (tmp_path / "home" / ".ray" / "auth_token").write_text("right\n")
        assert Dashboard(url).versions() == {"ray": "2.60.0", "python": platform.python_version()}


def test_a_redirect_does_not_send_the_token_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with head(None) as (elsewhere, shown), head(None, moved_to=f"{elsewhere}/api/version") as (url, _):
        with pytest.raises(SubmissionFailed, match="not a Ray head"):
            Dashboard(url).versions()
        assert shown == []


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_the_token_reaches_the_named_host_and_no_proxy_or_other_head(
    variable: str, recording_proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Ray's client prefers an address of the environment, and its HTTP library a password of ~/.netrc."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with head("right") as (url, shown), head(None) as (elsewhere, shown_elsewhere):
        monkeypatch.setenv(variable, elsewhere)
        assert main(["jobs", "status", "first", "--cluster", url]) == DONE
        assert len(shown) >= 4 and set(shown) == {"Bearer right"}
        assert os.environ[variable] == elsewhere and os.environ["NETRC"] == str(tmp_path / "netrc")
    assert (recording_proxy.requests, shown_elsewhere) == ([], [])
    assert "proxy" not in capsys.readouterr().err


def test_a_proxy_in_between_is_reported_and_does_not_see_the_token(
    recording_proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert main(["jobs", "--cluster", "http://head.invalid:8265"]) == FAILED
    clear, failure = capsys.readouterr().err.splitlines()
    assert clear == "infogan: the token goes to head.invalid in clear, over http; use https or a tunnel"
    assert "head.invalid is reached directly: over http the proxy 127.0.0.1" in failure and "password" not in failure
    assert main(["jobs", "--cluster", "https://secure.invalid"]) == FAILED
    [failure] = capsys.readouterr().err.splitlines()
    assert "secure.invalid is reached through the proxy 127.0.0.1" in failure and "password" not in failure
    [received] = recording_proxy.requests
    assert received.startswith("CONNECT secure.invalid:443 ") and "right" not in received
    monkeypatch.setenv("no_proxy", ".invalid")
    assert main(["jobs", "--cluster", "https://secure.invalid"]) == FAILED
    assert "proxy" not in capsys.readouterr().err and len(recording_proxy.requests) == 1


def test_doctor_reports_a_proxy_and_a_token_that_others_can_read(
    recording_proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("right")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    right = {"access": "ok", "versions": "ok"}
    for mode, marks in ((0o644, right | {"token file": "bad"}), (0o600, right)):
        token.chmod(mode)
        with head("right") as (url, _):
            assert {finding.what: finding.mark for finding in examine(Dashboard(url))} == marks
    shown = f"http_proxy=127.0.0.1:{recording_proxy.port}"
    [proxies] = findings_of_the_network()
    assert proxies.mark == "note" and proxies.finding.startswith(shown) and "password" not in proxies.finding


def test_doctor_reports_whether_code_runs_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with head(None) as (url, _):
        found = {finding.what: finding for finding in examine(Dashboard(url))}
        assert found["access"].mark == "bad" and "can run any command as Ray's user" in found["access"].finding
        assert main(["doctor", "--cluster", url]) == FAILED
    with head("right") as (url, _):
        assert main(["doctor", "--cluster", url]) == DONE
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        found = {finding.what: finding.mark for finding in examine(Dashboard(url))}
        assert found == {"access": "ok", "versions": "ok"}
    with pytest.raises(SubmissionFailed, match="nothing answers at http://127.0.0.1:1 "):
        examine(Dashboard(REMOTE))


def test_incompatible_versions_are_refused_and_differences_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SubmissionFailed, match=r"runs Ray 2\.44\.1, but this code needs 2\.60"):
        compare_versions({"ray": "2.44.1", "python": "3.11.7"})
    with pytest.raises(SubmissionFailed, match=r"Python 3\.9\.1, but this code needs 3\.11"):
        compare_versions({"ray": "2.60.0", "python": "3.9.1"})
    same = {"ray": version("ray"), "python": platform.python_version()}
    assert compare_versions(same) == compare_versions(same | {"python": ""}) == []
    differences = compare_versions({"ray": "2.60.99", "python": "3.11.99"})
    assert [line.partition(",")[0] for line in differences] == [
        "the cluster runs Ray 2.60.99", "the cluster runs Python 3.11.99"
    ]  # fmt: skip
    with head(None, python="3.13.0") as (url, _):
        assert main(["submit", "--cluster", url, "--", *TRAIN]) == FAILED, "the server accepts no jobs"
    assert "the cluster runs Python 3.13.0, this machine" in capsys.readouterr().err


# Kubernetes -----------------------------------------------------------------------------------------------------------


def rendered(work: Work, flags: SubmitFlags) -> list[dict]:
    return list(yaml.safe_load_all(render(work, default_manifest().read_text(), flags)))


def test_the_rayjob_equals_the_golden_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """To update the file: run infogan submit --cluster kuberay --dry-run …, check the output and save it."""
    monkeypatch.chdir(RECIPE.parent.parent)
    work = work_of(
        ["search", "tuning/quick.py", "--storage", "s3://bucket/runs", "--name", "Night_1", "--resume"],
        Submit(env=("AWS_REGION=eu-north-1",)), remote=True,
    )  # fmt: skip
    flags = SubmitFlags(image="registry.example/infogan-ray:1", namespace="vision", replicas=3)
    assert render(dataclasses.replace(work, gpus=False), default_manifest().read_text(), flags) == GOLDEN.read_text()


def test_rendered_jobs_match_kuberays_schema(request: pytest.FixtureRequest) -> None:
    folder = request.config.getoption("--kuberay-schemas")
    if not folder:
        pytest.skip("needs --kuberay-schemas DIR")
    schema = json.loads((Path(folder) / "RayJob.json").read_text())
    for words in (TRAIN, ["search", str(RECIPE), "--storage", "s3://bucket/runs"]):
        job = rendered(work_of(words, Submit(), remote=True), SubmitFlags(image="x", replicas=2))[-1]
        jsonschema.Draft202012Validator(schema).validate(job)


def test_fields_are_filled_and_a_retry_resumes() -> None:
    words = [
        "train",
        "--preset",
        "mnist",
        "--workers",
        "1:4",
        "--device",
        "cpu",
        "--storage",
        "/runs",
        "--name",
        "first",
    ]
    work = work_of([*words, "--resume"], Submit(), remote=True)
    [job] = rendered(work, SubmitFlags())
    assert job["spec"]["entrypoint"] == " ".join(["infogan", *words, "--start-or-resume"])
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4)
    assert "nvidia.com/gpu" not in yaml.safe_dump(job) and "nvidia.com/gpu" in default_manifest().read_text()
    [job] = rendered(work, SubmitFlags(replicas=2))
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 2)


@pytest.mark.parametrize("name", ["first", "Night_1", "night-1", "1st", "a.b", "x" * 80, "x" * 79 + "y", "_"])
def test_resource_names_are_valid_and_unique(name: str) -> None:
    made = resource_name(name)
    assert len(made) <= 47 and made[0].isalpha() and made.replace("-", "").isalnum() and made == made.lower()
    assert (made == name) == (name in ("first", "night-1"))
    others = {"first", "Night_1", "night_1", "x" * 80, "x" * 79 + "y"} - {name}
    assert made not in {resource_name(other) for other in others}


KUBECTL = """#!/bin/sh
# A fake kubectl: records its arguments and input, and answers with a running RayJob.
echo "$@" >> "$CALLS"
case "$*" in
  *"apply -f -"*) cat >> "$CALLS"; echo "rayjob.ray.io/first created" ;;
  *"get rayjobs"*) echo "{\\"items\\": [$JOB]}" ;;
  *"get rayjob first"*) echo "$JOB" ;;
  *"get rayjob"*) echo 'Error from server (NotFound): rayjobs.ray.io not found' >&2; exit 1 ;;
  *"get pods"*) echo '{"items": [{"metadata": {"name": "first-head"}}]}' ;;
  *"ray job logs"*) echo "step 10" ;;
esac
"""


def test_kubectl_gets_the_right_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    status = {"jobId": "first-abc", "rayClusterName": "first-xyz", "jobStatus": "RUNNING"}
    about = {"metadata": {"name": "first"}, "spec": {"entrypoint": "infogan train"}, "status": status}
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("JOB", json.dumps(about))
    kubernetes = KubeRay("kuberay", SubmitFlags(namespace="vision"), print)
    assert kubernetes.submit(Work("first", ("train", "--name", "first"))) == "first"
    assert "kind: RayJob" in calls.read_text()
    assert [job.state for job in kubernetes.jobs()] == ["running"]
    assert "".join(kubernetes.logs("first", follow=True)) == "step 10\n"
    kubernetes.stop("first")
    lines = calls.read_text().splitlines()
    on_the_head = "--namespace vision exec first-head -c ray-head -- env no_proxy=* NO_PROXY=* ray job"
    assert f"{on_the_head} logs --follow first-abc" in lines
    assert lines[-1] == f"{on_the_head} stop first-abc"
    with pytest.raises(ValueError, match="there is no job 'second'"):
        kubernetes.job("second")


# Slurm ----------------------------------------------------------------------------------------------------------------

SHOWN_JOB = """\
JobId=12 JobName=first
   UserId=ada({user}) GroupId=ada(1000) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode={exit_code}
   SubmitTime=2026-11-30T13:49:46 EligibleTime=2026-11-30T13:49:46
   StartTime=2026-11-30T13:50:00 EndTime=2026-11-30T13:51:40 Deadline=N/A
   Command=/shared/slurm.sbatch train --name first
   Comment=infogan train --name first --labels "JobState=5 x"
   StdOut=/shared/my runs/infogan-12.log

"""
"""What Slurm 22.05 prints, without fields that are not read. ``tests/distributed/test_slurm.py`` runs a real one."""


@pytest.mark.parametrize(
    ("state", "exit_code", "reason", "restarts", "expected", "message"),
    [
        ("PENDING", "0:0", "Resources", "0", "pending", "Slurm: PENDING (Resources)"),
        ("RUNNING", "130:0", "None", "2", "running", "Slurm: RUNNING, queued again 2 times"),
        ("COMPLETED", "0:0", "None", "0", "succeeded", "Slurm: COMPLETED"),
        ("FAILED", "130:0", "NonZeroExitCode", "0", "stopped", "Slurm: FAILED (NonZeroExitCode)"),
        ("CANCELLED", "0:15", "None", "0", "stopped", "Slurm: CANCELLED"),
        ("FAILED", "2:0", "NonZeroExitCode", "0", "failed", "Slurm: FAILED (NonZeroExitCode)"),
        ("TIMEOUT", "0:1", "TimeLimit", "0", "failed", "Slurm: TIMEOUT (TimeLimit)"),
        ("OUT_OF_MEMORY", "0:125", "OutOfMemory", "0", "failed", "Slurm: OUT_OF_MEMORY (OutOfMemory)"),
    ],
)
def test_slurms_states_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, exit_code: str, reason: str, restarts: str,
    expected: str, message: str,
) -> None:  # fmt: skip
    fields = {"state": state, "exit_code": exit_code, "reason": reason, "restarts": restarts}
    other_user = SHOWN_JOB.format(**fields, user=os.geteuid() + 1)
    own = SHOWN_JOB.format(**fields, user=os.geteuid())
    (tmp_path / "shown").write_text(other_user + own + own.replace("Comment=infogan", "Comment=make"))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\ncat {tmp_path}/shown\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    [job] = Slurm("slurm", NoFlags(), print).jobs()
    assert (job.id, job.state, job.command) == ("12", expected, 'infogan train --name first --labels "JobState=5 x"')
    assert job.message == f"{message}; output: /shared/my runs/infogan-12.log"
    started, took = datetime(2026, 11, 30, 13, 50).timestamp(), 100
    assert job.started == (None if expected == "pending" else started)
    assert job.ended == (started + took if expected in FINAL_STATES else None)
    assert job.exit_code == (int(exit_code.split(":")[0]) if expected in FINAL_STATES else None)


def test_slurms_plan_names_the_script_and_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["submit", "--cluster", "slurm"]
    words = ["train", "--preset", "mnist", "--name", "first", "--resume"]
    assert main([*place, "--nodes", "3", "--dry-run", "--", *words, "--device", "cpu"]) == DONE
    sent = shlex.split(capsys.readouterr().out)
    command = f"infogan {' '.join(words)} --device cpu"
    flags = ["--parsable", "--job-name=first", f"--comment={command}", "--nodes=3", "--gpus-per-node=0"]
    again = [word for word in words if word != "--resume"]
    assert sent == ["sbatch", *flags, str(default_script()), *again, "--device", "cpu", "--start-or-resume"]
    monkeypatch.setenv("PATH", str(tmp_path))
    for flags, code, reason in [
        (["--script", "none.sh"], USAGE, "script is none.sh, which is not a file"),
        (["--nodes", "0"], USAGE, "nodes is 0; it must be at least 1"),
        (["--working-dir", "tests"], USAGE, "working_dir is tests, but nothing is sent to slurm"),
        ([], FAILED, "sbatch is not installed"),
    ]:
        assert main([*place, *flags, "--", *words]) == code
        assert capsys.readouterr().err.startswith(f"infogan: {reason}")


# A new backend --------------------------------------------------------------------------------------------------------


@dataclass
class QueueFlags:
    partition: str = "main"
    """Of the queue."""


class Queue(Backend):
    """An example backend. A new backend needs a class like this, an entry in ``registry.BACKENDS``, and a test."""

    NAME, CLUSTER, FLAGS, SUBMIT_FLAGS = "queue", "queue://HOST", QueueFlags, QueueFlags
    submitted: ClassVar[dict[str, Work]] = {}

    def __init__(self, cluster: str, flags: QueueFlags, warn: Callable[[str], None]) -> None:
        if flags.partition not in ("main", "night"):
            raise UserError(f"partition is '{flags.partition}'; valid are main, night")
        self.partition = flags.partition

    @classmethod
    def accepts(cls, cluster: str) -> bool:
        return cluster.startswith("queue://")

    def plan(self, work: Work) -> str:
        return f"{self.partition}: {work.command}"

    def submit(self, work: Work) -> str:
        self.submitted[f"{self.partition}-1"] = work
        return f"{self.partition}-1"

    def jobs(self) -> list[Job]:
        return [Job(id, "succeeded", work.command) for id, work in self.submitted.items()]

    def job(self, id: str) -> Job:
        return next(job for job in self.jobs() if job.id == id)

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        yield "step 10\n"

    def stop(self, id: str) -> None:
        raise SubmissionFailed("queue: it stops nothing")


def test_a_new_backend_needs_one_class_and_its_registration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "BACKENDS", (Queue, *registry.BACKENDS))
    for command in ("submit", "jobs"):
        with pytest.raises(SystemExit):  # the parser's own help: that of main() is stored
            getattr(importlib.import_module(f"infogan_ray.cli.{command}"), command)(["--help"])
        shown = capsys.readouterr().out
        assert "queue://HOST" in shown and "--partition" in shown and "Of the queue." in shown
    place = ["--cluster", "queue://host", "--partition", "night"]
    assert main(["submit", *place, "--follow", "--", *TRAIN, "--name", "first"]) == DONE
    shown = capsys.readouterr()
    assert shown.out == "night-1\nstep 10\n"
    assert f"infogan jobs logs night-1 --follow {' '.join(place)}\n" in shown.err
    assert main(["jobs", "list", *place, "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["jobs"][0]["command"].endswith("--name first")
    assert main(["doctor", "--cluster", "queue://host"]) == DONE
    assert "answers and has 1 job\n" in capsys.readouterr().out
    for words, reason in (
        (["--cluster", "queue://host", "--partition", "day"], "partition is 'day'; valid are main, night"),
        (["--partition", "night"], "--partition needs --cluster queue://HOST, but the cluster is 'local'"),
        (
            ["--cluster", "nowhere"],
            "cluster is 'nowhere'; valid are queue://HOST, http://HOST:8265, kuberay, slurm, local",
        ),
        (["--cluster", "queue://host"], "data is 'tests', a path of this machine"),
    ):
        assert main(["submit", *words, "--", *TRAIN, "--data", "tests"]) == USAGE
        assert capsys.readouterr().err.startswith(f"infogan: {reason}")


# This machine ---------------------------------------------------------------------------------------------------------


def wait_for_end(jobs: LocalJobs, id: str, within: float = 60.0) -> Job:
    deadline = time.monotonic() + within
    while (job := jobs.job(id)).state not in FINAL_STATES and time.monotonic() < deadline:
        time.sleep(0.1)
    return job


def test_a_local_job_has_a_log_and_a_final_state(tmp_path: Path) -> None:
    jobs = LocalJobs(folder=tmp_path)
    right, wrong = (jobs.submit(Work("a", words)) for words in (("--version",), ("nothing",)))
    assert (
        wait_for_end(jobs, right).state == "succeeded"
        and "".join(jobs.logs(right, follow=True)) == "infogan-ray 0.1.0\n"
    )
    assert (wait_for_end(jobs, wrong).state, jobs.job(wrong).exit_code) == ("failed", USAGE)
    assert {job.id for job in jobs.jobs()} == {right, wrong}
    with pytest.raises(ValueError, match="there is no job '../x'"):
        jobs.job("../x")


def test_a_local_job_whose_watcher_was_killed_is_failed(tmp_path: Path) -> None:
    jobs = LocalJobs(folder=tmp_path)
    id = jobs.submit(Work("a", ("--version",)))
    os.killpg(json.loads((tmp_path / id / WATCHER).read_text())["pid"], signal.SIGKILL)
    assert (wait_for_end(jobs, id).state, jobs.job(id).message) == ("failed", "its process ended without an exit code")
    jobs.stop(id)  # signals no other process
