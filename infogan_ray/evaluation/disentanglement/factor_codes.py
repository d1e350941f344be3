"""The codes of images whose factors are known, and each score of disentanglement as a function of them."""

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


@dataclass(frozen=True)
class FactorCodes:
    """Codes of images to learn from and of other images to be judged on; what several scores need is computed once."""

    learn: Encoded
    judge: Encoded
    config: DisentanglementConfig

    @cached_property
    def information(self) -> np.ndarray:
        """I(code; factor) / H(factor), (D, F)."""
        return shares(self.learn)

    @cached_property
    def gaps(self) -> np.ndarray:
        """(F,) of ``information``, which MIG is the mean of."""
        return gaps(self.information)

    @cached_property
    def dci(self) -> dict[str, float]:
        few, count = self.learn, self.config.tree_images
        some = Encoded(few.codes[:count], few.categories, few.classes[:count], few.sizes, few.ordered)
        return dci(some, self.judge, self.config.tree_rounds, self.config.seed)


def mig_score(codes: FactorCodes) -> float:
    return float(codes.gaps.mean())


def sap_score(codes: FactorCodes) -> float:
    return sap(codes.learn, codes.judge, codes.config.seed)


def dci_score(part: str, codes: FactorCodes) -> float:
    """``part``: disentanglement, completeness or informativeness."""
    return codes.dci[f"dci_{part}"]


def factor_vae_score(codes: FactorCodes) -> float:
    return factor_vae(codes.learn, codes.judge, rng_of(codes.config.seed, 2))


def beta_vae_score(codes: FactorCodes) -> float:
    return beta_vae(codes.learn, codes.judge, rng_of(codes.config.seed, 3))


def rng_of(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
