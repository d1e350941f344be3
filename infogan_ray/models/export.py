"""Export a model as two graphs, in ONNX or as PyTorch exported programs. Their users do not need this package.

``generator`` makes images from latents. ``recognition`` predicts codes from images. Both accept any batch size; images
are floats in [0, 1]. ``codes.json`` describes each code: its columns of the latents, and example values.
``example.py`` is a short program that uses both graphs.
"""

from __future__ import annotations

import contextlib
import copy
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
CHECK_IMAGES = 7  # must differ from the batch size of the trace


class ExportFailed(Exception):
    """The exported graph and the model compute different results."""


class GeneratorGraph(nn.Module):
    """latents (N, L) -> images (N, C, H, W) in [0, 1]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor) -> Tensor:
        return (self.generator(latents) + 1) / 2


class RecognitionGraph(nn.Module):
    """images (N, C, H, W) in [0, 1] -> the ``Prior.outputs`` of all codes, in order."""

    def __init__(self, spec: ModelSpec, discriminator: Discriminator) -> None:
        super().__init__()
        self.latents, self.discriminator = spec.latents, discriminator

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.latents, self.discriminator(images * 2 - 1)[1]).values())


def export(model: InfoGAN, folder: Path, format: str = "onnx") -> float:
    """Write both graphs and their description. Returns the largest difference from the model on random inputs.

    Raises UserError for an unknown format, for missing packages, and for a folder that is not empty. Raises
    ExportFailed if a difference is larger than TOLERANCE.
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
        raise UserError(f"output is '{folder}', which cannot be created ({error.strerror}); name another") from None
    spec = model.spec
    latents = spec.latents.sample(CHECK_IMAGES, seeded_generator(0, "export"))
    generator, discriminator = copy.deepcopy(model.generator).cpu(), copy.deepcopy(model.discriminator).cpu()
    generate, recognise = GeneratorGraph(generator).eval(), RecognitionGraph(spec, discriminator).eval()
    with torch.no_grad():
        images = generate(latents)
        codes = recognise(images)
    ending = FORMATS[format]
    try:
        generated = _write(generate, latents, folder / f"generator{ending}", "latents", ["images"])
        recognised = _write(recognise, images, folder / f"recognition{ending}", "images", output_names(spec))
        pairs = zip([images, *codes], [*generated, *recognised], strict=True)
        largest = max(float((expected - found).abs().max()) for expected, found in pairs)
        if not largest <= TOLERANCE:
            raise ExportFailed(f"{folder}: a graph differs from the model by {largest:.2g}, more than {TOLERANCE:g}")
        (folder / "codes.json").write_text(json.dumps(describe(spec), indent=1) + "\n")
        (folder / "example.py").write_text(example(format))
    except BaseException:  # an incomplete or wrong export is useless, and its files would block the next export
        for name in (f"generator{ending}", f"recognition{ending}", "codes.json", "example.py"):
            (folder / name).unlink(missing_ok=True)
        raise
    return largest


def named_outputs(latents: LatentSpec, q: Tensor) -> dict[str, Tensor]:
    """Q's outputs (N, P), converted to named values. ``Prior.outputs`` defines them for each kind of prior."""
    return {
        f"{name}{end}": value
        for name, part in latents.split_q(q).items()
        for end, value in latents[name].outputs(part, latents.sigma).items()
    }


def output_names(spec: ModelSpec) -> list[str]:
    """The names of the recognition graph's outputs."""
    return list(named_outputs(spec.latents, torch.zeros(1, spec.latents.q_dim)))


def describe(spec: ModelSpec) -> dict[str, Any]:
    """The content of ``codes.json``: each code's columns of the latents with examples, the images and the outputs."""
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


def _write(module: nn.Module, inputs: Tensor, path: Path, input_name: str, output_names: list[str]) -> list[Tensor]:
    """Trace the module with two rows and write the graph. Returns the outputs of the written file for ``inputs``."""
    rows: tuple[dict[int, Any]] = ({0: torch.export.Dim("batch")},)
    with _quiet():
        if path.suffix == FORMATS["torch"]:
            program = torch.export.export(module, (inputs[:2],), dynamic_shapes=rows)
            program.example_inputs = None  # they would be pickled
            content = io.BytesIO()  # torch would end the process if it could not write a file
            torch.export.save(program, content)
            path.write_bytes(content.getvalue())
            with torch.no_grad():
                found = torch.export.load(path).module()(inputs)
            return [found] if isinstance(found, Tensor) else list(found)
        import onnxruntime

        graph = torch.onnx.export(
            module, (inputs[:2],), dynamic_shapes=rows, input_names=[input_name], output_names=output_names,
            dynamo=True, verbose=False,
        )  # fmt: skip
        assert graph is not None  # it is None only if a file name is among the arguments
        graph.save(path, external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(np.asarray(found)) for found in session.run(None, {input_name: inputs.numpy()})]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress output and the deprecation warnings of the exporters."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def example(format: str) -> str:
    """The content of ``example.py``: a program that uses the graphs in its folder, without this package."""
    package, load, generate, read = {
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

import copy
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
{generate}  # (10, channels, height, width) in [0, 1]
for name, value in zip(codes["recognition"], {read}):
    print(name, np.round(np.asarray(value, dtype=float), 2).tolist())
'''
