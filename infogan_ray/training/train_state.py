"""The training state: both players and what steps change, what a step draws, and what a checkpoint takes of it.

torch only: no Ray, no files. Shapes: B this rank's share of the global batch, (B, C, H, W) images, (B, L) latents.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.data.augmentation import AugmentationConfig, augment, draw
from infogan_ray.data.feeds.memory import share
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import ObjectiveConfig
from infogan_ray.models.networks import Generator, ModelSpec, calibrate
from infogan_ray.models.precision import autocast, resolve_precision
from infogan_ray.models.rng import Streams, seeded_generator
from infogan_ray.training.adam import Adam
from infogan_ray.training.category_restarts import Restarts
from infogan_ray.training.consistency import ConsistencyConfig, moves
from infogan_ray.training.contrastive import Contrast, ContrastiveConfig, PairDiscriminator, Pairs
from infogan_ray.training.learned_prior import LearnedPrior, PriorConfig
from infogan_ray.training.regularisers import StabilityConfig, mean_bias

WIRES = ("fp32", "bf16")
CALIBRATION_BATCHES = 16


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for both players. D's step also trains Q: trunk, D head and Q head share its learning rate."""

    lr_discriminator: float = 2e-4
    lr_generator: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    ema_decay: float = 0.999
    """Decay per step of the averaged generator; shorter in the first steps, so that it forgets where it started."""
    lr_decay: float = 0.0
    """Share of all steps, the last ones, over which both learning rates fall linearly to 0."""

    wire: str = "fp32"
    """What several workers send their gradients as: fp32, or bf16 for half the bytes at 8 significant bits."""

    accumulate: int = 1
    """Parts in which a worker computes its images of a step, one after another, with batch-norm statistics of its own
    for each: less memory, and gradients are sent once for all. Each part is like another worker's share."""

    def decay(self, step: int, steps: int) -> float:
        """What learning rates are multiplied by in the step after ``step`` of ``steps``."""
        falling = self.lr_decay * steps
        return min(1.0, (steps - step) / falling) if falling else 1.0

    def __post_init__(self) -> None:
        for name in ("lr_discriminator", "lr_generator"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"optimizer.{name} is {getattr(self, name)}; it must lie between 0 and 1, both excluded"
                )
        if self.accumulate < 1:
            raise UserError(f"optimizer.accumulate is {self.accumulate}; it must be at least 1")
        if self.wire not in WIRES:
            raise UserError(f"optimizer.wire is '{self.wire}'; valid are {', '.join(WIRES)}")
        if not 0 <= self.lr_decay <= 1:
            raise UserError(f"optimizer.lr_decay is {self.lr_decay}; it must lie between 0 and 1")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and less than 1")


class Draws(NamedTuple):
    """This rank's rows of what a step draws beside its images and latents; None for what is off."""

    moves: Tensor | None = None
    """(B, 2, 3) maps of the consistency term."""
    pairs: Pairs | None = None
    """Of the contrastive term."""
    noise: Tensor | None = None
    """(2B, C, H, W) on what D sees."""
    signs: Tensor | None = None
    """(B,) for R1."""

    def rows(self, some: slice) -> Draws:
        """Those of some of the B rows."""
        moves, pairs, noise, signs = self
        return Draws(
            None if moves is None else moves[some], None if pairs is None else pairs.rows(some),
            None if noise is None else noise.unflatten(0, (2, -1))[:, some].flatten(0, 1),
            None if signs is None else signs[some],
        )  # fmt: skip


Number = float | Tensor  # Python's, or a scalar on the device


class Course(NamedTuple):
    """What follows a schedule at a step; None for what is off."""

    lambdas: Mapping[str, Number]
    """Weights of the bound by code name."""
    consistency: Number
    """Weight of the consistency term."""
    noise: Number | None = None
    """Standard deviation of instance noise."""
    gap: Number | None = None
    """Of the contrastive term's pairs."""
    penalised: bool = False
    """Whether R1 is taken."""


