"""Output of benchmarks: a Markdown table on stdout, and JSON on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def publish(figures: dict[str, Any], file: Path | None) -> None:
    print("| what | figure |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    if file is not None:
        file.write_text(json.dumps(figures, indent=1))


def rows_of(journal: Path) -> list[dict[str, Any]]:
    """The rows of finished runs in a file of JSON lines; an empty list if there is no file."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
