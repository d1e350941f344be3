"""The model folder, which ``pull`` fetches: weights, config, metrics, pictures and a model card, under a manifest."""

from __future__ import annotations

import json
import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any

from infogan_ray import checkpoints
from infogan_ray.checkpoints import Checkpoint
from infogan_ray.config import RunConfig
from infogan_ray.model import InfoGAN
from infogan_ray.networks import ModelSpec
from infogan_ray.traversal import draw, tile

SAMPLES, METRICS, CARD, CONFIG = "samples.png", "metrics.json", "README.md", "config.json"


def publish(
    checkpoint: Checkpoint, config: RunConfig, destination: Path, metrics: dict[str, Any] | None = None
) -> InfoGAN:
    """Make the model folder of a checkpoint at ``destination``, beside it first and then renamed; returns the model.

    ``metrics`` replace the checkpoint's own where a fuller evaluation was made. Replaces a model folder that is there.
    """
    spec = ModelSpec.from_dict(checkpoint.state["model"])
    model = InfoGAN.from_tensors(spec, checkpoint.model_tensors(), checkpoint.path)
    metrics = {"step": checkpoint.step, **(metrics or checkpoint.metrics)}
    hidden = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    hidden.mkdir(parents=True)
    try:
        shutil.copyfile(checkpoint.path / checkpoints.MODEL, hidden / checkpoints.MODEL)
        description = {"model": spec.to_dict(), "step": checkpoint.step, "run": config.to_dict()}
        (hidden / CONFIG).write_text(json.dumps(description, indent=1))
        (hidden / METRICS).write_text(json.dumps(metrics, indent=1))
        tile(model.sample(64), columns=8, scale=max(1, round(56 / spec.image_size))).save(hidden / SAMPLES)
        for name in model.codes:
            draw(model.traverse(name)).save(hidden / _picture(name))
        (hidden / CARD).write_text(model_card(model, config, metrics))
        checkpoints.seal(hidden)
        if destination.exists():
            shutil.rmtree(destination)
        hidden.rename(destination)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return model


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
