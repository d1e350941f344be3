"""What people read of measured metrics, as plain text: commands, model cards, reports and cards of the explorer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from infogan_ray.evaluation.metrics import (
    CHECKPOINT,
    DISENTANGLEMENT,
    END,
    FIDELITY,
    HEADLINES,
    INCEPTION_GROUP,
    LABELLED,
    QUALITY,
    REGISTRY,
    SORTING,
    Metric,
    of_group,
)


def is_measured(metrics: Mapping[str, Any], name: str) -> bool:
    return isinstance(metrics.get(name), (int, float))


def values_text(metrics: Mapping[str, Any], some: Iterable[Metric]) -> str:
    """The metrics that were measured: title and value, after a comma."""
    return ", ".join(f"{m.title} {m.text(metrics[m.name])}" for m in some if is_measured(metrics, m.name))


def named_text(metrics: Mapping[str, Any], some: Iterable[Metric]) -> str:
    """As ``values_text``, with the names that --metric takes."""
    return ", ".join(f"{m.name} {m.text(metrics[m.name])}" for m in some if is_measured(metrics, m.name))


def compared_text(metrics: Mapping[str, Any], some: Iterable[Metric]) -> str:
    """As ``values_text``, each with the value for two halves of the data."""
    return ", ".join(
        f"{m.title} {m.text(metrics[m.name])} (two halves of the data: {m.text(metrics[f'{m.name}_data'])})"
        for m in some
        if is_measured(metrics, m.name) and is_measured(metrics, f"{m.name}_data")
    )


def headline_texts(metrics: Mapping[str, Any]) -> list[str]:
    """Title and value of each headline metric that was measured."""
    chosen = (REGISTRY[name] for name in HEADLINES if REGISTRY[name].measured in (CHECKPOINT, END))
    return [f"{m.title} {m.text(metrics[m.name])}" for m in chosen if is_measured(metrics, m.name)]


def bound_text(metrics: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {metrics[f'mi/{name}']:.3f} of {top:.3f}" for name, top in ceilings.items())


def clustering_text(metrics: Mapping[str, Any]) -> str:
    if "clustering_error" not in metrics:
        return "not measured: the data has no labels, or the model no categorical code"
    first, *others = of_group(LABELLED)
    parts = [first.text(metrics[first.name]), f"({metrics['clustering_code']}; {values_text(metrics, others)})"]
    missing = [metric.missing for metric in others if metric.name not in metrics and metric.missing]
    return "; ".join([" ".join(parts), *missing])


def category_rows(metrics: Mapping[str, Any], most: int = 3) -> list[list[str]]:
    """[code=category, test images, labels] by category of what ``measure_clustering`` counted.

    Shown are the ``most`` common labels that are a twentieth or more, and the first in any case. Labels have the names
    in ``metrics["classes"]``, if it is there.
    """
    rows = []
    for category, counts in enumerate(metrics.get("confusion", [])):
        names = metrics.get("classes") or range(len(counts))
        total = sum(counts)
        common = sorted(zip(counts, names, strict=False), key=lambda pair: -pair[0])[:most]
        least = min(total / 20, common[0][0])
        told = [f"{' '.join(str(name).split())} {n / total:.1%}" for n, name in common if n and n >= least]
        rows.append([f"{metrics['clustering_code']}={category}", f"{total:,}", ", ".join(told) or "-"])
    return rows


def quality_text(metrics: Mapping[str, Any]) -> str:
    text = compared_text(metrics, of_group(QUALITY))
    return f"{text}; small is good" if text else "not measured: no images of the data to compare with"


def sorting_text(metrics: Mapping[str, Any]) -> str:
    scores = named_text(metrics, of_group(SORTING))
    if not scores:
        return "not measured: the model has no categorical code, or there are no images"
    return f"{scores}; large is good, 1 at most"


def fidelity_lines(scores: Mapping[str, Any]) -> list[str]:
    """Of ``fidelity.measure_fidelity``."""
    lines = [
        f"on the features of a classifier of these labels (right on {scores['classifier_accuracy']:.1%} of held-out "
        f"images), {scores['images']:,} generated images and as many real ones:"
    ]
    for lower in (True, False):
        some = [metric for metric in of_group(FIDELITY) if metric.lower_is_better is lower]
        lines.append(f"  {compared_text(scores, some)}; {'small' if lower else 'large'} is good")
    return lines


def fid_text(scores: Mapping[str, Any]) -> str:
    """Of ``fidelity.measure_fid``."""
    return (
        f"{compared_text(scores, of_group(INCEPTION_GROUP))}; {scores['images']:,} generated images and as many real "
        f"ones; Inception's weights have the SHA-256 {scores['weights_sha256'][:12]}; small is good"
    )


def disentanglement_text(scores: Mapping[str, Any], factors: int) -> str:
    """Of ``disentanglement.measure``."""
    return (
        f"{values_text(scores, of_group(DISENTANGLEMENT))} (DCI by {scores['tree_rounds']} rounds of boosting; "
        f"of FactorVAE's and beta-VAE's scores chance is {1 / factors:.3f}); large is good"
    )
