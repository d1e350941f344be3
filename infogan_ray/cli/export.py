"""infogan export: writes a model as ONNX or torch graphs, for use without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from infogan_ray.cli.exit_codes import DONE, Failed
from infogan_ray.cli.flags import Model, parse
from infogan_ray.cli.output import print_result, warn
from infogan_ray.models.export import ExportFailed
from infogan_ray.models.export import export as export_model
from infogan_ray.storage.visible_text import shell_word
from infogan_ray.training.load_model import load


@dataclass
class Export:
    model: Model
    format: str = "onnx"
    """onnx (needs the extra infogan-ray[export]) or torch."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to create; by default NAME-onnx or NAME-torch."""


def export(arguments: list[str]) -> int:
    given = parse(
        Export,
        "export",
        arguments,
        "Write a model's generator and recognition network for use without this package. They are compared with it.",
        [
            "export first-model -o first-onnx",
            "export first-model --format torch -o first-graphs",
        ],
    )
    model = load(given.model, warn)
    folder = Path(given.output or f"{model.source.name}-{given.format}").expanduser()
    try:
        max_error = export_model(model, folder, given.format)
    except ExportFailed as error:
        raise Failed(str(error)) from None
    print_result(f"{folder}: generator and recognition network; largest difference from the model {max_error:.1g}")
    print_result(f"how to use them: python {shell_word(str(folder / 'example.py'))}")
    return DONE
