"""What metrics show to be wrong with a model, in sentences for users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infogan_ray.evaluation.metrics import REGISTRY
from infogan_ray.evaluation.texts import is_measured

LEAST_SPREAD = 0.5
COLLAPSES = {"spread": "", "spread_in_category": " in each category", "feature_spread": ""}
"""The metrics that show a collapse, with the place where it is."""
NEARLY_ALWAYS, SURE = 0.97, 0.1  # D's share of right decisions, and its mean probability of "real" for G's images
LEAST_IMAGES = 20  # a category with fewer test images says little
MIXED = 0.25  # the share of a category's second label from which the category holds two kinds of images
HELP = "More --steps and more images help, and the preset photos if the run has another form"


def has_collapsed(metrics: Mapping[str, Any]) -> bool:
    """Whether generated images differ much less than real ones, all together or in each category."""
    return bool(_collapsed(metrics))


def _collapsed(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the metrics that show a collapse."""
    return [name for name in COLLAPSES if is_measured(metrics, name) and metrics[name] < LEAST_SPREAD]


def _is_d_certain(metrics: Mapping[str, Any]) -> bool:
    """Whether D decides nearly always right, with great certainty. Then its gradient is the same for all images.

    With the penalties R1 and R2, D can be right and uncertain, and its gradient is useful.
    """
    if not (is_measured(metrics, "d_accuracy") and is_measured(metrics, "d_fake")):
        return False
    return bool(metrics["d_accuracy"] >= NEARLY_ALWAYS and metrics["d_fake"] <= SURE)


def _weak_codes(metrics: Mapping[str, Any], ceilings: Mapping[str, float]) -> list[str]:
    """The codes whose bound is less than half of their ceiling (nats)."""
    measured = {
        name: ceiling for name, ceiling in ceilings.items() if ceiling > 0 and is_measured(metrics, f"mi/{name}")
    }
    return [name for name, ceiling in measured.items() if metrics[f"mi/{name}"] < ceiling / 2]


def _shared_categories(metrics: Mapping[str, Any]) -> str:
    """A sentence about kinds of images that share categories, by their labels. Empty if none do."""
    rows = {category: row for category, row in enumerate(metrics.get("confusion", [])) if sum(row)}
    if not rows:
        return ""
    code, categories = metrics["clustering_code"], len(metrics["confusion"])
    labels = [label for label, counts in enumerate(zip(*rows.values(), strict=True)) if sum(counts)]
    if len(labels) > categories:
        return (
            f"{code} has {categories} categories for {len(labels)} kinds of images, so kinds share categories. A prior "
            "with more categories separates them (--codes)."
        )
    names = metrics.get("classes") or range(len(next(iter(rows.values()))))
    most_common = {max(labels, key=lambda label: row[label]) for row in rows.values()}
    missing = [str(names[label]) for label in labels if label not in most_common]
    large = {category: row for category, row in rows.items() if sum(row) >= LEAST_IMAGES}
    mixed = [str(category) for category, row in large.items() if sorted(row)[-2:][0] >= MIXED * sum(row)]
    if missing:
        found = f"No category of {code} holds mostly {_first(missing)}"
    elif mixed and len(labels) > 1:
        one = len(mixed) == 1
        found = (
            f"{'Category' if one else 'Categories'} {_first(mixed)} of {code} {'holds' if one else 'hold'} two kinds"
        )
    else:
        return ""
    return (
        f"{found}, so kinds share categories. Another --seed may separate them: train several, and take the one with "
        "the largest q_score."
    )


def _first(words: list[str], most: int = 5) -> str:
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def failures(metrics: Mapping[str, Any], ceilings: Mapping[str, float]) -> list[str]:
    """A sentence or two for each failure that the metrics of an evaluation show. Empty if they show none.

    ``ceilings``: the ceiling of each code's bound, in nats.
    """
    found = []
    if names := _collapsed(metrics):
        name = names[0]
        found.append(
            f"G makes the same picture again and again{COLLAPSES[name]}: generated images differ "
            f"{REGISTRY[name].text(metrics[name])} times as much as real ones. {HELP}."
        )
    if is_measured(metrics, "unused_categories") and metrics["unused_categories"] >= 1:
        count = int(metrics["unused_categories"])
        words = "1 category has" if count == 1 else f"{count} categories have"
        found.append(
            f"{words} no real image: G uses them, but Q never predicts them for real images. Fewer categories, "
            "--prior.learn or --stability.restart-every help."
        )
    if sentence := _shared_categories(metrics):
        found.append(sentence)
    if weak := _weak_codes(metrics, ceilings):
        found.append(
            f"Q predicts {', '.join(weak)} badly: the bound is less than half of the ceiling. More --steps help, or a "
            "larger weight (--objective.lambda-code)."
        )
    if _is_d_certain(metrics):
        found.append(
            f"D was right in {metrics['d_accuracy']:.1%} of its decisions at this step, and certain, so G learned "
            "little from it. --stability.r1 and a smaller --optimizer.lr-discriminator make D weaker."
        )
    return found
