"""How benchmarks tell what they found: a Markdown table on stdout, and JSON where asked for."""

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
