"""Divides the images of two categories anew, if the categories share two kinds of images.

Two categories can hold the same two kinds of images, and divide them by something else. On MNIST some runs divide 4 and
9 by slant, from the first thousand steps to the end. The bound and the prior are content with that, and the consistency
term nearly so. A re-split looks for a better division of the images of two categories, without labels:

- Candidates are spectral (Shi & Malik 2000). Each image is connected with the images whose features in D's trunk are
  nearest. Eigenvectors of this graph's Laplacian order the images, and each order is cut at the share of the prior.
- The rows of both categories in Q's last layer are fitted to a candidate, by logistic regression with all images.
- A candidate is better if fewer images have a transformed copy on the other side than in Q's own division. The copies
  are those of the consistency term, and are sheared too. Training makes Q's own division as insensitive to the term's
  transformations as the better one. Shear changes the slant, and training does not shear images by default.

Q gets the rows of the better candidate. Then the columns of both categories in G's first layer are fitted to them: G
generates what Q now predicts. Without that, Q learns from the old images of G, and returns to the old division.
Shapes: N images, F features of the trunk, H hidden units of Q, k categories of one code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from infogan_ray.data.affine import transform
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator, Generator, frozen
from infogan_ray.models.priors.discrete import probabilities_on
from infogan_ray.models.recognition import evaluating, recognise
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.consistency import ConsistencyConfig, affine_transformations

IMAGES_PER_CATEGORY = 1200  # with 500, the neighbours of 4 and 9 on MNIST do not show the better division
MOST_IMAGES = 12_000
NEIGHBOURS = 10
CANDIDATES = 2
SHEAR = 0.3  # of the copies, in widths per height. At 0.2 and 0.4, the same divisions of 4 and 9 are better
PAIRS = 2  # the pairs that a transformation confuses most
OF_A_PAIR = range(100, 4001)  # with fewer images the graph says little; with more, it takes minutes
SIGMAS = 3.0  # by how many standard deviations a new division must be better
WEIGHT_DECAY, ITERATIONS = 1e-3, 30  # of the logistic regression
STEPS, BATCH, RATE = 60, 128, 0.1  # of the fit of G's columns; the rate is a share of their root mean square


@dataclass(frozen=True)
class Split:
    """A new division of two categories of one code."""

    pair: tuple[int, int]
    weight: Tensor
    """(2, H) the new rows of both categories in Q's last layer."""
    bias: Tensor
    """(2,)"""
    before: int
    """Images of both categories whose copy is on the other side of Q's own division."""
    after: int

    def __str__(self) -> str:
        return (
            f"categories {self.pair[0]} and {self.pair[1]} shared two kinds of images, and Q divides them anew (images "
            f"with a copy on the other side: {self.before:,} before, {self.after:,} now)"
        )


