"""Help: every command has some, with examples that it can parse. Run: pytest tests/cli/test_help.py"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infogan_ray import cli
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import parse
from infogan_ray.cli.main import COMMANDS, main
from infogan_ray.cli.train_help import SHORT
from infogan_ray.training.config import RunConfig
from tests.project.reference_pages import HELP, HELP_FOLDER, field_docs, sections


@pytest.mark.parametrize("command", [*(f"{name} --help" for name in COMMANDS), "train --help-all"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(command.split())
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr().out
    assert code == DONE and re.search("examples:", shown, re.IGNORECASE) and "None" not in shown


@pytest.mark.parametrize("name", HELP)
def test_the_examples_of_the_help_are_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each example is parsed by its own command, which stops there."""

    monkeypatch.chdir(tmp_path)
    (tmp_path / "CONFIG.yaml").write_text("preset: mnist\n")

    class Parsed(Exception):
        pass

    def parse_only(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise Parsed

    for module in pkgutil.iter_modules(cli.__path__, "infogan_ray.cli."):
        if hasattr(loaded := importlib.import_module(module.name), "parse"):
            monkeypatch.setattr(loaded, "parse", parse_only)
    examples = re.findall(r"^  infogan (.+)$", (HELP_FOLDER / f"{name}.txt").read_text(), re.MULTILINE)
    assert 1 <= len(examples) <= 3
    for example in examples:
        words, _, work = example.partition(" -- ")
        for command, *arguments in filter(None, (words.split(), work.split())):
            with pytest.raises(Parsed):
                more = ["--", *work.split()] if command == "submit" else []
                getattr(importlib.import_module(f"infogan_ray.cli.{command}"), command)([*arguments, *more])


def test_the_short_help_of_train_has_flags_that_exist_and_loads_no_torch() -> None:
    given = re.findall(r"(--[a-z][\w.-]*)", SHORT)
    fields = [f"{prefix}{name}" for prefix, kind, _ in sections(RunConfig) for name in field_docs(kind)]
    others = {"--dry-run", "--measure", "--json", "--start-or-resume", "--help-all", "--consistency", "--metric"}
    assert len(given) > 25 and {*given} <= {"--" + name.replace("_", "-") for name in fields} | others
    code = (
        "import sys; from infogan_ray.cli.main import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
