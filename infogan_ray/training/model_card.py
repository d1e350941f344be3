"""The model card: Markdown with the front matter that model hubs read."""

from __future__ import annotations

import re
from typing import Any

import yaml

from infogan_ray.data.fetch import SOURCES
from infogan_ray.evaluation.metrics import CHECKPOINT, END, LABELLED, QUALITY, REGISTRY, SORTING, of_group
from infogan_ray.evaluation.texts import category_rows, compared_text, is_measured, values_text
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.traversal import reaches_outside
from infogan_ray.training.config import RunConfig
from infogan_ray.training.train_command import train_command

SAMPLES = "samples.png"


def model_card(model: InfoGAN, config: RunConfig, metrics: dict[str, Any]) -> str:
    """Pictures, the codes with names and bounds, what was measured and how, limits, how it was made and is used."""
    spec = model.spec
    size = f"{spec.image_size} x {spec.image_size} x {spec.channels}"
    parts = [
        front_matter(config, metrics),
        f"# InfoGAN on {config.data}",
        f"![64 samples]({SAMPLES})",
        f"Images {size}, {metrics['step']:,} steps of batch {config.batch_size}, seed {config.seed}.",
        "## Codes",
        codes_table(model, metrics),
        "Bound: L_I = H(c) + E[log Q(c|x)] in nats, on fresh codes. In the pictures, blue columns lie inside the "
        "prior. Names were given by people, after looking; `infogan explore` is for that.",
        *_measured(metrics),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(model, config, metrics)),
        "## How it was made",
        f"```\n{train_command(config)}\n```",
        "## How to use it",
        _usage(model),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(config: RunConfig, metrics: dict[str, Any]) -> str:
    """YAML between dashes, as hubs read it: tags, the data, and what was measured."""
    data = config.data
    results = [
        {"type": metric.name, "name": metric.sentence, "value": round(float(metrics[metric.name]), 4)}
        for metric in REGISTRY.values()
        if metric.measured in (CHECKPOINT, END) and is_measured(metrics, metric.name)
    ]
    task = {"type": "unconditional-image-generation", "name": "Unconditional image generation"}
    about: dict[str, Any] = {
        "library_name": "infogan_ray",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["infogan", "gan", "disentanglement", "clustering", "unsupervised", "pytorch"],
    }
    named = data if data in SOURCES else None  # those that hubs know
    if named:
        about["datasets"] = [named]
    if results:
        dataset = {"type": named or "images", "name": data}
        about["model-index"] = [
            {"name": f"InfoGAN on {data}", "results": [{"task": task, "dataset": dataset, "metrics": results}]}
        ]
    return "---\n" + yaml.safe_dump(about, sort_keys=False, allow_unicode=True).strip() + "\n---"


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
        more = "" if share is None else f", on average {share:.1%} of the ceilings"
        parts.append(f"All codes together: {metrics['mi_bound']:.3f} nats{more}.")
    if "clustering_error" in metrics:
        parts += [
            "### Agreement with labels (which training never saw)",
            f"`{metrics['clustering_code']}` on the test set: {values_text(metrics, of_group(LABELLED))}.",
            *_categories(metrics),
        ]
    if quality := compared_text(metrics, of_group(QUALITY)):
        parts += ["### Image quality", f"Generated images against the data: {quality}. Small is good."]
    if sorting := [metric for metric in of_group(SORTING) if is_measured(metrics, metric.name)]:
        parts += [
            "### How it sorts real images (measured without labels)",
            "\n".join(f"- `{m.name}` {m.text(metrics[m.name])}: {m.sentence}" for m in sorting),
            "Each lies between 0 and 1; large is good.",
        ]
    if parts:
        parts = ["## Measured", *parts, "Measure it again, in the folder of the model:\n\n```\ninfogan evaluate .\n```"]
    return parts


def _categories(metrics: dict[str, Any]) -> list[str]:
    """A table of what each category holds, if that was counted."""
    rows = [[re.sub(r"([\\`*_<>\[\]|])", r"\\\1", cell) for cell in row] for row in category_rows(metrics)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return ["\n".join(["| category | test images | labels |", "|---|---|---|", *lines])] if lines else []


def _limits(model: InfoGAN, config: RunConfig, metrics: dict[str, Any]) -> list[str]:
    spec = model.spec
    lines = [
        f"It draws images like those of `{config.data}`, {spec.image_size} pixels wide, and reads others as if they "
        "were such: what Q says of a picture of another kind means nothing.",
        "A code means what the data made of it. A high bound says that Q reads it well, not that people would call it "
        "one factor; two things that look alike can share a category.",
        "Another seed may find other factors, or the same under another number.",
    ]
    if "clustering_error" not in metrics:
        lines.append("No labels were at hand: nothing was compared with them.")
    elif metrics["clustering_error"] > 0.1:
        lines.append(
            f"{metrics['clustering_error']:.0%} of the test images lie in a category of which most are something else."
        )
    weak = [code for code, share in _shares(model, metrics).items() if share < 0.5]
    if weak:
        lines.append(f"Q reads {', '.join(weak)} badly (less than half of the ceiling): expect little from it.")
    if any(reaches_outside(code) for code in model.codes.values()):
        lines.append("Outside the blue columns a continuous code is past what training drew.")
    return lines


def _shares(model: InfoGAN, metrics: dict[str, Any]) -> dict[str, float]:
    """Bound over ceiling by code, where it was measured."""
    sigma = model.spec.latents.sigma
    found = {}
    for name, code in model.codes.items():
        bound, ceiling = metrics.get(f"mi/{name}"), code.ceiling(sigma)
        if bound is not None and ceiling > 0:
            found[name] = bound / ceiling
    return found


def _usage(model: InfoGAN) -> str:
    name, code = next(iter(model.codes.items()))
    called = model.names.get(name, name)
    return f"""```python
import infogan_ray
model = infogan_ray.load('.')
images = model.sample(16, codes={{{called!r}: {code.examples[1]}}})   # uint8 (16, C, H, W)
codes = model.encode(images)                       # what Q says of each image
```

```
infogan explore .
```"""


def traversal_file(code: str) -> str:
    return f"traversal_{code}.png"
