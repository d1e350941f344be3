"""A model for those who do not have this package: two graphs, as ONNX or as torch's exported programs.

``generator`` makes images of latents; ``recognition`` reads codes out of images. Both take and give any number of
images, as floats in [0, 1]. ``codes.json`` says which columns of the latents are which code, with some settings of
each. ``example.py`` uses both graphs in a few lines.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator, Generator, ModelSpec
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.traversal import COLUMNS

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
CHECKED = 7  # images; not the number that was traced


class ExportFailed(Exception):
    """The exported graph does not compute what the model does."""


class GeneratorGraph(nn.Module):
    """latents (N, L) -> images (N, C, H, W) in [0, 1]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor) -> Tensor:
        return (self.generator(latents) + 1) / 2


class RecognitionGraph(nn.Module):
    """images (N, C, H, W) in [0, 1] -> for each code, in order, what ``outputs`` names."""

    def __init__(self, spec: ModelSpec, discriminator: Discriminator) -> None:
        super().__init__()
        self.latents, self.discriminator = spec.latents, discriminator

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.latents, self.discriminator(images * 2 - 1)[1]).values())


def export(model: InfoGAN, folder: Path, format: str = "onnx") -> float:
    """Write both graphs and what explains them; returns the greatest difference to the model on random input.

    Raises UserError for an unknown format, one whose packages are missing, and a folder that has files; ExportFailed
    where a difference is more than TOLERANCE.
    """
    if format not in FORMATS:
        raise UserError(f"format is '{format}'; valid are {', '.join(FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output is '{folder}', which exists and is not an empty folder; name another")
    if format == "onnx":
        _need_onnx()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output is '{folder}', which cannot be made ({error.strerror}); name another") from None
    spec = model.spec
    latents = spec.latents.sample(CHECKED, seeded_generator(0, "export"))
    generate, recognise = GeneratorGraph(model.generator).eval(), RecognitionGraph(spec, model.discriminator).eval()
    with torch.no_grad():
        images = generate(latents)
        codes = recognise(images)
    ending = FORMATS[format]
    try:
        generated = _write(generate, latents, folder / f"generator{ending}", "latents", ["images"])
        recognised = _write(recognise, images, folder / f"recognition{ending}", "images", output_names(spec))
        pairs = zip([images, *codes], [*generated, *recognised], strict=True)
        worst = max(float((expected - found).abs().max()) for expected, found in pairs)
        if not worst <= TOLERANCE:
            raise ExportFailed(f"{folder}: a graph differs from the model by {worst:.2g}, more than {TOLERANCE:g}")
        (folder / "codes.json").write_text(json.dumps(describe(spec), indent=1) + "\n")
        (folder / "example.py").write_text(example(format))
    except BaseException:  # what is not whole, or not the model, is of no use, and would be in the way of the next one
        for name in (f"generator{ending}", f"recognition{ending}", "codes.json", "example.py"):
            (folder / name).unlink(missing_ok=True)
        raise
    return worst


def named_outputs(latents: LatentSpec, q: Tensor) -> dict[str, Tensor]:
    """What Q's outputs (N, P) say, by name; ``Prior.outputs`` of each kind says which."""
    return {
        f"{name}{end}": value
        for name, part in latents.split_q(q).items()
        for end, value in latents[name].outputs(part, latents.sigma).items()
    }


def output_names(spec: ModelSpec) -> list[str]:
    """Of the recognition graph."""
    return list(named_outputs(spec.latents, torch.zeros(1, spec.latents.q_dim)))


def describe(spec: ModelSpec) -> dict[str, Any]:
    """The columns of the latents by code, some settings of these columns, and the images."""
    latents: list[dict[str, Any]] = [{"name": "noise", "prior": "standard normal", "columns": [0, spec.latents.noise]}]
    for name, code in spec.latents.items():
        columns = spec.latents.columns(name)
        latents.append(
            {
                "name": name, "prior": code.family, "code": str(code), "columns": [columns.start, columns.stop],
                "examples": [code.embed(value, name).tolist() for value in code.traversal(COLUMNS).values[:COLUMNS]],
            }
        )  # fmt: skip
    return {
        "latents": latents,
        "images": {"channels": spec.channels, "height": spec.image_size, "width": spec.image_size, "range": [0, 1]},
        "recognition": output_names(spec),
    }


def _need_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(
            "format is 'onnx', which is not installed; pip install 'infogan-ray[export]', or give --format torch"
        ) from None


def _write(module: nn.Module, given: Tensor, path: Path, input_name: str, output_names: list[str]) -> list[Tensor]:
    """Write a graph that was traced with two rows, and what the file then makes of ``given``."""
    rows: tuple[dict[int, Any]] = ({0: torch.export.Dim("batch")},)
    with _quiet():
        if path.suffix == FORMATS["torch"]:
            program = torch.export.export(module, (given[:2],), dynamic_shapes=rows)
            program.example_inputs = None  # would be pickled
            content = io.BytesIO()  # torch ends the process where it cannot write a file
            torch.export.save(program, content)
            path.write_bytes(content.getvalue())
            with torch.no_grad():
                found = torch.export.load(path).module()(given)
            return [found] if isinstance(found, Tensor) else list(found)
        import onnxruntime

        graph = torch.onnx.export(
            module, (given[:2],), dynamic_shapes=rows, input_names=[input_name], output_names=output_names, dynamo=True,
            verbose=False,
        )  # fmt: skip
        assert graph is not None  # which it is only with a file's name among its arguments
        graph.save(path, external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(np.asarray(found)) for found in session.run(None, {input_name: given.numpy()})]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of their own progress and of their own deprecations."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def example(format: str) -> str:
    """A program that uses the folder that it lies in, and neither this package nor its training."""
    package, load, draw, read = {
        "onnx": (
            "onnxruntime", 'onnxruntime.InferenceSession(str(here / f"{name}.onnx"))',
            '[images] = generator.run(None, {"latents": latents})', 'recognition.run(None, {"images": images})',
        ),
        "torch": (
            "torch", 'torch.export.load(here / f"{name}.pt2").module()',
            "torch.set_grad_enabled(False)\nimages = generator(torch.from_numpy(latents))", "recognition(images)",
        ),
    }[format]  # fmt: skip
    return f'''"""Generates ten images and reads their codes again. Needs numpy and {package}."""

import json
from pathlib import Path

import numpy as np
import {package}

here = Path(__file__).parent
codes = json.loads((here / "codes.json").read_text())
generator, recognition = ({load} for name in ("generator", "recognition"))
latents = np.random.default_rng(0).standard_normal((10, codes["latents"][-1]["columns"][1]), dtype=np.float32)
for code in codes["latents"][1:]:  # after the noise
    start, stop = code["columns"]
    latents[:, start:stop] = np.resize(code["examples"], (10, stop - start))
{draw}  # (10, channels, height, width) in [0, 1]
for name, value in zip(codes["recognition"], {read}):
    print(name, np.round(np.asarray(value, dtype=float), 2).tolist())
'''
