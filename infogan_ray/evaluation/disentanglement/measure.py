"""All scores of one representation on one set of known factors, from images that are read once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infogan_ray import UserError
from infogan_ray.data.factors import FactorSet
from infogan_ray.evaluation.disentanglement.encoded import Encoded, Representation
from infogan_ray.evaluation.disentanglement.information import gaps, shares
from infogan_ray.evaluation.disentanglement.prediction import dci, sap
from infogan_ray.evaluation.disentanglement.vae_scores import beta_vae, factor_vae

BATCH = 500
EVERY_S = 10.0  # between lines of progress


@dataclass(frozen=True)
class DisentanglementConfig:
    learn: int = 10_000
    """Images that scores learn from; drawn from all combinations of factors, as those that they are judged on."""
    judge: int = 5_000
    tree_images: int = 5_000
    """Of those to learn from, how many DCI's trees see."""
    tree_rounds: int = 20
    """Of boosting: a tree for each class in each round."""
    seed: int = 20180612

    def __post_init__(self) -> None:
        if min(self.learn, self.judge, self.tree_images) < 100 or self.tree_rounds < 1:
            raise UserError(
                f"disentanglement: learn is {self.learn}, judge {self.judge} and tree_images {self.tree_images}; each "
                f"must be at least 100, and tree_rounds, which is {self.tree_rounds}, at least 1"
            )


THOROUGH = DisentanglementConfig(tree_images=10_000, tree_rounds=100)  # as disentanglement_lib; minutes


def measure(
    representation: Representation, factors: FactorSet, config: DisentanglementConfig | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """``mig``, ``sap``, ``dci_*``, ``factor_vae`` and ``beta_vae``, each 0 to 1, large is good; ``mig_by_factor``; and
    ``information``, I(code; factor) / H(factor) by code and factor, which says what each code stands for.

    Needs scikit-learn (the extra ``eval``). Raises UserError for codes that are not finite.
    """
    config = config or DisentanglementConfig()
    began = time.monotonic()
    learn = encode(representation, factors, config.learn, config.seed, 0, say)
    judge = encode(representation, factors, config.judge, config.seed, 1, say)
    say(f"disentanglement: {config.learn + config.judge:,} images read in {time.monotonic() - began:.0f} s")
    table = shares(learn)
    by_factor = gaps(table)
    scores: dict[str, Any] = {"mig": float(by_factor.mean()), "sap": sap(learn, judge, config.seed)}
    few = Encoded(
        learn.codes[: config.tree_images],
        learn.categories,
        learn.classes[: config.tree_images],
        learn.sizes,
        learn.ordered,
    )
    say(f"disentanglement: boosted trees for {sum(factors.sizes)} classes")
    scores |= dci(few, judge, config.tree_rounds, config.seed)
    scores["factor_vae"] = factor_vae(learn, judge, _rng(config.seed, 2))
    scores["beta_vae"] = beta_vae(learn, judge, _rng(config.seed, 3))
    say(f"disentanglement: measured in {time.monotonic() - began:.0f} s")
    scores["mig_by_factor"] = dict(zip(factors.names, by_factor.tolist(), strict=True))
    scores["information"] = {
        code: dict(zip(factors.names, row, strict=True))
        for code, row in zip(representation.names, table.tolist(), strict=True)
    }
    return scores


def encode(
    representation: Representation, factors: FactorSet, count: int, seed: int, stream: int,
    say: Callable[[str], None] = print,
) -> Encoded:  # fmt: skip
    """``count`` images of factors drawn uniformly and apart from each other, and their codes."""
    classes = _rng(seed, stream).integers(factors.sizes, size=(count, len(factors.sizes)), dtype=np.int64)
    codes, said = [], time.monotonic()
    for start in range(0, count, BATCH):
        codes.append(representation.read(factors.images(torch.from_numpy(classes[start : start + BATCH]))))
        if time.monotonic() - said > EVERY_S:
            said = time.monotonic()
            say(f"disentanglement: {start + len(codes[-1]):,} of {count:,} images read")
    return Encoded(np.concatenate(codes), representation.categories, classes, factors.sizes, factors.ordered)


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
