"""The presets: the values in which each differs from the defaults of RunConfig."""

from __future__ import annotations

from typing import Any

ROBUST: dict[str, Any] = {
    "codes": "noise=62 cat=10 uniform=2",
    "steps": 4000,
    "consistency": {"weight": 1.0},
    "optimizer": {"lr_decay": 0.5},
    "stability": {"resplit_every": 1000},  # without it, two digits can share two categories to the end
    "metric": "step",
}
PRESETS: dict[str, dict[str, Any]] = {
    "mnist": {"data": "mnist", "codes": "noise=62 cat=10 uniform=2", "steps": 5000},
    "mnist_robust": {**ROBUST, "data": "mnist"},
    "fashion_mnist": {"data": "fashion_mnist", "codes": "noise=62 cat=10 uniform=2", "steps": 5000},
    "svhn": {"codes": "noise=124 cat=10x4 uniform=4", "image_size": 32, "channels": 3, "steps": 30_000},
    "celeba": {"codes": "noise=128 cat=10x10", "image_size": 32, "channels": 3, "steps": 30_000},
    "faces": {
        "codes": "noise=128 uniform=5",
        "image_size": 32,
        "channels": 1,
        "steps": 20_000,
        "objective": {"lambda_continuous": 0.2},
        "optimizer": {"lr_generator": 5e-4},
    },
    "chairs": {
        "codes": "noise=128 cat=20x3 uniform=1",
        "image_size": 64,
        "channels": 1,
        "steps": 30_000,
        "objective": {"lambda_continuous": 10.0},
    },
    "shapes": {
        "data": "shapes",
        "codes": "noise=52 uniform=5",
        "image_size": 32,  # at 64, D recognises generated images by the noise on their dark background from the start
        "channels": 1,
        "batch_size": 64,
        "steps": 24_000,
        "metric": "step",
        "objective": {"lambda_continuous": 0.2},  # with 1 all codes learn at the same time, and none equals one factor
        "network": {"width": 16, "spectral_norm": True},
        "stability": {"mean_bias": True},
    },
    "glyphs": {**ROBUST, "image_size": 32, "channels": 1},  # for letters and signs of one's own
    "photos": {  # docs/images.md compares it with the paper's form
        "codes": "noise=62 cat=10 uniform=2",
        "batch_size": 64,
        "steps": 20_000,
        # The gradient of a D with penalties is small. With larger weights, or with a slow D, the codes become noise.
        "objective": {"game": "relativistic", "lambda_categorical": 0.1, "lambda_continuous": 0.05},
        "network": {"plan": "doubling", "width": 32, "d_norm": "none"},
        "optimizer": {"lr_discriminator": 1e-3},
        "stability": {"r1": 0.1, "r2": 0.1, "r1_every": 4, "augment_d": "colour translation"},
    },
}
