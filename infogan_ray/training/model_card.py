"""The model card: Markdown with front matter for model hubs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from infogan_ray.data.fetch import SOURCES
from infogan_ray.evaluation.diagnosis import failures
from infogan_ray.evaluation.metrics import CHECKPOINT, END, LABELLED, QUALITY, REGISTRY, SORTING, of_group
from infogan_ray.evaluation.texts import (
    baseline_text,
    category_rows,
    compared_error_text,
    compared_text,
    is_measured,
    values_text,
    variety_text,
    why_no_agreement,
)
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.traversal import reaches_outside
from infogan_ray.storage.json_text import is_defined
from infogan_ray.storage.visible_text import printable
from infogan_ray.training.config import RunConfig
from infogan_ray.training.resume import Change, change_text
from infogan_ray.training.train_command import train_command

SAMPLES = "samples.png"


def model_card(
    model: InfoGAN, config: RunConfig, metrics: dict[str, Any], changes: Sequence[Change] = ()
) -> str:  # fmt: skip
    """The card's text: pictures, codes with names and bounds, measurements, limits, the training command and usage.

    ``changes``: settings that were changed before the checkpoint. The command has their new values.
    """
    metrics = {name: value for name, value in metrics.items() if is_defined(value)}
    spec, data = model.spec, printable(str(config.data))
    size = f"{spec.image_size} x {spec.image_size} x {spec.channels}"
    parts = [
        front_matter(config, metrics),
        f"# InfoGAN on {data}",
        f"![64 samples]({SAMPLES})",
        f"Images {size}, {metrics['step']:,} steps of batch {config.batch_size}, seed {config.seed}.",
        "## Codes",
        codes_table(model, metrics),
        "Bound: L_I = H(c) + E[log Q(c|x)] in nats, on newly sampled codes. In the pictures, blue columns lie inside "
        "the prior. People choose the names of codes from the pictures, for example with `infogan explore`.",
        *_measured(metrics),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(model, config, metrics)),
        "## How it was made",
        f"```\n{train_command(config)}\n```",
        *changes_note(changes),
        "## How to use it",
        _usage(model),
    ]
    return "\n\n".join(parts) + "\n"


def changes_note(changes: Sequence[Change]) -> list[str]:
    """A paragraph about settings that were changed during training; empty without changes."""
    if not changes:
        return []
    listed = "; ".join(map(change_text, changes))
    return [f"Settings were changed during training, so this command alone does not repeat it: {listed}."]


def front_matter(config: RunConfig, metrics: dict[str, Any]) -> str:
    """The front matter: YAML between dashes, with tags, the data and measurements."""
    data = None if config.data is None else printable(config.data)
    results = [
        {"type": metric.name, "name": metric.sentence, "value": round(float(metrics[metric.name]), 4)}
        for metric in REGISTRY.values()
        if metric.measured in (CHECKPOINT, END) and is_measured(metrics, metric.name)
    ]
    task = {"type": "unconditional-image-generation", "name": "Unconditional image generation"}
    fields: dict[str, Any] = {
        "library_name": "infogan_ray",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["infogan", "gan", "disentanglement", "clustering", "unsupervised", "pytorch"],
    }
    hub_dataset = data if data in SOURCES else None  # hubs have the named datasets only
    if hub_dataset:
        fields["datasets"] = [hub_dataset]
    if results:
        dataset = {"type": hub_dataset or "images", "name": data}
        fields["model-index"] = [
            {"name": f"InfoGAN on {data}", "results": [{"task": task, "dataset": dataset, "metrics": results}]}
        ]
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip() + "\n---"


def codes_table(model: InfoGAN, metrics: dict[str, Any]) -> str:
    lines = ["| code | name | prior | bound (nats) | ceiling (nats) | what it does |", "|---|---|---|---|---|---|"]
    for code, prior in model.codes.items():
        bound = metrics.get(f"mi/{code}")
        shown = "not measured" if bound is None else f"{bound:.3f}"
        ceiling = f"{prior.ceiling(model.spec.latents.sigma):.3f}"
        name = model.names.get(code, "")
        picture = f"![traversal of {name or code}]({traversal_file(code)})"
        lines.append(f"| {code} | {name} | {prior.title} | {shown} | {ceiling} | {picture} |")
    return "\n".join(lines)


def _measured(metrics: dict[str, Any]) -> list[str]:
    parts = []
    if "mi_bound" in metrics:
        share = metrics.get("mi_fraction")
        percentage = "" if share is None else f", on average {share:.1%} of the ceilings"
        parts.append(f"All codes together: {metrics['mi_bound']:.3f} nats{percentage}.")
    if "clustering_error" in metrics:
        parts += [
            "### Agreement with labels (training does not use labels)",
            f"`{metrics['clustering_code']}` on the test set: "
            f"{'; '.join(filter(None, (values_text(metrics, of_group(LABELLED)), baseline_text(metrics))))}.",
            *_categories(metrics),
        ]
    if quality := compared_text(metrics, of_group(QUALITY)):
        parts += ["### Image quality", f"Generated images against the data: {quality}. Small is good."]
    if is_measured(metrics, "spread"):
        parts += ["### Variety", f"Generated images against the data: {variety_text(metrics)}."]
    if sorting := [metric for metric in of_group(SORTING) if is_measured(metrics, metric.name)]:
        parts += [
            "### How it sorts real images (measured without labels)",
            "\n".join(f"- `{m.name}` {m.text(metrics[m.name])}: {m.sentence}" for m in sorting),
            "Each value lies between 0 and 1; large is good.",
        ]
    if parts:
        parts = ["## Measured", *parts, "To measure again, run in the model's folder:\n\n```\ninfogan evaluate .\n```"]
    return parts


def _categories(metrics: dict[str, Any]) -> list[str]:
    """A table of the labels in each category, if they were counted."""
    rows = [[re.sub(r"([\\`*_<>\[\]|])", r"\\\1", cell) for cell in row] for row in category_rows(metrics)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return ["\n".join(["| category | test images | labels |", "|---|---|---|", *lines])] if lines else []


def _limits(model: InfoGAN, config: RunConfig, metrics: dict[str, Any]) -> list[str]:
    spec, data = model.spec, printable(str(config.data))
    lines = [
        f"The model generates images like those of `{data}`, {spec.image_size} pixels wide. Q's predictions for "
        "other kinds of images mean nothing.",
        "Training chooses the meaning of a code. A high bound means that Q predicts the code well. It does not mean "
        "that the code is one factor for people. Two kinds of images that look alike can share a category.",
        "Another seed may find other factors, or the same factors under other numbers.",
    ]
    if "clustering_error" not in metrics:
        lines.append(f"Nothing was compared with labels: {why_no_agreement(metrics, spec.latents)}.")
    elif metrics["clustering_error"] > 0.1:
        lines.append(
            f"{metrics['clustering_error']:.0%} of the test images do not have the most frequent label of their "
            f"category{f' ({compared_error_text(metrics)})' if compared_error_text(metrics) else ''}."
        )
    lines += failures(metrics, spec.latents.ceilings)
    if any(reaches_outside(code) for code in model.codes.values()):
        lines.append("Outside the blue columns, training did not use these values of a continuous code.")
    return lines


def _usage(model: InfoGAN) -> str:
    name, code = next(iter(model.codes.items()))
    display_name = model.names.get(name, name)
    return f"""```python
import infogan_ray
model = infogan_ray.load('.')
images = model.sample(16, codes={{{display_name!r}: {code.examples[1]}}})   # uint8 (16, C, H, W)
codes = model.encode(images)                       # Q's prediction for each image
```

```
infogan explore .
```"""


def traversal_file(code: str) -> str:
    return f"traversal_{code}.png"
