"""The registry of metrics. All code that measures, ranks, shows or logs metrics uses it.

To add a metric, add an entry. Its group decides the arguments of its function: see ``GROUPS``. ``measure.py`` calls
the functions. ``texts.py`` formats metrics for users.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.clustering import (
    adjusted_rand_index,
    balanced_error,
    entropy,
    hungarian_accuracy,
    majority_error,
    normalised_mutual_information,
)
from infogan_ray.evaluation.disentanglement.factor_codes import (
    beta_vae_score,
    dci_score,
    factor_vae_score,
    mig_score,
    sap_score,
)
from infogan_ray.evaluation.fidelity.distances import frechet_distance, kernel_distance
from infogan_ray.evaluation.fidelity.manifolds import precision, recall
from infogan_ray.evaluation.sliced_wasserstein import sliced_wasserstein
from infogan_ray.evaluation.spread import feature_spread, spread, spread_in_category
from infogan_ray.evaluation.unsupervised_metrics import q_consistency, q_information, q_neighbours, q_score
from infogan_ray.models.losses import mi_fraction

# What a metric needs.
LABELS, CATEGORICAL_CODE, REAL_IMAGES = "labels", "a categorical code", "real images"
FACTORS, INCEPTION, OTHER_TRIALS = "known factors", "Inception's weights", "other trials"
# When a metric is measured, if its needs are met. --metric accepts metrics that are measured at checkpoints.
CHECKPOINT, END, SEARCH, REQUEST = "at each checkpoint", "at the end of a run", "in a search", "on request"
EXTRA = "eval"  # installs the packages that some functions import

BOUND, LABELLED, SORTING, QUALITY, SPREAD = "bound", "agreement", "sorting", "achieved", "spread"
USAGE = "usage"
FIDELITY, INCEPTION_GROUP, DISENTANGLEMENT, SEARCH_GROUP = "fidelity", "fid", "disentanglement", "search"
GROUPS = {  # the arguments of each group's functions; a group's name is the first part of its TensorBoard tags
    BOUND: "(spec, bounds): the latent codes, and the bound of each in nats",
    LABELLED: "(counts): clustering.CategoryCounts of the best categorical code",
    SORTING: "(sorting): unsupervised_metrics.Sorting of the best categorical code",
    USAGE: "(sorting): as above",
    QUALITY: "(real, other): uint8 images (N, C, H, W); other are generated, or other real ones for NAME_data",
    SPREAD: "(distances): spread.Distances",
    FIDELITY: "(real, other): features (N, D) of a classifier; other as above",
    INCEPTION_GROUP: "(real, other): features (N, D) of Inception; other as above",
    DISENTANGLEMENT: "(codes): disentanglement.factor_codes.FactorCodes",
    SEARCH_GROUP: "no function: search_directory.py compares finished trials",
}


@dataclass(frozen=True)
class Metric:
    name: str
    """The key in metrics.jsonl, state.json, metrics.json and leaderboards."""
    title: str
    """Two or three words for users."""
    sentence: str
    """The definition, for help texts, reports and trackers."""
    group: str
    function: Callable[..., float] | None
    """See ``GROUPS``."""
    lower_is_better: bool = False
    unit: str = ""
    form: str = ".3f"
    """The format specification for ``format``."""
    needs: tuple[str, ...] = ()
    measured: str = CHECKPOINT
    headline: bool = False
    """Whether short views show it: cards, tables of runs and trials, results in trackers."""
    one_prior: bool = False
    """Whether two values can be compared only if the codes have the same priors."""
    package: str | None = None
    """The optional package that the function imports."""
    one_is_best: bool = False
    """Whether values near 1 are good and larger ones are not better. Such a metric ranks nothing."""

    def text(self, value: float) -> str:
        return f"{value:{self.form}}{f' {self.unit}' if self.unit else ''}"

    @property
    def heading(self) -> str:
        """The heading of a table column, with the unit. The cells then have no unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def direction(self) -> str:
        return "small is good" if self.lower_is_better else "1 is good" if self.one_is_best else "large is good"

    @property
    def description(self) -> str:
        unit = f" In {self.unit}." if self.unit else ""
        return f"{self.sentence}{unit} {self.direction.capitalize()}."

    @property
    def missing(self) -> str:
        """The command that installs the function's missing package. Empty if no package is missing."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return ""
        return f"{self.name} needs {self.package}: pip install 'infogan-ray[{EXTRA}]'"


AGREEMENT_NEEDS, SORTING_NEEDS = (LABELS, CATEGORICAL_CODE), (REAL_IMAGES, CATEGORICAL_CODE)

_ENTRIES = (
    Metric(
        "mi_fraction", "bound over ceiling",
        "Mean over codes of the bound divided by its ceiling, at most 1. It can compare different priors.",
        BOUND, mi_fraction, headline=True,
    ),
    Metric(
        "mi_bound", "bound",
        "Variational lower bound on the mutual information between images and codes, summed over codes.",
        BOUND, lambda spec, bounds: sum(bounds.values()), unit="nats", headline=True, one_prior=True,
    ),
    Metric(
        "clustering_error", "clustering error",
        "Share of test images whose label is not the majority label of their category. Training does not use labels.",
        LABELLED, lambda counts: majority_error(counts.train, counts.test),
        lower_is_better=True, form=".1%", needs=AGREEMENT_NEEDS, headline=True,
    ),
    Metric(
        "balanced_error", "balanced error",
        "Mean over labels of their clustering error, so that rare labels count as much as frequent ones.",
        LABELLED, lambda counts: balanced_error(counts.train, counts.test),
        lower_is_better=True, form=".1%", needs=AGREEMENT_NEEDS,
    ),
    Metric(
        "clustering_acc_hungarian", "one-to-one accuracy",
        "Accuracy on test images under the best one-to-one matching of categories and labels.",
        LABELLED, lambda counts: hungarian_accuracy(counts.test), form=".1%", needs=AGREEMENT_NEEDS, package="scipy",
    ),
    Metric(
        "nmi", "NMI", "Normalised mutual information of categories and labels; at most 1.",
        LABELLED, lambda counts: normalised_mutual_information(counts.test), needs=AGREEMENT_NEEDS,
    ),
    Metric(
        "ari", "ARI", "Adjusted Rand index of categories and labels; at most 1, and 0 for chance.",
        LABELLED, lambda counts: adjusted_rand_index(counts.test), needs=AGREEMENT_NEEDS,
    ),
    Metric(
        "code_usage", "entropy of use", "Entropy of the category frequencies on the test images.",
        LABELLED, lambda counts: entropy(counts.test.sum(1)), unit="nats", needs=AGREEMENT_NEEDS,
    ),
    Metric(
        "q_information", "information",
        "Mutual information between real images and categories, as a share of the prior's entropy; at most 1.",
        SORTING, q_information, needs=SORTING_NEEDS,
    ),
    Metric(
        "q_consistency", "consistency",
        "Share of real images that keep their category after a small affine transformation, corrected for chance; "
        "at most 1.",
        SORTING, q_consistency, needs=SORTING_NEEDS,
    ),
    Metric(
        "q_neighbours", "neighbours",
        "Share of real images in the same category as their nearest neighbour, corrected for chance; at most 1.",
        SORTING, q_neighbours, needs=SORTING_NEEDS,
    ),
    Metric(
        "q_score", "sorting of real images",
        "Quality of Q's categories on real images, without labels. It is the geometric mean of q_information, "
        "q_consistency and q_neighbours.",
        SORTING, q_score, needs=SORTING_NEEDS, headline=True,
    ),
    Metric(
        "q_usage", "usage of categories",
        "Entropy of Q's category frequencies on real images, as a share of log k; at most 1.",
        SORTING, lambda sorting: entropy(sorting.categories.bincount().numpy()) / math.log(sorting.code.k),
        needs=SORTING_NEEDS,
    ),
    Metric(
        "unused_categories", "categories without real images",
        "Number of categories that Q predicts for no real image.",
        USAGE, lambda sorting: float(sorting.code.dim - len(sorting.categories.unique())), form=".0f",
        lower_is_better=True, needs=SORTING_NEEDS, measured=END,
    ),
    Metric(
        "spread", "spread",
        "Mean distance between generated images, divided by that between real images. Near 0, G makes the same picture "
        "again and again.",
        SPREAD, spread, form=".2f", needs=(REAL_IMAGES,), headline=True, one_is_best=True,
    ),
    Metric(
        "spread_in_category", "spread in a category",
        "As spread, among images of the same category. Q decides the categories of real images.",
        SPREAD, spread_in_category, form=".2f", needs=SORTING_NEEDS, one_is_best=True,
    ),
    Metric(
        "swd", "SWD", "Sliced Wasserstein distance between generated and real images.",
        QUALITY, sliced_wasserstein,
        lower_is_better=True, form=".1f", needs=(REAL_IMAGES,), measured=END, headline=True,
    ),
    Metric(
        "agreement", "agreement of trials",
        "Median agreement (NMI) of a trial's categories of real images with those of the other trials; at most 1.",
        SEARCH_GROUP, None, needs=(*SORTING_NEEDS, OTHER_TRIALS), measured=SEARCH, headline=True,
    ),
    Metric(
        "frechet_distance", "Fréchet distance",
        "Fréchet distance between generated and real images, on a classifier's features.",
        FIDELITY, frechet_distance, lower_is_better=True, needs=(LABELS, REAL_IMAGES), measured=REQUEST,
    ),
    Metric(
        "kernel_distance", "kernel distance",
        "Kernel distance between generated and real images, on a classifier's features.",
        FIDELITY, kernel_distance, lower_is_better=True, form=".4f", needs=(LABELS, REAL_IMAGES), measured=REQUEST,
    ),
    Metric(
        "precision", "precision", "Share of generated images that look real, on a classifier's features.",
        FIDELITY, precision, needs=(LABELS, REAL_IMAGES), measured=REQUEST,
    ),
    Metric(
        "recall", "recall", "Share of real images that the generator covers, on a classifier's features.",
        FIDELITY, recall, needs=(LABELS, REAL_IMAGES), measured=REQUEST,
    ),
    Metric(
        "feature_spread", "spread of features", "As spread, on a classifier's features.",
        FIDELITY, feature_spread, form=".2f", needs=(LABELS, REAL_IMAGES), measured=REQUEST, one_is_best=True,
    ),
    Metric(
        "fid", "FID", "Fréchet distance between generated and real images, on Inception's features.",
        INCEPTION_GROUP, frechet_distance, lower_is_better=True, form=".2f",
        needs=(REAL_IMAGES, INCEPTION), measured=REQUEST,
    ),
    Metric(
        "kid", "KID", "Kernel distance between generated and real images, on Inception's features.",
        INCEPTION_GROUP, kernel_distance, lower_is_better=True, form=".5f",
        needs=(REAL_IMAGES, INCEPTION), measured=REQUEST,
    ),
    Metric(
        "mig", "MIG", "Gap in mutual information between a factor's two most informative codes; mean over factors.",
        DISENTANGLEMENT, mig_score, needs=(FACTORS,), measured=REQUEST,
    ),
    Metric(
        "sap", "SAP", "Gap in score between the two codes that best predict a factor; mean over factors.",
        DISENTANGLEMENT, sap_score, needs=(FACTORS,), measured=REQUEST, package="sklearn",
    ),
    *(
        Metric(
            f"dci_{part}", f"DCI {part}", sentence, DISENTANGLEMENT,
            functools.partial(dci_score, part), needs=(FACTORS,), measured=REQUEST, package="sklearn",
        )
        for part, sentence in (
            ("disentanglement", "Degree to which each code depends on only one factor."),
            ("completeness", "Degree to which only one code depends on each factor."),
            ("informativeness", "Accuracy of boosted trees that predict the factors from all codes."),
        )
    ),
    Metric(
        "factor_vae", "FactorVAE score", "Accuracy of identifying the fixed factor from the code with least variance.",
        DISENTANGLEMENT, factor_vae_score, needs=(FACTORS,), measured=REQUEST,
    ),
    Metric(
        "beta_vae", "beta-VAE score", "Accuracy of a linear classifier that identifies the fixed factor.",
        DISENTANGLEMENT, beta_vae_score, needs=(FACTORS,), measured=REQUEST, package="sklearn",
    ),
)  # fmt: skip
REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _ENTRIES}

STEP = "step"  # --metric step selects the last checkpoint
SELECTABLE = (*(m.name for m in _ENTRIES if m.measured == CHECKPOINT and not m.one_is_best), STEP)
RUNG_METRICS = tuple(name for name in SELECTABLE[:-1] if LABELS not in REGISTRY[name].needs)
ONE_CATEGORY_ERROR = "one_category_error"  # no metric: it says nothing about a model. Measured for unbalanced labels
COMPARED_WITH_ERROR = ("balanced_error", ONE_CATEGORY_ERROR)
BOARD_RANKED = tuple(m.name for m in _ENTRIES if m.measured != REQUEST and not m.one_is_best)
HEADLINES = tuple(metric.name for metric in _ENTRIES if metric.headline)
BOARD_COLUMNS = tuple(metric.name for metric in _ENTRIES if metric.measured != REQUEST)


def of_group(*groups: str) -> list[Metric]:
    """The metrics of these groups, in the order of the registry."""
    return [metric for metric in _ENTRIES if metric.group in groups]


def values_of(group: str, *arguments: Any) -> dict[str, float]:
    """The values of a group's metrics by name. A metric whose package is not installed is left out."""
    return {
        metric.name: metric.function(*arguments)
        for metric in of_group(group)
        if metric.function is not None and not metric.missing
    }


