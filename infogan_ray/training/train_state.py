"""The training state: networks, optimisers and step number. Also a step's random numbers and a checkpoint's tensors.

torch only: no Ray, no files. Shapes: B this rank's rows of the global batch, images (B, C, H, W), latents (B, L).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from infogan_ray import UserError
from infogan_ray.data.augmentation import augment, sample_uniforms
from infogan_ray.data.feeds.memory import share
from infogan_ray.models.batch_norm import calibrate
from infogan_ray.models.games import GAMES
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Generator, ModelSpec
from infogan_ray.models.precision import autocast, resolve_precision
from infogan_ray.models.rng import StepGenerators, seeded_generator
from infogan_ray.training.category_restarts import Restarts
from infogan_ray.training.category_splits import Splits
from infogan_ray.training.config import RunConfig
from infogan_ray.training.consistency import affine_transformations
from infogan_ray.training.contrastive import ContrastiveConfig, ContrastiveTerm, PairDiscriminator, Pairs
from infogan_ray.training.d_augmentation import UNIFORMS, AdaptiveProbability, augmented
from infogan_ray.training.learned_prior import LearnedPrior, mean_over_ranks
from infogan_ray.training.optimizer import make_adam, set_learning_rate
from infogan_ray.training.regularisers import mean_bias
from infogan_ray.training.step_inputs import Schedule, StepNoise

CALIBRATION_BATCHES = 16


class TrainState:
    """The networks, the averaged generator, the optimisers, and the number of finished steps."""

    def __init__(self, config: RunConfig, image_size: int, channels: int, device: torch.device | str = "cpu") -> None:
        """The state before the first step, for images (B, C, H, W) with these H = W and C."""
        spec = self.spec = config.model_spec(image_size, channels)
        objective, optimizer = config.objective, config.optimizer
        self.seed, self.device = config.seed, torch.device(device)
        self.rng = StepGenerators(config.seed, self.device)
        self.optimizer, self.consistency = optimizer, config.consistency
        self.augmentation, self.stability = config.augment, config.stability
        self.prior = LearnedPrior(config.prior, spec.latents, self.device)
        self.use_prior(self.prior.initial_spec(spec.latents))
        self.lambdas, self.game = objective.weights(spec.latents), GAMES[objective.game]
        self.precision = resolve_precision(config.precision, self.device)
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # the same initial weights on all ranks
            generator, discriminator = spec.build()
            has_pairs = config.contrastive.weight > 0
            self.contrastive = ContrastiveTerm(spec, config.contrastive, self.device) if has_pairs else None
        self.generator, self.discriminator = generator.to(self.device), discriminator.to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.ema_decay = optimizer.ema_decay
        self._calibrated: Tensor | None = None
        betas = (optimizer.beta1, optimizer.beta2)
        self.opt_g = make_adam(self.generator.parameters(), optimizer.lr_generator, betas)
        self.opt_d = make_adam(self.discriminator.parameters(), optimizer.lr_discriminator, betas)
        self.optimizers = {"opt_g": self.opt_g, "opt_d": self.opt_d}
        if self.contrastive is not None:
            adam = make_adam(self.contrastive.discriminator.parameters(), optimizer.lr_discriminator, betas)
            self.contrastive.adam = self.optimizers["opt_h"] = adam
        self.d_policies = self.stability.d_policies
        self.adaptive: AdaptiveProbability | None = None
        if self.stability.is_adaptive:
            target, images = self.stability.augment_d_target, self.stability.augment_d_images
            self.adaptive = AdaptiveProbability(target, images, config.batch_size, self.device)
        self.splits: Splits | None = None
        """Set by ``start.make_state``, which has the images."""
        self.restarts: Restarts | None = None
        if self.stability.restart_every:
            networks = (self.generator, self.average, self.discriminator)
            self.restarts = Restarts(spec.latents, self.stability, config.seed, networks, (self.opt_g, self.opt_d))
        self.generate: nn.Module = self.generator
        self.discriminate: nn.Module = self.discriminator

    def set_mean_bias(self, images: Tensor) -> None:
        """Before the first step: set G's bias so that its images have the mean of uint8 images (N, C, H, W)."""
        bias = mean_bias(images, self.generator.has_tanh).to(self.device)
        with torch.no_grad():
            for generator in (self.generator, self.average):
                generator.output_bias.copy_(bias)

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Train through ``wrap(module)``, which averages gradients over ranks (DistributedDataParallel)."""
        self.generate, self.discriminate = wrap(self.generator), wrap(self.discriminator)
        if self.step == 0:  # ``wrap`` has given all ranks the weights of rank 0
            self.average.load_state_dict(self.generator.state_dict())
        if self.contrastive is not None:
            self.contrastive.compare = wrap(self.contrastive.discriminator)

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.precision)

    def latents(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's rows (B, L) of the global batch's latents, which are the same for any world size."""
        generator = self.rng.at("latents", self.step)
        latents = self.spec.latents.sample(batch_size, generator)
        latents = self.prior.gumbel_softmax(self.spec.latents, latents, generator, self.step)
        return latents[share(batch_size, rank, world_size)]

    def augment(self, images: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's uint8 images (B, C, H, W), augmented for this step."""
        if not self.augmentation.on:
            return images
        uniforms = sample_uniforms(batch_size, self.rng.at("augment", self.step), rank, world_size)
        return augment(images, self.augmentation, uniforms)

    def schedule(self, steps: int | None = None) -> Schedule:
        """The schedule of the next step of a run of ``steps``. Without ``steps`` it has no instance noise."""
        stability, pairs = self.stability, self.contrastive.config if self.contrastive is not None else None
        return Schedule(
            stability.warmed(self.lambdas, self.step),
            self.consistency.weight_at(self.step),
            noise=stability.noise_at(self.step, steps) or None if steps is not None else None,
            gap=pairs.gap_at(self.step) if pairs is not None and self.step >= pairs.start else None,
            has_penalty=stability.has_penalty(self.step),
        )

    def step_noise(self, batch_size: int, schedule: Schedule, rank: int = 0, world_size: int = 1) -> StepNoise:
        """This rank's rows of the next step's random numbers."""
        mine = share(batch_size, rank, world_size)
        return StepNoise(
            self.transformations(batch_size, mine),
            self.pairs(batch_size, schedule, mine),
            self.instance_noise(batch_size, schedule, mine),
            self.signs(batch_size, schedule, mine),
            self.d_augmentation(batch_size, mine),
        )

    def transformations(self, batch_size: int, mine: slice) -> Tensor | None:
        """Affine transformations (B, 2, 3) for the consistency term; None if the term is off."""
        config = self.consistency
        if not config.weight:
            return None
        generator = self.rng.at("moves", self.step)
        numbers = torch.rand(config.num_random, batch_size, generator=generator, device=self.device) * 2 - 1
        return affine_transformations(numbers[:, mine], config)

    def pairs(self, batch_size: int, schedule: Schedule, mine: slice) -> Pairs | None:
        """Pairs of latents for the contrastive term; None if the term is off or has not started."""
        if self.contrastive is None or schedule.gap is None:
            return None
        generator = self.rng.at("pairs", self.step)
        return self.contrastive.sample_pairs(self.spec.latents, schedule.gap, batch_size, generator).rows(mine)

    def instance_noise(self, batch_size: int, schedule: Schedule, mine: slice) -> Tensor | None:
        """Instance noise (2B, C, H, W) for real and generated images; None if its standard deviation is 0."""
        if schedule.noise is None:
            return None
        shape = (2, batch_size, self.spec.channels, self.spec.image_size, self.spec.image_size)
        numbers = torch.randn(shape, generator=self.rng.at("noise", self.step), device=self.device)
        return schedule.noise * numbers[:, mine].flatten(0, 1)

    def signs(self, batch_size: int, schedule: Schedule, mine: slice) -> Tensor | None:
        """-1 or 1 (2B,) for real and for generated images, for R1 and R2; None in a step without them.

        0 for images whose penalty is off.
        """
        if not schedule.has_penalty:
            return None
        generator = self.rng.at("signs", self.step)
        weights = (self.stability.r1, self.stability.r2)
        bits = [torch.randint(2, (batch_size,), generator=generator, device=self.device)[mine] for _ in weights]
        return torch.cat([(2.0 * part - 1) * bool(weight) for part, weight in zip(bits, weights, strict=True)])

    def d_augmentation(self, batch_size: int, mine: slice) -> Tensor | None:
        """Random numbers (2B, UNIFORMS) in [0, 1) for D's augmentation; None if it is off."""
        if not self.d_policies:
            return None
        shape = (2, batch_size, UNIFORMS)
        numbers = torch.rand(shape, generator=self.rng.at("augment_d", self.step), device=self.device)
        return numbers[:, mine].flatten(0, 1)

    def inputs_of_d(self, images: Tensor, noise: StepNoise, rows: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """What D sees of images (N, C, H, W): augmented, then with instance noise. ``rows``: theirs in ``noise``.

        Also the images that Q reads, if these are others: those before the augmentation.

        Instance noise (Sønderby et al. 2017, arXiv:1610.04490, section 3): in D's step and in G's step, real and
        generated images get noise of the same distribution. The distributions of images then overlap, so D's gradient
        is useful.
        """
        for_q = None
        if noise.augmentation is not None:
            for_q = None if self.stability.augment_q else images
            probability = self.adaptive.value if self.adaptive is not None else None
            images = augmented(images, noise.augmentation[rows], self.d_policies, probability)
        return images if noise.instance_noise is None else images + noise.instance_noise[rows], for_q

    def set_learning_rates(self, steps: int) -> None:
        """Set the learning rates of the next step of a run of ``steps``."""
        factor = self.optimizer.decay(self.step, steps)
        for name, adam in self.optimizers.items():
            rate = self.optimizer.lr_generator if name == "opt_g" else self.optimizer.lr_discriminator
            set_learning_rate(adam, rate * factor)

    @property
    def needs_q_on_real(self) -> bool:
        """Whether ``after_step`` needs Q's parameters for real images."""
        return self.restarts is not None or self.prior.needs_q_on_real

    def after_step(self, q: Tensor, accuracy: Tensor, weight: float) -> dict[str, Tensor]:
        """Everything after the updates of D and G: the prior, the averaged generator, restarts and the step number.

        ``q``: Q's parameters (B, P) for real images, which may have no rows unless ``needs_q_on_real``. ``accuracy``:
        d_accuracy of this rank's rows. ``weight``: that of a ``Microbatch``. Returns metrics: the number of restarted
        categories, prior/<code>/... of a learned prior, and the probability of an adaptive augmentation.
        """
        metrics = self.prior.metrics()
        if self.adaptive is not None:
            self.adaptive.update(mean_over_ranks(weight * accuracy))
            metrics["augment_d_probability"] = self.adaptive.value.clone()
        self.prior.update_average(self.spec.latents, q, weight, self.step)
        self.step += 1
        self.update_average()
        if self.restarts is not None:
            metrics["restarted"] = self.restarts.after_step(self.step, q)
        self.use_prior(self.prior.updated_spec(self.spec.latents, self.step))
        return metrics

    def use_prior(self, latents: LatentSpec) -> None:
        """Use this specification for sampling and measurements from now on."""
        if latents is not self.spec.latents:
            self.spec = dataclasses.replace(self.spec, latents=latents)

    @torch.no_grad()
    def due_splits(self, steps: int) -> Splits | None:
        """The re-splits, if they follow the finished steps of ``steps``."""
        return self.splits if self.splits is not None and self.splits.is_due(self.step, steps) else None

    def update_average(self) -> None:
        """Update the exponential moving average of G's weights."""
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        average, raw = list(self.average.parameters()), list(self.generator.parameters())
        get_ema_multi_avg_fn(decay)(average, raw, self.step)

    def averaged_generator(self) -> Generator:
        """The averaged generator in evaluation mode, with batch-norm statistics for its own weights.

        The statistics of training belong to the raw weights, which change fast. This method measures them on latents
        from fixed seeds, so they depend on the weights alone. Statistics are computed once for the same weights, since
        a checkpoint calls this three times.
        """
        # Compares the weights, since PyTorch's version counters miss some changes on a GPU.
        weights = torch.cat([weight.detach().reshape(-1) for weight in self.average.parameters()])
        if self._calibrated is not None and torch.equal(weights, self._calibrated):
            return self.average.eval()
        generators = (seeded_generator(self.seed, "calibrate", n, self.device) for n in range(CALIBRATION_BATCHES))
        calibrate(self.average, (self.spec.latents.sample(128, generator) for generator in generators))
        self._calibrated = weights
        return self.average.eval()

    def model_tensors(self) -> dict[str, Tensor]:
        """The tensors of a published model: the averaged generator with its batch-norm statistics, and D with Q."""
        tensors = {f"generator.{k}": v for k, v in self.averaged_generator().state_dict().items()}
        return tensors | {f"discriminator.{k}": v for k, v in self.discriminator.state_dict().items()}

    def training_tensors(self) -> dict[str, Tensor]:
        """The other tensors that training needs to continue.

        The raw generator, H if there is one, the optimisers' moments, the learned prior, the restarts' usage, and the
        probability of an adaptive augmentation.
        Random numbers and the feed's position depend on (seed, step) alone and are not saved.
        """
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        if self.contrastive is not None:
            tensors |= {f"contrast.{k}": v for k, v in self.contrastive.discriminator.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": v for k, v in moments.items()}
        tensors |= {f"prior.{k}": v for k, v in self.prior.tensors().items()}
        if self.adaptive is not None:
            tensors["augment_d.probability"] = self.adaptive.value.clone()
        return tensors | ({"restarts.usage": self.restarts.usage} if self.restarts else {})

    def restore(self, step: int, model: dict[str, Tensor], training: dict[str, Tensor]) -> None:
        """Load a checkpoint's tensors. Raises UserError if they belong to another model.

        If the checkpoint has no contrastive term, H keeps its initial weights.
        """
        try:
            self.average.load_state_dict(_with_prefix("generator", model))
            self.discriminator.load_state_dict(_with_prefix("discriminator", model))
            self.generator.load_state_dict(_with_prefix("generator", training))
            if self.contrastive is not None and (weights := _with_prefix("contrast", training)):
                self.contrastive.discriminator.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the checkpoint belongs to another model: {' '.join(str(error).split())}") from None
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _with_prefix(name, training).items():
                index, _, kind = key.partition(".")
                moments.setdefault(int(index), {})[kind] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        if self.restarts and "restarts.usage" in training:
            self.restarts.usage.copy_(training["restarts.usage"])
        self.use_prior(self.prior.restore(_with_prefix("prior", training), self.spec.latents))
        if self.adaptive is not None and "augment_d.probability" in training:
            self.adaptive.value.copy_(training["augment_d.probability"])
        self.step = step


def checkpoint_bytes(spec: ModelSpec, contrastive: ContrastiveConfig | None = None) -> int:
    """The size in bytes of ``model_tensors`` and ``training_tensors`` together, as float32."""
    with torch.device("meta"):
        modules: list[nn.Module] = list(spec.build())
        if contrastive is not None and contrastive.weight:
            modules.append(PairDiscriminator(spec, len(contrastive.codes(spec.latents))))
    generator, *others = (sum(p.numel() for p in module.parameters()) for module in modules)
    return 4 * (4 * generator + 3 * sum(others))  # averaged G, raw G, D (and H), and two Adam moments of each


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix.``, by the rest of the name."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
