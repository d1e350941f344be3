"""The model folder, which ``pull`` fetches: weights, config, metrics, pictures and a model card, under a manifest."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infogan_ray import checkpoints
from infogan_ray.checkpoints import Checkpoint
from infogan_ray.config import RunConfig
from infogan_ray.model import InfoGAN
from infogan_ray.networks import ModelSpec
from infogan_ray.runs import RunDirectory
from infogan_ray.selection import SCORES
from infogan_ray.storage import Storage, StorageError, open_storage
from infogan_ray.traversal import draw, png, tile

SAMPLES, METRICS, CARD, CONFIG = "samples.png", "metrics.json", "README.md", "config.json"
CATEGORIES = "categories.json"


def publish(checkpoint: Checkpoint, config: RunConfig, destination: Storage, metrics: dict[str, Any]) -> None:
    """Make the model folder of a checkpoint; one that is there is replaced, and is unfinished in between."""
    checkpoints.seal(destination, model_files(checkpoint, config, metrics))


def model_files(checkpoint: Checkpoint, config: RunConfig, metrics: dict[str, Any]) -> dict[str, bytes]:
    """The files of a model folder by name: the same bytes for the same checkpoint and metrics."""
    spec = ModelSpec.from_dict(checkpoint.state["model"])
    weights = checkpoint.manifest.read(checkpoints.MODEL)
    tensors = checkpoints.parse_tensors(f"{checkpoint.folder}/{checkpoints.MODEL}", weights)
    model = InfoGAN.from_tensors(spec, tensors, checkpoint.folder)
    metrics = {"step": checkpoint.step, **metrics}
    categories = metrics.pop("categories", {})
    description = {"model": spec.to_dict(), "step": checkpoint.step, "run": config.to_dict()}
    files = {
        checkpoints.MODEL: weights,
        CONFIG: json.dumps(description, indent=1).encode(),
        METRICS: json.dumps(metrics, indent=1).encode(),
        SAMPLES: png(tile(model.sample(64), columns=8, scale=max(1, round(56 / spec.image_size)))),
        CARD: model_card(model, config, metrics).encode(),
    }
    if categories:
        files[CATEGORIES] = json.dumps(categories).encode()
    return files | {_picture(name): png(draw(model.traverse(name))) for name in model.codes}


def pull(
    run: RunDirectory, which: str, metric: str, config: RunConfig, destination: Path, warn: Callable[[str], None]
) -> Checkpoint:
    """Fetch a checkpoint as a model folder: verified, written beside ``destination`` and renamed.

    The run's own model folder is taken where it holds the chosen step, since its metrics are of all data. A
    ``destination`` that holds the same bytes already is a success, as when many fetch at once. Raises ValueError for
    one that holds something else, BadCheckpoint for content that is not what its name says.
    """
    for tries_left in (2, 1, 0):
        chosen = checkpoints.choose(run.checkpoints, which, metric, warn)
        try:
            files = _published(run, chosen, warn) or model_files(chosen, config, chosen.metrics)
            break
        except checkpoints.BadCheckpoint:  # a run that goes on may have pruned it since it was chosen
            if not tries_left or chosen.folder.is_file(checkpoints.MANIFEST):
                raise
    for name, content in files.items():
        check_content(name, content)
    if not _holds(destination, files):
        beside = open_storage(destination.parent) / f".{destination.name}.{uuid.uuid4().hex[:8]}"
        try:
            checkpoints.seal(beside, files)
            try:
                os.rename(beside.path, destination)
            except OSError:  # another pull has been faster, or something else is there
                if not _holds(destination, files):
                    raise
        finally:
            beside.delete_all()
    return chosen


def _published(run: RunDirectory, chosen: Checkpoint, warn: Callable[[str], None]) -> dict[str, bytes] | None:
    """The files of the run's model folder, if it is whole and of this checkpoint's very weights."""
    try:
        manifest = checkpoints.Manifest.of(run.model, required=(checkpoints.MODEL, CONFIG, METRICS, CARD))
        if manifest.files[checkpoints.MODEL] != chosen.manifest.files[checkpoints.MODEL]:
            return None
        return {name: manifest.read(name) for name in manifest.files}
    except checkpoints.Unfinished:
        return None
    except checkpoints.BadCheckpoint as error:
        warn(f"passed over: {error}")
        return None


def _holds(destination: Path, files: dict[str, bytes]) -> bool:
    """Whether a folder is the very model folder. Raises ValueError if it is something else."""
    if not os.path.lexists(destination):
        return False
    try:
        manifest = checkpoints.Manifest.of(open_storage(destination), required=())
        if manifest.files.keys() == files.keys() and all(manifest.read(name) == files[name] for name in files):
            return True
    except (checkpoints.BadCheckpoint, StorageError):
        pass
    raise ValueError(f"destination {destination} exists and is something else; name another folder")


def check_content(name: str, content: bytes) -> None:
    """Raises BadCheckpoint, by name, unless a file of a model folder is of the kind that its ending says."""
    ending = name.rpartition(".")[2]
    if ending == "safetensors":
        checkpoints.parse_tensors(name, content)
    elif ending == "json":
        checkpoints.parse_json(name, content)
    elif ending == "png":
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise checkpoints.BadCheckpoint(f"{name} is not a PNG picture")
    elif ending == "md":
        try:
            content.decode()
        except UnicodeDecodeError:
            raise checkpoints.BadCheckpoint(f"{name} is not text") from None
    else:
        raise checkpoints.BadCheckpoint(f"{name} is not a file of a model folder; it is refused")


def model_card(model: InfoGAN, config: RunConfig, metrics: dict[str, Any]) -> str:
    """Markdown: a picture, the codes with their bounds, how it was made, how to use it."""
    spec = model.spec
    shape = f"{spec.image_size}x{spec.image_size}x{spec.channels}"
    lines = [
        f"# InfoGAN on {config.data}",
        "",
        f"![samples]({SAMPLES})",
        "",
        f"Images {shape}, {metrics['step']:,} steps of batch {config.batch_size}, seed {config.seed}.",
        "",
        "## Codes",
        "",
        "| code | prior | bound (nats) | ceiling (nats) | what it does |",
        "|---|---|---|---|---|",
    ]
    for name, code in model.codes.items():
        bound = metrics.get(f"mi/{name}")
        shown = "not measured" if bound is None else f"{bound:.3f}"
        ceiling = f"{code.ceiling(spec.latents.sigma):.3f}"
        lines.append(f"| {name} | {type(code).__name__}({code.text()}) | {shown} | {ceiling} | ![]({_picture(name)}) |")
    lines += ["", "The bound is L_I = H(c) + E[log Q(c|x)] on fresh codes. Blue columns lie inside the prior.", ""]
    if "clustering_error" in metrics:
        lines += [
            "## Agreement with labels (which training never saw)",
            "",
            f"`{metrics['clustering_code']}` on the test set: clustering error {metrics['clustering_error']:.1%}, "
            f"one-to-one accuracy {metrics['clustering_acc_hungarian']:.1%}, NMI {metrics['nmi']:.3f}, "
            f"ARI {metrics['ari']:.3f}.",
            "",
        ]
    if "swd" in metrics:
        lines += [
            "## Image quality",
            "",
            f"Sliced Wasserstein distance to the data {metrics['swd']:.1f}; between two halves of the data "
            f"{metrics['swd_data']:.1f}. Small is good.",
            "",
        ]
    if "q_information" in metrics:
        lines += [
            "## How it sorts real images (measured without labels)",
            "",
            *(f"- `{name}` {metrics[name]:.3f}: {meaning}" for name, meaning in SCORES.items()),
            "",
            "Each lies between 0 and 1; large is good.",
            "",
        ]
    lines += [
        "## How it was made",
        "",
        "```",
        train_command(config),
        "```",
        "",
        "## How to use it",
        "",
        "```python",
        "import infogan_ray",
        "model = infogan_ray.load('.')",
        f"images = model.sample(16, codes={_example_codes(model)!r})   # uint8 (16, C, H, W)",
        "codes = model.encode(images)                       # what Q says of each image",
        "```",
        "",
    ]
    return "\n".join(lines)


def train_command(config: RunConfig) -> str:
    """The command that makes this run again: every field that differs from the preset's."""
    from infogan_ray.config import preset

    base = preset(config.preset) if config.preset else RunConfig()
    words = ["infogan", "train", *(["--preset", config.preset] if config.preset else [])]
    words += _flags(config.to_dict(), base.to_dict(), "--")
    return " ".join(shlex.quote(word) for word in words)


def _flags(values: dict[str, Any], base: dict[str, Any], prefix: str) -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        flag = prefix + key.replace("_", "-")
        if key in ("preset", "resume") or value == base.get(key) or value is None:
            continue
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key != "lambda_code":
            words += _flags(value, base[key], f"{flag}.")
        elif isinstance(value, dict):
            words += [flag, *(str(item) for pair in value.items() for item in pair)]
        elif isinstance(value, bool):
            words.append(flag if value else f"{prefix}no-{key.replace('_', '-')}")
        else:
            words += [flag, str(value)]
    return words


def _picture(name: str) -> str:
    return f"traversal_{name}.png"


def _example_codes(model: InfoGAN) -> dict[str, float | int]:
    name, code = next(iter(model.codes.items()))
    return {name: 1 if code.family != "continuous" else 0.5}