class Splits:
    """Makes re-splits during training. Rank 0 finds new divisions, and all ranks apply them."""

    def __init__(
        self, every: int, images: Tensor, transformation: ConsistencyConfig,
        networks: tuple[Generator, Generator, Discriminator], optimizers: tuple[torch.optim.Adam, torch.optim.Adam],
    ) -> None:  # fmt: skip
        """``images``: real ones, uint8 (N, C, H, W), of which rank 0 uses up to MOST_IMAGES; other ranks need none.
        ``transformation``: that of the consistency term. ``networks``: G, the averaged G, and D with Q. ``optimizers``:
        of G, and of D with Q."""
        self.every = every
        self.transformation = replace(transformation, shear=max(SHEAR, transformation.shear))
        self.images = images
        self.chosen = torch.randperm(len(images), generator=seeded_generator(0, "splits"))[:MOST_IMAGES]
        self.generators, self.discriminator = networks[:2], networks[2]
        last = self.discriminator.recognition[-1]
        assert isinstance(last, nn.Linear)
        self.last = last
        self.opt_g, self.opt_d = optimizers

    def is_due(self, step: int, steps: int) -> bool:
        """Whether re-splits follow ``step`` finished steps of ``steps``. In the second half of a run there are none."""
        return step % self.every == 0 and 2 * step <= steps

    @torch.no_grad()
    def divide(self, spec: LatentSpec, rank: int = 0, world_size: int = 1) -> list[str]:
        """Make the re-splits that are better, with the prior of ``spec``. All ranks must call it.

        Returns a sentence for each, on rank 0.
        """
        found, said = self.find(spec) if rank == 0 else {}, []
        for name, _ in spec.one_hot_items():
            for number in range(PAIRS):
                split = found[name][number] if number < len(found.get(name, [])) else None
                rows = self.last.weight.new_full((2, 2 + self.last.in_features), -1.0)  # category, bias, weight
                if split is not None:
                    rows[:, 0], rows[:, 1], rows[:, 2:] = rows.new_tensor(split.pair), split.bias, split.weight
                    said.append(f"{name}: {split}")
                pair = from_rank_zero(rows, world_size)[:, 0].long().tolist()
                if pair[0] >= 0:
                    self._apply(spec, name, pair, rows, rank, world_size)
        return said

    def find(self, spec: LatentSpec) -> dict[str, list[Split]]:
        """The new divisions of each code, by its name."""
        if len(self.chosen) <= NEIGHBOURS:
            return {}
        features: list[Tensor] = []
        units: list[Tensor] = []
        logits, hidden = [], []
        with (
            self.discriminator.recognition.register_forward_pre_hook(lambda _, x: features.append(x[0].float().cpu())),
            self.last.register_forward_pre_hook(lambda _, x: units.append(x[0].float().cpu())),
        ):
            for change in (self.copies, lambda images: images):  # the last features are those of the images
                features.clear()
                units.clear()
                parts = (change(self.images[rows]) for rows in self.chosen.split(500))
                logits.append(spec.split_q(torch.cat([recognise(self.discriminator, part) for part in parts])))
                hidden.append(torch.cat(units))
        all_features, found = torch.cat(features).flatten(1), {}
        for name, code in spec.one_hot_items():
            n, prior = IMAGES_PER_CATEGORY * code.dim, probabilities_on(code, torch.device("cpu"))
            of_copies, own = ((h[:n], q[name][:n]) for h, q in zip(hidden, logits, strict=True))
            found[name] = list(new_divisions(all_features[:n], own, of_copies, prior))
        return found

    def copies(self, images: Tensor) -> Tensor:
        """A transformed copy of each image, uint8 (N, C, H, W). The same images have the same copies."""
        rng = seeded_generator(0, "split copies")
        uniforms = 2 * torch.rand(self.transformation.num_random, len(images), generator=rng) - 1
        maps = affine_transformations(uniforms, self.transformation)
        return transform(images.float(), maps).round().to(torch.uint8)

    def _apply(self, spec: LatentSpec, name: str, pair: list[int], q_rows: Tensor, rank: int, world_size: int) -> None:
        """Set the rows of Q and the columns of G that belong to a pair of categories."""
        rows = [spec.q_columns(name).start + category for category in pair]
        self.last.weight[rows], self.last.bias[rows] = q_rows[:, 2:], q_rows[:, 1]
        layer = self.generators[0].first_layer.weight
        columns = [spec.columns(name).start + category for category in pair]
        new = layer[:, columns]
        if rank == 0:
            new = fit_columns(spec, name, pair, self.generators[0], self.discriminator)
        new = from_rank_zero(new.contiguous(), world_size)
        for generator in self.generators:
            generator.first_layer.weight[:, columns] = new
        # Adam's mean gradient belongs to the old division. Its mean square stays, as the size of usual gradients.
        self.opt_d.state[self.last.weight]["exp_avg"][rows] = 0
        self.opt_d.state[self.last.bias]["exp_avg"][rows] = 0
        self.opt_g.state[layer]["exp_avg"][:, columns] = 0


def from_rank_zero(tensor: Tensor, world_size: int) -> Tensor:
    """The tensor of rank 0, on every rank."""
    if world_size > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def new_divisions(
    features: Tensor, own: tuple[Tensor, Tensor], of_copies: tuple[Tensor, Tensor], prior: Tensor
) -> Iterator[Split]:
    """The better divisions of pairs of categories. No category is in two pairs.

    ``features`` (N, F). ``own``, ``of_copies``: Q's hidden units (N, H) and logits (N, k) of the images, and of a
    slightly transformed copy of each. ``prior`` (k,): the categories' probabilities.
    """
    (hidden, logits), (hidden_of_copies, logits_of_copies) = own, of_copies
    categories, copies, k = logits.argmax(1), logits_of_copies.argmax(1), len(prior)
    confused = torch.zeros(k, k).index_put_((categories, copies), torch.ones(()), accumulate=True)
    confused = confused + confused.T
    used: set[int] = set()
    for pair in sorted(combinations(range(k), 2), key=lambda pair: -float(confused[pair]))[:PAIRS]:
        rows = ((categories == pair[0]) | (categories == pair[1])).nonzero().flatten()
        if len(rows) not in OF_A_PAIR or used & set(pair):
            continue
        before, best = other_sides(logits[rows], logits_of_copies[rows], pair), None
        for side in spectral_divisions(features[rows], float(prior[pair[0]] / prior[list(pair)].sum())):
            target = categories.clone()
            target[rows] = torch.where(side, pair[0], pair[1])
            weight, bias = fit_rows(hidden, logits, target, pair)
            new, new_of_copies = (nn.functional.linear(each[rows], weight, bias) for each in (hidden, hidden_of_copies))
            after = other_sides(new, new_of_copies)
            if best is None or after < best.after:
                best = Split(pair, weight, bias, before, after)
        # The standard deviation of a difference of two counts of rare events is the root of their sum.
        if best is not None and before - best.after > SIGMAS * math.sqrt(before + best.after):
            used |= set(pair)
            yield best


