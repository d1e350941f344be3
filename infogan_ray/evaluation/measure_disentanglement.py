"""All disentanglement scores of a representation. The scores share one set of images with known factors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from infogan_ray.data.factors import FactorSet
from infogan_ray.evaluation.disentanglement.encoded import Encoded, Representation
from infogan_ray.evaluation.disentanglement.factor_codes import DisentanglementConfig, FactorCodes, rng_of
from infogan_ray.evaluation.metrics import DISENTANGLEMENT, values_of

BATCH = 500
PROGRESS_INTERVAL_S = 10.0


THOROUGH = DisentanglementConfig(tree_images=10_000, tree_rounds=100)  # as disentanglement_lib; takes minutes


def measure(
    representation: Representation, factors: FactorSet, config: DisentanglementConfig | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """The registry's disentanglement metrics (each from 0 to 1), ``mig_by_factor`` and ``information``.

    ``information`` is I(code; factor) / H(factor) by code and factor. It shows which factor each code represents.
    Needs scikit-learn (the extra ``eval``). Raises UserError for codes that are not finite.
    """
    config = config or DisentanglementConfig()
    began = time.monotonic()
    train = encode(representation, factors, config.train, config.seed, 0, say)
    test = encode(representation, factors, config.test, config.seed, 1, say)
    say(f"disentanglement: {config.train + config.test:,} images encoded in {time.monotonic() - began:.0f} s")
    say(f"disentanglement: training boosted trees for {sum(factors.sizes)} classes")
    codes = FactorCodes(train, test, config)
    scores: dict[str, Any] = dict(values_of(DISENTANGLEMENT, codes))
    say(f"disentanglement: measured in {time.monotonic() - began:.0f} s")
    scores["mig_by_factor"] = dict(zip(factors.names, codes.gaps.tolist(), strict=True))
    scores["information"] = {
        code: dict(zip(factors.names, row, strict=True))
        for code, row in zip(representation.names, codes.information.tolist(), strict=True)
    }
    return scores


def encode(
    representation: Representation, factors: FactorSet, count: int, seed: int, stream: int,
    say: Callable[[str], None] = print,
) -> Encoded:  # fmt: skip
    """Codes of ``count`` images, whose factors are sampled uniformly and independently."""
    classes = rng_of(seed, stream).integers(factors.sizes, size=(count, len(factors.sizes)), dtype=np.int64)
    codes, last_report = [], time.monotonic()
    for start in range(0, count, BATCH):
        codes.append(representation.read(factors.images(torch.from_numpy(classes[start : start + BATCH]))))
        if time.monotonic() - last_report > PROGRESS_INTERVAL_S:
            last_report = time.monotonic()
            say(f"disentanglement: {start + len(codes[-1]):,} of {count:,} images encoded")
    return Encoded(np.concatenate(codes), representation.categories, classes, factors.sizes, factors.ordered)
