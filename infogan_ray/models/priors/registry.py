"""The kinds of priors, by their word in a specification."""

from __future__ import annotations

from infogan_ray.models.priors.base import Prior
from infogan_ray.models.priors.bernoulli import Bernoulli
from infogan_ray.models.priors.categorical import Categorical
from infogan_ray.models.priors.gaussian import Gaussian
from infogan_ray.models.priors.uniform import Uniform
from infogan_ray.models.priors.von_mises import VonMises

KINDS: dict[str, type[Prior]] = {
    Categorical.kind: Categorical,
    Uniform.kind: Uniform,
    Gaussian.kind: Gaussian,
    Bernoulli.kind: Bernoulli,
    VonMises.kind: VonMises,
}
