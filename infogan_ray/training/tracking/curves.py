"""Names and descriptions of the curves that trackers show, and the settings that they store for each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infogan_ray.evaluation.metrics import CHECKPOINT, END, HEADLINES, REGISTRY
from infogan_ray.models.latents import LatentSpec
from infogan_ray.storage.visible_text import printable

# The training metrics with a curve, by group. Evaluation metrics have the group of their registry entry.
GROUPS = {
    "loss": ("d_loss", "g_loss", "consistency_loss", "contrastive_loss", "r1_penalty", "r2_penalty"),
    "discriminator": ("d_accuracy", "d_real", "d_fake", "contrastive_accuracy"),
    "gradient": ("d_grad_norm", "g_grad_norm"),
    "sorting": ("restarted",),
    "speed": ("images_per_second",),
}
MEASURED = tuple(metric for metric in REGISTRY.values() if metric.measured == CHECKPOINT)
TAGS = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}
TAGS |= {metric.name: f"{metric.group}/{metric.name}" for metric in MEASURED}
RESULTS = tuple(name for name in HEADLINES if REGISTRY[name].measured in (CHECKPOINT, END))
LATEST = "The latest measurement. The last point, one step after the end, is the best checkpoint on all data."
DESCRIPTIONS = {
    "loss/d_loss": "D's loss, from logits. If D cannot tell real and generated images apart, it is 2 log 2 = 1.386; in "
    "the relativistic game log 2 = 0.693.",
    "loss/g_loss": "G's loss; log 2 = 0.693 if D cannot tell real and generated images apart.",
    "loss/consistency_loss": "The consistency term in nats: small if Q predicts the same for real images and copies.",
    "loss/contrastive_loss": "H's cross-entropy for the shared code of a pair, in nats; log K is chance.",
    "discriminator/contrastive_accuracy": "Share of pairs whose shared code H predicts; 1/K is chance.",
    "loss/r1_penalty": "R1, the penalty on D's gradient at real images, as part of D's loss.",
    "loss/r2_penalty": "R2, the penalty on D's gradient at generated images, as part of D's loss.",
    "discriminator/d_accuracy": "Share of real and generated images that D classifies correctly; 0.5 is chance. "
    "In the relativistic game: the share of pairs in which D finds the real image.",
    "discriminator/d_real": "D's mean probability of 'real' for real images.",
    "discriminator/d_fake": "D's mean probability of 'real' for generated images.",
    "sorting/restarted": "Number of dead categories that were restarted, per step.",
    "speed/images_per_second": "Real images per second, over all workers.",
    **{TAGS[metric.name]: metric.description for metric in MEASURED},
    **{f"achieved/{name}": f"{REGISTRY[name].description} {LATEST}" for name in RESULTS},
}
# Fields that do not change the result of a run: where it is stored, where it runs, and what it logs.
NOT_HPARAMS = (
    "preset", "data_dir", "epochs", "threads", "device", "gpus_per_worker", "placement", "wait", "resize_every",
    "storage", "name", "resume", "checkpoint_every", "keep", "max_missed_checkpoints", "log_every", "metric",
    "mlflow", "wandb", "evaluation", "labels", "max_bad", "profile",
)  # fmt: skip


def hparams(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The settings that change the result of a run, by dotted name: the columns of a tracker's table of runs."""

    def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return flat

    fields = flatten({key: value for key, value in config.items() if key not in NOT_HPARAMS}, "")
    return {
        key: printable(value) if isinstance(value, str) else value
        for key, value in fields.items()
        if isinstance(value, (bool, int, float, str))
    }


def curves(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The values of a row of metrics.jsonl, by tag."""
    values: dict[str, float] = {}
    for name, value in metrics.items():
        tag = TAGS.get(name)
        for prefix, group in (("mi/", "bound"), ("train_mi/", "train_bound"), ("prior/", "prior")):
            tag = f"{group}/{name.removeprefix(prefix)}" if name.startswith(prefix) else tag
        if tag and isinstance(value, (int, float)):
            values[tag] = float(value)
    if "mi_bound" in metrics:
        values |= results(metrics)
    return values


def results(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The measured headline metrics, which serve to compare runs, by tag."""
    return {f"achieved/{name}": float(metrics[name]) for name in RESULTS if isinstance(metrics.get(name), (int, float))}


def descriptions(latents: LatentSpec) -> dict[str, str]:
    """A description of each tag, with the ceilings of this run's codes."""
    texts = {
        f"bound/{name}": f"L_I({name}) = H(c) + E[log Q(c|x)] in nats, on newly sampled codes; at most {ceiling:.3f}."
        for name, ceiling in latents.ceilings.items()
    }
    texts |= {
        f"train_bound/{name}": f"L_I({name}) in nats, on training batches; at most {ceiling:.3f}."
        for name, ceiling in latents.ceilings.items()
    }
    texts["bound/mi_bound"] = f"Sum of the bounds of all codes, in nats; at most {sum(latents.ceilings.values()):.3f}."
    for name in latents.names:
        texts[f"prior/{name}/entropy"] = "H(c) of the learned probabilities, in nats."
        texts[f"traversal/{name}"] = "The effect of this code with all other inputs fixed, at each checkpoint."
    texts["samples"] = "Images from the same noise and codes at each checkpoint."
    return DESCRIPTIONS | texts
