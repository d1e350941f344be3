"""ModelCentrality: of several models, the one that the others agree with most. No label is needed, and no real image.

Lin, Thekumparampil, Fanti and Oh 2020, "InfoGAN-CR and ModelCentrality" (arXiv:1906.06034, section 5). If factors are
in the data, good models find the same ones, while each bad model is bad in its own way; so a good one lies in the
middle. How alike two models are: the codes of model i are taken for the known factors, its generator makes images of
them, and A_ij is the FactorVAE score (``disentanglement.vae_scores``) of model j's recognition network on these images.
With B = (A + A^T) / 2, the centrality of model i is the mean of B_ij over all other models j; the largest is picked.

Where this differs from the authors' code (fjxmlzn/InfoGAN-CR), which draws the images of each vote anew and counts its
votes on themselves: votes are drawn from LEARN images and counted on JUDGE others, as for factors that are known.
Continuous codes take LEVELS values, the middles of equal shares of their prior, so that a vote's images share one.
Categorical and Bernoulli codes, which the paper does not have, are factors like any other.

Shapes: n models, (n, n) scores between 0 and 1; N images, F codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.disentanglement.encoded import Encoded, Representation, of_model
from infogan_ray.evaluation.disentanglement.vae_scores import factor_vae
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.rng import seeded_generator

LEVELS = 20
LEARN, JUDGE = 3000, 1500  # images by each generator


def centralities(scores: np.ndarray) -> np.ndarray:
    """(n,) the mean of B_ij = (A_ij + A_ji) / 2 over j other than i, from A (n, n), whose diagonal does not count.

    Raises UserError for less than three models, of which none is more central than another.
    """
    count = len(scores)
    if count < 3:
        raise UserError(f"models are {count}; centrality needs three or more, since two agree with each other alike")
    both = (scores + scores.T) / 2
    return np.array([np.delete(both[number], number).mean() for number in range(count)])


def cross_scores(models: Sequence[InfoGAN], before_each: Callable[[], None] = no_callback) -> np.ndarray:
    """A (n, n): row i has the FactorVAE scores of all models on images that model i generated; the diagonal is NaN.

    ``before_each`` is called before each of the n (n - 1) scores. Raises UserError for a model of one code.
    """
    for model in models:
        if len(model.codes) < 2:
            raise UserError(f"model {model.source} has one code; centrality needs two or more in each model")
    readers = [of_model(model) for model in models]
    scores = np.full((len(models), len(models)), np.nan)
    for i, model in enumerate(models):
        sizes = sizes_of(model.spec.latents)
        generated = []
        for part, count in enumerate((LEARN, JUDGE)):
            latents, classes = levelled(model.spec.latents, count, seeded_generator(0, "centrality", part))
            generated.append((model.generate(latents), classes))
        for j, reader in enumerate(readers):
            if i != j:
                before_each()
                learn, judge = (_encoded(reader, images, classes, sizes) for images, classes in generated)
                scores[i, j] = factor_vae(learn, judge, np.random.default_rng([i, j]))
    return scores


def sizes_of(spec: LatentSpec) -> tuple[int, ...]:
    """How many values each code takes as a factor."""
    return tuple(code.categories or LEVELS for code in spec.codes)


def levelled(spec: LatentSpec, n: int, generator: torch.Generator) -> tuple[Tensor, np.ndarray]:
    """Latents (n, L) from the prior, continuous codes at one of LEVELS values each; and which value it is, (n, F)."""
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


def _encoded(reader: Representation, images: Tensor, classes: np.ndarray, sizes: tuple[int, ...]) -> Encoded:
    return Encoded(reader.read(images), reader.categories, classes, sizes, (False,) * len(sizes))