class TrainState:
    """Both players, the averaged generator, both optimisers, and the number of steps made."""

    def __init__(
        self, spec: ModelSpec, objective: ObjectiveConfig, optimizer: OptimizerConfig, *,
        consistency: ConsistencyConfig | None = None, contrastive: ContrastiveConfig | None = None,
        prior: PriorConfig | None = None, augmentation: AugmentationConfig | None = None,
        stability: StabilityConfig | None = None, seed: int = 0, device: torch.device | str = "cpu",
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        self.spec, self.seed, self.device = spec, seed, torch.device(device)
        self.streams = Streams(seed, self.device)
        self.optimizer, self.consistency = optimizer, consistency or ConsistencyConfig()
        self.augmentation = augmentation or AugmentationConfig()
        self.stability = stability or StabilityConfig()
        self.prior = LearnedPrior(prior or PriorConfig(), spec.latents, self.device)
        self.use_prior(self.prior.first(spec.latents))
        self.lambdas = objective.weights(spec.latents)
        self.precision = resolve_precision(precision, self.device)
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # every rank starts from the same weights
            generator, discriminator = spec.build()
            contrastive = contrastive or ContrastiveConfig()
            self.contrast = Contrast(spec, contrastive, self.device) if contrastive.weight else None
        self.generator, self.discriminator = generator.to(self.device), discriminator.to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.ema_decay = optimizer.ema_decay
        self._calibrated: list[float] = []
        betas = (optimizer.beta1, optimizer.beta2)
        self.opt_g = Adam(self.generator.parameters(), optimizer.lr_generator, betas)
        self.opt_d = Adam(self.discriminator.parameters(), optimizer.lr_discriminator, betas)
        self.optimizers = {"opt_g": self.opt_g, "opt_d": self.opt_d}
        if self.contrast is not None:
            self.optimizers["opt_h"] = self.contrast.optimise(optimizer.lr_discriminator, betas)
        self.restarts: Restarts | None = None
        if self.stability.restart_every:
            players = (self.generator, self.average, self.discriminator)
            self.restarts = Restarts(spec.latents, self.stability, seed, players, (self.opt_g, self.opt_d))
        self.generate: nn.Module = self.generator
        self.discriminate: nn.Module = self.discriminator

    def begin_as_bright_as(self, images: Tensor) -> None:
        """Before the first step: G's images have the mean of these, uint8 (N, C, H, W) (``stability.mean_bias``)."""
        bias = mean_bias(images).to(self.device)
        with torch.no_grad():
            for generator in (self.generator, self.average):
                generator.output_bias.copy_(bias)

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Train through ``wrap(module)``, which averages gradients over ranks (DistributedDataParallel)."""
        self.generate, self.discriminate = wrap(self.generator), wrap(self.discriminator)
        if self.step == 0:  # ``wrap`` has given all ranks the first one's beginning
            self.average.load_state_dict(self.generator.state_dict())
        if self.contrast is not None:
            self.contrast.compare = wrap(self.contrast.discriminator)

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.precision)

    def latents(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's rows of the step's global draw, (B, L): ranks differ; their union is the same for any world."""
        generator = self.streams.at("latents", self.step)
        drawn = self.spec.latents.sample(batch_size, generator)
        drawn = self.prior.relaxed(self.spec.latents, drawn, generator, self.step)
        return drawn[share(batch_size, rank, world_size)]

    def moves(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor | None:
        """This rank's rows of the step's maps (B, 2, 3) for the consistency term; None where that is off."""
        about = self.consistency
        if not about.weight:
            return None
        generator = self.streams.at("moves", self.step)
        draws = torch.rand(about.draws, batch_size, generator=generator, device=self.device) * 2 - 1
        return moves(draws[:, share(batch_size, rank, world_size)], about)

    def pairs(
        self, batch_size: int, rank: int = 0, world_size: int = 1, course: Course | None = None
    ) -> Pairs | None:  # fmt: skip
        """This rank's rows of the step's pairs for the contrastive term; None where that is off or has not begun."""
        gap = (course or self.course()).gap
        if self.contrast is None or gap is None:
            return None
        generator = self.streams.at("pairs", self.step)
        return self.contrast.draw(self.spec.latents, gap, batch_size, generator).rows(
            share(batch_size, rank, world_size)
        )

    def augment(self, images: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's uint8 images (B, C, H, W) as the step's draw changes them."""
        if not self.augmentation.on:
            return images
        draws = draw(batch_size, self.streams.at("augment", self.step), rank, world_size)
        return augment(images, self.augmentation, draws)

    def noise(
        self, batch_size: int, steps: int, rank: int = 0, world_size: int = 1, course: Course | None = None
    ) -> Tensor | None:  # fmt: skip
        """Instance noise (2B, C, H, W) for this rank's real and drawn images; None where that is off or over."""
        deviation = (course or self.course(steps)).noise
        if deviation is None:
            return None
        size, generator = self.spec.image_size, self.streams.at("noise", self.step)
        shape = (2, batch_size, self.spec.channels, size, size)
        draws = torch.randn(shape, generator=generator, device=self.device)
        return deviation * draws[:, share(batch_size, rank, world_size)].flatten(0, 1)

    def signs(
        self, batch_size: int, rank: int = 0, world_size: int = 1, course: Course | None = None
    ) -> Tensor | None:  # fmt: skip
        """-1 or 1 for each of this rank's real images, (B,), for R1; None in a step without it."""
        if not (course or self.course()).penalised:
            return None
        generator = self.streams.at("signs", self.step)
        coins = torch.randint(2, (batch_size,), generator=generator, device=self.device)
        return 2.0 * coins[share(batch_size, rank, world_size)] - 1

    def course(self, steps: int | None = None) -> Course:
        """Of the next step of so many; without their number, without instance noise."""
        stability, pairs = self.stability, self.contrast.config if self.contrast is not None else None
        return Course(
            stability.warmed(self.lambdas, self.step), self.consistency.weight_at(self.step),
            noise=stability.noise_at(self.step, steps) or None if steps is not None else None,
            gap=pairs.gap_at(self.step) if pairs is not None and self.step >= pairs.start else None,
            penalised=stability.penalises(self.step),
        )  # fmt: skip

    def set_learning_rates(self, steps: int) -> None:
        """Those of the next step of so many."""
        factor = self.optimizer.decay(self.step, steps)
        for name, adam in self.optimizers.items():
            rate = self.optimizer.lr_generator if name == "opt_g" else self.optimizer.lr_discriminator
            adam.set_learning_rate(rate * factor)

    def draws(
        self, batch_size: int, steps: int, rank: int = 0, world_size: int = 1, course: Course | None = None
    ) -> Draws:  # fmt: skip
        """Of the next step of so many, by its course."""
        course = course or self.course(steps)
        return Draws(
            self.moves(batch_size, rank, world_size), self.pairs(batch_size, rank, world_size, course),
            self.noise(batch_size, steps, rank, world_size, course), self.signs(batch_size, rank, world_size, course),
        )  # fmt: skip

    @property
    def asks_q(self) -> bool:
        """Whether what Q says of real images is needed, even without the consistency term."""
        return self.restarts is not None or self.prior.reads_real

    def after_step(self, q: Tensor, weight: float) -> dict[str, Tensor]:
        """What follows both updates; returns its metrics.

        ``q``: what Q said (B, P) of real images, without rows unless ``asks_q``; ``weight``: as in ``train_step``.
        """
        metrics = self.prior.metrics()
        self.prior.see(self.spec.latents, q, weight, self.step)
        self.step += 1
        self.update_average()
        if self.restarts is not None:
            metrics["restarted"] = self.restarts.after(self.step, q)
        self.use_prior(self.prior.renewed(self.spec.latents, self.step))
        return metrics

    def use_prior(self, latents: LatentSpec) -> None:
        """From here on latents are drawn, and all is measured, by this specification."""
        if latents is not self.spec.latents:
            self.spec = dataclasses.replace(self.spec, latents=latents)

    @torch.no_grad()
    def update_average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)

    def averaged_generator(self) -> Generator:
        """The averaged generator in evaluation mode, with batch-norm statistics measured for its own weights.

        Statistics gathered while training belong to the raw weights, which move fast; here they are the mean over
        fresh latents of a fixed seed, so that the result depends on the weights alone. Measured once while they stay:
        a checkpoint asks three times.
        """
        weights: list[Tensor] = list(self.average.parameters())
        # Of the weights themselves: PyTorch's count of writes misses some on a GPU.
        marks: list[float] = torch.stack([*torch._foreach_norm(weights, 1), *torch._foreach_norm(weights)]).tolist()
        if marks == self._calibrated:
            return self.average.eval()
        draws = (seeded_generator(self.seed, "calibrate", index, self.device) for index in range(CALIBRATION_BATCHES))
        calibrate(self.average, (self.spec.latents.sample(128, draw) for draw in draws))
        self._calibrated = marks
        return self.average.eval()

    def model_tensors(self) -> dict[str, Tensor]:
        """The averaged generator with calibrated statistics, and D with Q: all that a user of the model needs."""
        tensors = {f"generator.{k}": v for k, v in self.averaged_generator().state_dict().items()}
        return tensors | {f"discriminator.{k}": v for k, v in self.discriminator.state_dict().items()}

    def training_tensors(self) -> dict[str, Tensor]:
        """What else training needs to go on: the raw generator, H where there is one, and the optimisers' moments.

        Random streams and the feed's position are functions of (seed, step) and need no saving.
        """
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        if self.contrast is not None:
            tensors |= {f"contrast.{k}": v for k, v in self.contrast.discriminator.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": v for k, v in moments.items()}
        tensors |= {f"prior.{k}": v for k, v in self.prior.tensors().items()}
        return tensors | ({"restarts.usage": self.restarts.usage} if self.restarts else {})

    def restore(self, step: int, model: dict[str, Tensor], training: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors. Raises UserError if they belong to another model.

        From a checkpoint of a run without the contrastive term, H begins as it was made.
        """
        try:
            self.average.load_state_dict(_below("generator", model))
            self.discriminator.load_state_dict(_below("discriminator", model))
            self.generator.load_state_dict(_below("generator", training))
            if self.contrast is not None and (weights := _below("contrast", training)):
                self.contrast.discriminator.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the checkpoint belongs to another model: {' '.join(str(error).split())}") from None
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _below(name, training).items():
                index, _, kind = key.partition(".")
                moments.setdefault(int(index), {})[kind] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        if self.restarts and "restarts.usage" in training:
            self.restarts.usage.copy_(training["restarts.usage"])
        self.use_prior(self.prior.restore(_below("prior", training), self.spec.latents))
        self.step = step


def checkpoint_bytes(spec: ModelSpec, contrastive: ContrastiveConfig | None = None) -> int:
    """What ``model_tensors`` and ``training_tensors`` take together, as float32."""
    with torch.device("meta"):
        modules: list[nn.Module] = list(spec.build())
        if contrastive is not None and contrastive.weight:
            modules.append(PairDiscriminator(spec, len(contrastive.codes(spec.latents))))
    generator, *others = (sum(p.numel() for p in module.parameters()) for module in modules)
    return 4 * (4 * generator + 3 * sum(others))  # averaged G, raw G, D (and H), and two moments of each


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
