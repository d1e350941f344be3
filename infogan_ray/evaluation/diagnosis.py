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
HELP = "The preset photos helps if the run has another form, and so do more images"


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


def failures(metrics: Mapping[str, Any]) -> list[str]:
    """One sentence or two for each failure that the metrics of an evaluation show. Empty if they show none."""
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
    if _is_d_certain(metrics):
        found.append(
            f"D was right in {metrics['d_accuracy']:.1%} of its decisions at this step, and certain, so G learned "
            "little from it. --stability.r1 and a smaller --optimizer.lr-discriminator make D weaker."
        )
    return found