def other_sides(logits: Tensor, of_copies: Tensor, pair: tuple[int, int] = (0, 1)) -> int:
    """The number of images whose copy has the larger logit at the other category of ``pair``. Both are (n, k)."""
    first, second = pair
    return int(((logits[:, first] > logits[:, second]) != (of_copies[:, first] > of_copies[:, second])).sum())


def spectral_divisions(features: Tensor, share: float = 0.5) -> list[Tensor]:
    """CANDIDATES divisions (N,) of images with features (N, F). ``share`` of the images are on the side of True.

    The graph connects each image with those of the smallest angle between their features. The eigenvectors are those of
    its normalised Laplacian, from the second on (Shi & Malik 2000, section 3).
    """
    unit = nn.functional.normalize(features)
    nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(NEIGHBOURS).indices
    graph = torch.zeros(len(features), len(features)).scatter_(1, nearest, 1.0)
    graph = torch.maximum(graph, graph.T)
    scale = graph.sum(1).rsqrt()
    _, vectors = torch.linalg.eigh(torch.eye(len(graph)) - scale[:, None] * graph * scale)
    order = (scale[:, None] * vectors[:, 1 : 1 + CANDIDATES]).argsort(0)
    places = torch.zeros_like(order).scatter_(0, order, torch.arange(len(graph))[:, None].expand_as(order))
    return list((places >= round((1 - share) * len(graph))).T)


@torch.enable_grad()
def fit_rows(hidden: Tensor, logits: Tensor, target: Tensor, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weight (2, H) and bias (2,) of both categories, with which Q predicts ``target``. The others keep their logits.

    ``hidden`` (N, H), ``logits`` (N, k), ``target`` (N,) categories. Maximum likelihood with weight decay, from 0.
    """
    parameters = torch.zeros(2, hidden.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([parameters], max_iter=ITERATIONS)
    columns = torch.tensor(pair)

    def loss() -> Tensor:
        solver.zero_grad()
        new = nn.functional.linear(hidden, parameters[:, 1:], parameters[:, 0])
        value = nn.functional.cross_entropy(logits.index_copy(1, columns, new), target)
        value = value + WEIGHT_DECAY * parameters[:, 1:].square().sum()
        value.backward()
        return value

    solver.step(loss)
    fitted = parameters.detach()
    return fitted[:, 1:], fitted[:, 0]


@torch.enable_grad()
def fit_columns(
    spec: LatentSpec, name: str, pair: list[int], generator: Generator, discriminator: Discriminator
) -> Tensor:
    """Columns (F, 2) of both categories in G's first layer (F, L), for which Q predicts them. They start at their mean.

    Half of each batch has one of both categories, and the loss is the cross-entropy of these rows.
    """
    layer, rng = generator.first_layer, seeded_generator(0, "split columns", device=generator.first_layer.weight.device)
    [weight_name] = [key for key, value in generator.named_parameters() if value is layer.weight]
    start, offset = layer.weight.detach().clone(), spec.columns(name).start
    columns = torch.tensor([offset + category for category in pair], device=start.device)
    start[:, columns] = start[:, columns].mean(1, keepdim=True)
    change = torch.zeros_like(start[:, columns], requires_grad=True)
    adam = torch.optim.Adam([change], lr=RATE * float(start[:, columns].square().mean().sqrt()), betas=(0.5, 0.999))
    categories = torch.tensor(pair, device=start.device)
    with evaluating(generator, discriminator), frozen(discriminator):
        for _ in range(STEPS):
            latents = spec.sample(BATCH, rng)
            target = categories[torch.arange(BATCH // 2, device=start.device) % 2]
            latents[: BATCH // 2, spec.columns(name)] = nn.functional.one_hot(target, spec[name].dim).to(latents)
            images = functional_call(generator, {weight_name: start.index_add(1, columns, change)}, (latents,))
            logits = spec.split_q(discriminator(images)[1])[name][: BATCH // 2]
            [change.grad] = torch.autograd.grad(nn.functional.cross_entropy(logits, target), change)
            adam.step()
    return (start[:, columns] + change).detach()
