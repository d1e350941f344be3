"""Metrics as plain text, for commands, model cards, reports and the explorer."""

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
    ONE_CATEGORY_ERROR,
    QUALITY,
    REGISTRY,
    SORTING,
    SPREAD,
    USAGE,
    Metric,
    of_group,
)
from infogan_ray.models.latents import LatentSpec

CLUSTERING_ERROR = "clustering_error"
NOT_MEASURED = "clustering_not_measured"  # the key of the reason why agreement with labels is undefined


def is_measured(metrics: Mapping[str, Any], name: str) -> bool:
    return isinstance(metrics.get(name), (int, float))


def values_text(metrics: Mapping[str, Any], wanted: Iterable[Metric]) -> str:
    """Title and value of each measured metric, separated by commas."""
    return ", ".join(f"{m.title} {m.text(metrics[m.name])}" for m in wanted if is_measured(metrics, m.name))


def named_text(metrics: Mapping[str, Any], wanted: Iterable[Metric]) -> str:
    """As ``values_text``, with the names that --metric accepts."""
    return ", ".join(f"{m.name} {m.text(metrics[m.name])}" for m in wanted if is_measured(metrics, m.name))


def compared_text(metrics: Mapping[str, Any], wanted: Iterable[Metric]) -> str:
    """As ``values_text``, each with the value between two halves of the data."""
    return ", ".join(
        f"{m.title} {m.text(metrics[m.name])} (two halves of the data: {m.text(metrics[f'{m.name}_data'])})"
        for m in wanted
        if is_measured(metrics, m.name) and is_measured(metrics, f"{m.name}_data")
    )


def headline_texts(metrics: Mapping[str, Any]) -> list[str]:
    """Title and value of each headline metric that was measured."""
    headlines = (REGISTRY[name] for name in HEADLINES if REGISTRY[name].measured in (CHECKPOINT, END))
    comparison = compared_error_text(metrics)
    return [
        f"{m.title} {m.text(metrics[m.name])}{f' ({comparison})' if comparison and m.name == CLUSTERING_ERROR else ''}"
        for m in headlines
        if is_measured(metrics, m.name)
    ]


def baseline_text(metrics: Mapping[str, Any]) -> str:
    """For unbalanced labels, the error of one category for everything. Else an empty text."""
    if not is_measured(metrics, ONE_CATEGORY_ERROR):
        return ""
    error = REGISTRY[CLUSTERING_ERROR].text(metrics[ONE_CATEGORY_ERROR])
    return f"one category for everything would have {error}"


def compared_error_text(metrics: Mapping[str, Any]) -> str:
    """For unbalanced labels, what the clustering error must be compared with. Else an empty text."""
    baseline = baseline_text(metrics)
    return f"{values_text(metrics, [REGISTRY['balanced_error']])}; {baseline}" if baseline else ""


def why_no_agreement(metrics: Mapping[str, Any], latents: LatentSpec) -> str:
    """Why an evaluated model was not compared with labels."""
    known = "the data has no labels" if any(latents.one_hot_items()) else "the model has no categorical code"
    return str(metrics.get(NOT_MEASURED, known))


def bound_text(metrics: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {metrics[f'mi/{name}']:.3f} of {ceiling:.3f}" for name, ceiling in ceilings.items())


def clustering_text(metrics: Mapping[str, Any], latents: LatentSpec) -> str:
    if CLUSTERING_ERROR not in metrics:
        return f"not measured: {why_no_agreement(metrics, latents)}"
    first, *others = of_group(LABELLED)
    parts = [first.text(metrics[first.name]), f"({metrics['clustering_code']}; {values_text(metrics, others)})"]
    missing = [metric.missing for metric in others if metric.name not in metrics and metric.missing]
    return "; ".join(text for text in (" ".join(parts), baseline_text(metrics), *missing) if text)


def category_rows(metrics: Mapping[str, Any], max_labels: int = 3) -> list[list[str]]:
    """One row [code=category, test images, labels] for each category, from the counts of ``measure_clustering``.

    A row has at most ``max_labels`` labels: the most common one, and others with a share of at least 1/20. Labels have
    the names in ``metrics["classes"]``, if these exist.
    """
    rows = []
    for category, counts in enumerate(metrics.get("confusion", [])):
        names = metrics.get("classes") or range(len(counts))
        total = sum(counts)
        common = sorted(zip(counts, names, strict=False), key=lambda pair: -pair[0])[:max_labels]
        threshold = min(total / 20, common[0][0])
        shares = [f"{' '.join(str(name).split())} {n / total:.1%}" for n, name in common if n and n >= threshold]
        rows.append([f"{metrics['clustering_code']}={category}", f"{total:,}", ", ".join(shares) or "-"])
    return rows


def quality_text(metrics: Mapping[str, Any]) -> str:
    text = compared_text(metrics, of_group(QUALITY))
    return f"{text}; small is good" if text else "not measured: there are no real images to compare with"


def variety_text(metrics: Mapping[str, Any]) -> str:
    spreads, usage = (values_text(metrics, of_group(group)) for group in (SPREAD, USAGE))
    parts = [f"{spreads} (1 is good)" if spreads else "not measured: no two real images differ", usage]
    return "; ".join(filter(None, parts))


def sorting_text(metrics: Mapping[str, Any], latents: LatentSpec) -> str:
    scores = named_text(metrics, of_group(SORTING))
    if not scores:
        reason = "there are no images" if any(latents.one_hot_items()) else "the model has no categorical code"
        return f"not measured: {reason}"
    return f"{scores}; large is good, at most 1"


def fidelity_lines(scores: Mapping[str, Any]) -> list[str]:
    """The result of ``measure_fidelity`` as lines."""
    lines = [
        f"on the features of a classifier of these labels (right on {scores['classifier_accuracy']:.1%} of held-out "
        f"images), with {scores['images']:,} generated and {scores['images']:,} real images:"
    ]
    for lower in (True, False):
        metrics = [metric for metric in of_group(FIDELITY) if metric.lower_is_better is lower]
        lines.append(f"  {compared_text(scores, metrics)}; {'small' if lower else 'large'} is good")
    return lines


def fid_text(scores: Mapping[str, Any]) -> str:
    """The result of ``measure_fid`` as a line."""
    return (
        f"{compared_text(scores, of_group(INCEPTION_GROUP))}; {scores['images']:,} generated and "
        f"{scores['images']:,} real images; SHA-256 of Inception's weights: {scores['weights_sha256'][:12]}; "
        "small is good"
    )


def disentanglement_text(scores: Mapping[str, Any], factors: int) -> str:
    """The result of ``measure_disentanglement.measure`` as a line."""
    return (
        f"{values_text(scores, of_group(DISENTANGLEMENT))} (DCI with {scores['tree_rounds']} rounds of boosting; "
        f"chance for FactorVAE and beta-VAE: {1 / factors:.3f}); large is good"
    )
