"""Stdout has a command's results and nothing else. Run: pytest tests/cli/test_output.py"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infogan_ray.cli.output import print_json, print_progress, print_result, results, results_alone_on_stdout

# Stands for a command during which a library, native code and a child process print.
NOISY = """
import os, subprocess, sys
from infogan_ray.cli import runs, main

def command(arguments):
    print("a library")
    sys.stdout.flush()
    os.write(1, b"native code\\n")
    subprocess.run(["echo", "a child"])
    main.print_result('{"rows": ["caf\\\\udce9"]}', "caf\\udce9\\nx")
    return 0

runs.runs = command
code = main.main(["runs"])
print("after")
raise SystemExit(code)
"""


def test_only_results_reach_stdout() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, timeout=60)
    first, second, *after = done.stdout.splitlines()
    assert json.loads(first) == {"rows": ["caf\udce9"]} and second == r"caf\xe9\nx"
    assert after == ["after"], "the caller's stdout is restored"
    assert sorted(done.stderr.splitlines()) == ["a child", "a library", "native code"]


@pytest.mark.parametrize(
    ("shell", "code", "error"),
    [
        ('"$@" --help | head -1; exit ${PIPESTATUS[0]}', 0, ""),  # head has read all
        ('"$@" --help > >(exec true); ', 0, ""),
        ('"$@" --help > /dev/full', 1, "infogan: stdout: No space left on device\n"),
        ('"$@" --help >&-', 0, ""),
        ('"$@" --help 2>&- | grep -c usage', 0, ""),
    ],
)
def test_a_stdout_that_cannot_be_written_gives_no_trace(shell: str, code: int, error: str) -> None:
    command = ["bash", "-c", shell, "bash", sys.executable, "-m", "infogan_ray"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, error)


def test_help_is_a_result_and_progress_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with results_alone_on_stdout():
        assert results() is not sys.stdout
        print("a library")
        print_result("one\ntwo", "three")
        print_progress("four\nfive")
    out, err = capsys.readouterr()
    assert (out, err) == ("one\\ntwo\nthree\n", "a library\nfour\\nfive\n")


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"rows": [{"score": float("nan"), "bound": (1.5, float("-inf"))}], "name": "caf\udce9"})
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"rows": [{"score": None, "bound": [1.5, None]}], "name": "caf\udce9"}
