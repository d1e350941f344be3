"""The notebook of docs/notebooks runs. Run: pytest tests/project/test_notebook.py"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "digits.ipynb"
LENGTH = "steps=2000"


@pytest.mark.timeout(600)
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps. Its pictures and tables have the same kinds as those that are stored."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = [cell for cell in notebook.cells if LENGTH in cell.source]
    training.source = training.source.replace(LENGTH, "steps=40").replace('"width": 16', '"width": 8')
    kernel = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=kernel).execute()
    assert [kinds(cell) for cell in notebook.cells] == [kinds(cell) for cell in stored.cells]
    shown = [kind for cell in notebook.cells for kind in kinds(cell)]
    assert shown.count("image/png") == 2, "two traversals"
    assert "picture" in shown and "table" in shown
    assert (tmp_path / "runs" / "digits" / "model" / "config.json").exists()


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    """What a cell shows: MIME types, and whether its HTML has a picture or a table. Progress is left out."""
    found: set[str] = set()
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        html = data.get("text/html", "")
        found |= {*data, *(["picture"] if "<img" in html else []), *(["table"] if "<table" in html else [])}
    return found
