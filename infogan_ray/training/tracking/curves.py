"""The names under which a run's figures are tracked, what each means, and the settings that tell runs apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infogan_ray.evaluation.metrics import CHECKPOINT, END, HEADLINES, REGISTRY
from infogan_ray.models.latents import LatentSpec

# Of what training logs, by group; metrics have the groups of their registry. What is in none is not a curve.
GROUPS = {
    "loss": ("d_loss", "g_loss", "consistency_loss", "contrastive_loss", "r1_penalty"),
    "discriminator": ("d_accuracy", "d_real", "d_fake", "contrastive_accuracy"),
    "gradient": ("d_grad_norm", "g_grad_norm"),
    "sorting": ("restarted",),
    "speed": ("images_per_second",),
}
MEASURED = tuple(metric for metric in REGISTRY.values() if metric.measured == CHECKPOINT)
TAGS = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}
TAGS |= {metric.name: f"{metric.group}/{metric.name}" for metric in MEASURED}
RESULTS = tuple(name for name in HEADLINES if REGISTRY[name].measured in (CHECKPOINT, END))
LATEST = "The latest measurement; at the end, one step after the last, of the best checkpoint on all data."
DESCRIPTIONS = {
    "loss/d_loss": "Of the discriminator, from logits; 2 log 2 = 1.386 where it cannot tell images apart.",
    "loss/g_loss": "Of the generator, the non-saturating form; log 2 = 0.693 where D cannot tell images apart.",
    "loss/consistency_loss": "How far Q is from saying the same of real images and their moved copies, in nats.",
    "loss/contrastive_loss": "Cross-entropy of which code a pair of made images shares, in nats; log K is chance.",
    "discriminator/contrastive_accuracy": "Share of pairs of made images whose shared code is named; 1/K is chance.",
    "loss/r1_penalty": "The penalty on D's gradient at real images, as it enters D's loss.",
    "discriminator/d_accuracy": "Share of real and of made images of the batch that D judges rightly; 0.5 is chance.",
    "discriminator/d_real": "D's mean probability of 'real' for real images.",
    "discriminator/d_fake": "D's mean probability of 'real' for made images.",
    "sorting/restarted": "Categories that were dead on real images and began anew, per step.",
    "speed/images_per_second": "Real images that all workers together train on.",
    **{TAGS[metric.name]: metric.description for metric in MEASURED},
    **{f"achieved/{name}": f"{REGISTRY[name].description} {LATEST}" for name in RESULTS},
}
# Of the configuration: where a run lies and what it runs on, and not what it is.
PLACE = (
    "preset", "data_dir", "epochs", "threads", "device", "gpus_per_worker", "placement", "wait", "storage", "name",
    "resume", "checkpoint_every", "keep", "max_missed_checkpoints", "log_every", "metric", "mlflow", "wandb",
    "evaluation", "labels", "max_bad", "profile",
)  # fmt: skip


def hparams(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The fields of a configuration that say what a run is, by their paths: the columns of a table of runs."""

    def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return found

    fields = flat({key: value for key, value in config.items() if key not in PLACE}, "")
    return {key: value for key, value in fields.items() if isinstance(value, (bool, int, float, str))}


def curves(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row of metrics.jsonl by tag."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        tag = TAGS.get(name)
        for prefix, group in (("mi/", "bound"), ("train_mi/", "train_bound"), ("prior/", "prior")):
            tag = f"{group}/{name.removeprefix(prefix)}" if name.startswith(prefix) else tag
        if tag and isinstance(value, (int, float)):
            found[tag] = float(value)
    if "mi_bound" in metrics:
        found |= results(metrics)
    return found


def results(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What runs are compared by, as far as it was measured."""
    return {f"achieved/{name}": float(metrics[name]) for name in RESULTS if isinstance(metrics.get(name), (int, float))}


def descriptions(latents: LatentSpec) -> dict[str, str]:
    """What each tag is, with the ceilings of this run's codes."""
    ceilings = {name: code.ceiling(latents.sigma) for name, code in latents.items()}
    texts = {
        f"bound/{name}": f"L_I({name}) = H(c) + E[log Q(c|x)] in nats, on fresh codes; at most {ceiling:.3f}."
        for name, ceiling in ceilings.items()
    }
    texts |= {
        f"train_bound/{name}": f"L_I({name}) in nats, of the batches trained on; at most {ceiling:.3f}."
        for name, ceiling in ceilings.items()
    }
    texts["bound/mi_bound"] = f"Sum of the bounds of all codes, in nats; at most {sum(ceilings.values()):.3f}."
    for name in latents.names:
        texts[f"prior/{name}/entropy"] = "H(c) of the probabilities that are learned, in nats."
        texts[f"traversal/{name}"] = "What the code does while all else stands still, at each checkpoint."
    texts["samples"] = "The same noise and codes at each checkpoint."
    return DESCRIPTIONS | texts
