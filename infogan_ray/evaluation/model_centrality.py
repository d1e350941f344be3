"""ModelCentrality: select the model that agrees most with all others. It needs neither labels nor real images.

Lin, Thekumparampil, Fanti and Oh 2020, "InfoGAN-CR and ModelCentrality" (arXiv:1906.06034, section 5). Good models find
the same factors of the data, but bad models differ from each other. So good models agree more with the others.

Agreement of models i and j: generator i makes images, and its codes are their known factors. A_ij is the FactorVAE
score (``disentanglement.vae_scores``) of model j's recognition network on these images. With B = (A + A^T) / 2, the
centrality of model i is the mean of B_ij over all other models j. The model with the largest centrality is selected.

Differences from the authors' code (fjxmlzn/InfoGAN-CR):

- That code generates new images for each vote and computes accuracy on the training votes. Here votes are sampled from
  TRAIN_IMAGES images, and accuracy is computed on TEST_IMAGES other ones, as for known factors.
- Continuous codes take LEVELS values, the centres of equal shares of their prior, so that images can share a value.
- Categorical and Bernoulli codes, which the paper does not have, are factors like the others.

Shapes: n models, (n, n) scores between 0 and 1; N images, F codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.disentanglement.encoded import Encoded, Representation, model_representation
from infogan_ray.evaluation.disentanglement.vae_scores import factor_vae
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.rng import seeded_generator

LEVELS = 20
TRAIN_IMAGES, TEST_IMAGES = 3000, 1500  # from each generator


def centralities(scores: np.ndarray) -> np.ndarray:
    """(n,) the mean of B_ij = (A_ij + A_ji) / 2 over all j other than i, from A (n, n). The diagonal is ignored.

    Raises UserError for fewer than three models: two models always have equal centrality.
    """
    count = len(scores)
    if count < 3:
        raise UserError(f"models are {count}; centrality needs three or more, because two always have equal centrality")
    symmetric = (scores + scores.T) / 2
    return np.array([np.delete(symmetric[number], number).mean() for number in range(count)])


def cross_scores(models: Sequence[InfoGAN], before_each: Callable[[], None] = no_callback) -> np.ndarray:
    """A (n, n): row i has the FactorVAE scores of all models on images from generator i. The diagonal is NaN.

    ``before_each`` runs before each of the n (n - 1) scores. Raises UserError for a model with only one code.
    """
    for model in models:
        if len(model.codes) < 2:
            raise UserError(f"model {model.source} has one code; centrality needs two or more in each model")
    representations = [model_representation(model) for model in models]
    scores = np.full((len(models), len(models)), np.nan)
    for i, model in enumerate(models):
        sizes = sizes_of(model.spec.latents)
        generated = []
        for split, count in enumerate((TRAIN_IMAGES, TEST_IMAGES)):
            latents, classes = sample_levels(model.spec.latents, count, seeded_generator(0, "centrality", split))
            generated.append((model.generate(latents), classes))
        for j, representation in enumerate(representations):
            if i != j:
                before_each()
                train, test = (_encode(representation, images, classes, sizes) for images, classes in generated)
                scores[i, j] = factor_vae(train, test, np.random.default_rng([i, j]))
    return scores


def sizes_of(spec: LatentSpec) -> tuple[int, ...]:
    """The number of values of each code when it is used as a factor."""
    return tuple(code.categories or LEVELS for code in spec.codes)


def sample_levels(spec: LatentSpec, n: int, generator: torch.Generator) -> tuple[Tensor, np.ndarray]:
    """Latents (n, L) from the prior, and the index (n, F) of each code's value. Continuous codes take LEVELS values."""
    columns, classes = [spec.sample_noise(n, generator)], []
    for code in spec.codes:
        if code.categories is not None:
            values = code.sample(n, generator)
            classes.append(code.value_of(values).long())
        else:
            classes.append(torch.randint(LEVELS, (n,), generator=generator))
            values = code.quantile((classes[-1][:, None] + 0.5) / LEVELS)
        columns.append(values)
    return torch.cat(columns, 1), torch.stack(classes, 1).numpy()


def _encode(
    representation: Representation, images: Tensor, classes: np.ndarray, sizes: tuple[int, ...]
) -> Encoded:  # fmt: skip
    return Encoded(representation.read(images), representation.categories, classes, sizes, (False,) * len(sizes))
