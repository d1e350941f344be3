"""The disentanglement scores, as functions of the codes of images with known factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infogan_ray import UserError
from infogan_ray.evaluation.disentanglement.encoded import Encoded
from infogan_ray.evaluation.disentanglement.information import gaps, shares
from infogan_ray.evaluation.disentanglement.prediction import dci, sap
from infogan_ray.evaluation.disentanglement.vae_scores import beta_vae, factor_vae


@dataclass(frozen=True)
class DisentanglementConfig:
    train: int = 10_000
    """Number of images in the train split. Factors are sampled from all combinations, in both splits."""
    test: int = 5_000
    """Number of images in the test split."""
    tree_images: int = 5_000
    """Number of images of the train split that DCI's trees use."""
    tree_rounds: int = 20
    """Rounds of boosting. Each round trains one tree per class."""
    seed: int = 20180612

    def __post_init__(self) -> None:
        if min(self.train, self.test, self.tree_images) < 100 or self.tree_rounds < 1:
            raise UserError(
                f"disentanglement: train is {self.train}, test {self.test} and tree_images {self.tree_images}; each "
                f"must be at least 100, and tree_rounds, which is {self.tree_rounds}, at least 1"
            )


@dataclass(frozen=True)
class FactorCodes:
    """The codes of the train and test split. Intermediate results that several scores use are cached."""

    train: Encoded
    test: Encoded
    config: DisentanglementConfig

    @cached_property
    def information(self) -> np.ndarray:
        """I(code; factor) / H(factor), (D, F)."""
        return shares(self.train)

    @cached_property
    def gaps(self) -> np.ndarray:
        """(F,) the gaps of ``information``. MIG is their mean."""
        return gaps(self.information)

    @cached_property
    def dci(self) -> dict[str, float]:
        train, count = self.train, self.config.tree_images
        subset = Encoded(train.codes[:count], train.categories, train.classes[:count], train.sizes, train.ordered)
        return dci(subset, self.test, self.config.tree_rounds, self.config.seed)


def mig_score(codes: FactorCodes) -> float:
    return float(codes.gaps.mean())


def sap_score(codes: FactorCodes) -> float:
    return sap(codes.train, codes.test, codes.config.seed)


def dci_score(part: str, codes: FactorCodes) -> float:
    """``part``: disentanglement, completeness or informativeness."""
    return codes.dci[f"dci_{part}"]


def factor_vae_score(codes: FactorCodes) -> float:
    return factor_vae(codes.train, codes.test, rng_of(codes.config.seed, 2))


def beta_vae_score(codes: FactorCodes) -> float:
    return beta_vae(codes.train, codes.test, rng_of(codes.config.seed, 3))


def rng_of(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