def compared(group: str, real: Any, generated: Any, other: Any) -> dict[str, float]:
    """The metrics of a group that compares sets. NAME_data is the metric between two halves of the real set."""
    found: dict[str, float] = {}
    for suffix, images in (("", generated), ("_data", other)):
        found |= {f"{name}{suffix}": value for name, value in values_of(group, real, images).items()}
    return found


def is_in_group(name: str, group: str) -> bool:
    return name in REGISTRY and REGISTRY[name].group == group


def lower_is_better(name: str) -> bool:
    return name in REGISTRY and REGISTRY[name].lower_is_better


def is_one_prior(name: str) -> bool:
    """Whether values of a metric can be compared only if the codes have the same priors."""
    return name in REGISTRY and REGISTRY[name].one_prior


def needs(name: str, what: str) -> bool:
    return name in REGISTRY and what in REGISTRY[name].needs


def check_selectable(name: str, valid: tuple[str, ...] = SELECTABLE) -> None:
    """Raises UserError for a name that --metric does not accept."""
    if name not in valid:
        raise UserError(f"metric is '{name}'; valid are {', '.join(valid)}")


def check_needs(name: str, data: str, labels: bool, categorical: bool) -> None:
    """Raises UserError if a run cannot measure the metric that selects its best checkpoint.

    ``labels``: whether the data has labels. ``categorical``: whether the model has a categorical code.
    """
    if needs(name, LABELS) and not labels:
        raise UserError(f"metric is '{name}', which needs labels, and {data} has none")
    if needs(name, CATEGORICAL_CODE) and not categorical:
        raise UserError(f"metric is '{name}', which needs a categorical code; add cat=K to --codes")
    if name in REGISTRY and (missing := REGISTRY[name].missing):
        raise UserError(f"metric is '{name}', and {missing}")


def missing_packages(labels: bool) -> list[str]:
    """One line for each checkpoint metric that is left out because its package is not installed."""
    possible = (m for m in _ENTRIES if m.measured == CHECKPOINT and (labels or LABELS not in m.needs))
    return [metric.missing for metric in possible if metric.missing]


def metric_help() -> str:
    """The help text of --metric."""
    words = [
        f"{name} ({REGISTRY[name].title}{', small is good' if lower_is_better(name) else ''})"
        for name in SELECTABLE[:-1]
    ]
    return f"The metric that selects the best checkpoint: {', '.join(words)} or {STEP} (the last)."


def headlines_of(metrics: Mapping[str, Any], measured: tuple[str, ...] = (CHECKPOINT, END)) -> dict[str, Any]:
    """The headline metrics of a row. A metric that was not measured is None.

    For unbalanced labels, also what the clustering error must be compared with.
    """
    found = {name: metrics.get(name) for name in HEADLINES if REGISTRY[name].measured in measured}
    return found | {name: metrics[name] for name in COMPARED_WITH_ERROR if ONE_CATEGORY_ERROR in metrics}
