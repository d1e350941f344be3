"""Commands and links in README and docs/ are valid. Run: pytest tests/project/test_documentation.py"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from infogan_ray.cli.main import COMMANDS, DATA_ACTIONS
from infogan_ray.cli.train import train_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/research").glob("*.md"))],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_commands_in_the_documentation_are_valid(page: Path) -> None:
    text = re.sub(r"\\\n\s*", "", page.read_text()).replace("$seed", "1")  # one line for each command
    for line in re.findall(r"^ *infogan (.+)$", text, re.MULTILINE):
        words = [word for word in shlex.split(line, comments=True) if word not in ("--dry-run", "--measure", "--json")]
        assert words[0] in COMMANDS
        if words[0] == "train":
            train_config(words[1:])
        if words[0] == "data":
            assert words[1] in DATA_ACTIONS


def test_links_in_the_readme_lead_somewhere() -> None:
    """``make docs`` checks those of the other pages."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]+)#?([^)\s]*)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
        titles = re.findall(r"^#+ (.+)$", (ROOT / target).read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


def test_the_demo_command_is_valid() -> None:
    output = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (words,) = [shlex.split(line) for line in output.splitlines() if "infogan train" in line]
    config = train_config(words[2:])
    assert config.preset == "mnist_robust" and config.name and config.name.startswith("demo-")
