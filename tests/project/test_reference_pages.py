"""docs/reference/ and the stored help say what the code says. Run: pytest tests/project/test_reference_pages.py"""

from __future__ import annotations

import subprocess
import sys

import pytest

from infogan_ray.cli.main import COMMANDS, main
from tests.project.reference_pages import FOLDER, HELP, HELP_FOLDER, PAGES, help_of


@pytest.mark.parametrize("page", PAGES)
def test_a_reference_page_is_up_to_date(page: str) -> None:
    assert (FOLDER / page).read_text() == PAGES[page](), "run: python -m tests.project.reference_pages"


@pytest.mark.parametrize("name", HELP)
def test_the_stored_help_is_up_to_date(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (HELP_FOLDER / f"{name}.txt").read_text()
    assert text == help_of(name) + "\n", "run: python -m tests.project.reference_pages"
    words = HELP[name]
    assert main(words) == 0 and capsys.readouterr().out == text
    assert {file.stem for file in HELP_FOLDER.iterdir()} == {*HELP}


def test_help_loads_neither_torch_nor_ray() -> None:
    calls = [*HELP.values(), *([name, "-h"] for name in COMMANDS)]
    code = (
        f"import sys; from infogan_ray.cli.main import main; print([main(words) for words in {calls!r}]); "
        "sys.exit(bool({'torch', 'ray', 'tyro'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
