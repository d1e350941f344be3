"""The training state, the training step, and the loop that yields metrics. torch only: no Ray, no files.

Shapes: B this rank's share of the global batch, (B, C, H, W) images, (B, L) latents.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infogan_ray.consistency import ConsistencyConfig, affine, consistency_loss, half_moved, paired
from infogan_ray.data.augmentation import AugmentationConfig, augment, draw
from infogan_ray.data.feed import Feed, onto, share, to_unit_range
from infogan_ray.networks import BatchNorm, Generator, ModelSpec
from infogan_ray.objective import (
    ObjectiveConfig,
    discriminator_loss,
    generator_loss,
    information_bound,
    weighted_bound,
)
from infogan_ray.streams import seeded_generator

PRECISIONS = ("auto", "fp32", "bf16")
WIRES = ("fp32", "bf16")
CALIBRATION_BATCHES = 16
HALT_EVERY = 10


class Diverged(Exception):
    """A loss, a gradient or a bound is no longer finite: the run has nothing more to gain."""

    def __init__(self, step: int, quantity: str, value: float) -> None:
        super().__init__(f"{quantity} is {value} at step {step}")
        self.step, self.quantity = step, quantity


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

    def decay(self, step: int, steps: int) -> float:
        """What learning rates are multiplied by in the step after ``step`` of ``steps``."""
        falling = self.lr_decay * steps
        return min(1.0, (steps - step) / falling) if falling else 1.0

    def __post_init__(self) -> None:
        for name in ("lr_discriminator", "lr_generator"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; it must lie between 0 and 1, both excluded"
                )
        if self.wire not in WIRES:
            raise ValueError(f"optimizer.wire is '{self.wire}'; valid are {', '.join(WIRES)}")
        if not 0 <= self.lr_decay <= 1:
            raise ValueError(f"optimizer.lr_decay is {self.lr_decay}; it must lie between 0 and 1")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and less than 1")


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 where the hardware multiplies it natively: CPUs with AMX, GPUs from Ampere on."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


class TrainState:
    """Both players, the averaged generator, both optimisers, and the number of steps made."""

    def __init__(
        self, spec: ModelSpec, objective: ObjectiveConfig, optimizer: OptimizerConfig, *,
        consistency: ConsistencyConfig | None = None, augmentation: AugmentationConfig | None = None, seed: int = 0,
        device: torch.device | str = "cpu", precision: str = "fp32",
    ) -> None:  # fmt: skip
        self.spec, self.seed, self.device = spec, seed, torch.device(device)
        self.optimizer, self.consistency = optimizer, consistency or ConsistencyConfig()
        self.augmentation = augmentation or AugmentationConfig()
        self.lambdas = objective.weights(spec.latents)
        self.precision = resolve_precision(precision, self.device)
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # every rank starts from the same weights
            generator, discriminator = spec.build()
        self.generator, self.discriminator = generator.to(self.device), discriminator.to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.ema_decay = optimizer.ema_decay
        betas = (optimizer.beta1, optimizer.beta2)
        self.opt_g = torch.optim.Adam(self.generator.parameters(), optimizer.lr_generator, betas, fused=True)
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), optimizer.lr_discriminator, betas, fused=True)
        self.generate: nn.Module = self.generator
        self.discriminate: nn.Module = self.discriminator

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Train through ``wrap(module)``, which averages gradients over ranks (DistributedDataParallel)."""
        self.generate, self.discriminate = wrap(self.generator), wrap(self.discriminator)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def latents(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's rows of the step's global draw, (B, L): ranks differ; their union is the same for any world."""
        generator = seeded_generator(self.seed, "latents", self.step, self.device)
        return self.spec.latents.sample(batch_size, generator)[share(batch_size, rank, world_size)]

    def moves(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor | None:
        """This rank's rows of the step's maps (B, 2, 3) for the consistency term; None where that is off."""
        about = self.consistency
        if not about.weight:
            return None
        generator = seeded_generator(self.seed, "moves", self.step, self.device)
        draws = torch.rand(4, batch_size, generator=generator, device=self.device) * 2 - 1
        return affine(draws[:, share(batch_size, rank, world_size)], about.degrees, about.scale, about.shift)

    def augment(self, images: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's uint8 images (B, C, H, W) as the step's draw changes them."""
        if not self.augmentation.on:
            return images
        draws = draw(batch_size, self.seed, self.step, self.device, rank, world_size)
        return augment(images, self.augmentation, draws)

    def set_learning_rates(self, steps: int) -> None:
        """Those of the next step of so many."""
        factor = self.optimizer.decay(self.step, steps)
        for adam, rate in ((self.opt_d, self.optimizer.lr_discriminator), (self.opt_g, self.optimizer.lr_generator)):
            for group in adam.param_groups:
                group["lr"] = rate * factor

    @torch.no_grad()
    def update_average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)

    def averaged_generator(self) -> Generator:
        """The averaged generator in evaluation mode, with batch-norm statistics measured for its own weights.

        Statistics gathered while training belong to the raw weights, which move fast; here they are the mean over
        fresh latents of a fixed seed, so that the result depends on the weights alone.
        """
        norms = [module for module in self.average.modules() if isinstance(module, BatchNorm)]
        momenta, synchronised = [norm.momentum for norm in norms], [norm.synchronised for norm in norms]
        self.average.train()
        with torch.no_grad():
            for index in range(CALIBRATION_BATCHES):
                for norm in norms:
                    norm.momentum, norm.synchronised = 1 / (index + 1), False
                draw = seeded_generator(self.seed, "calibrate", index, self.device)
                self.average(self.spec.latents.sample(128, draw))
        for norm, momentum, sync in zip(norms, momenta, synchronised, strict=True):
            norm.momentum, norm.synchronised = momentum, sync
        return self.average.eval()

    def model_tensors(self) -> dict[str, Tensor]:
        """The averaged generator with calibrated statistics, and D with Q: all that a user of the model needs."""
        tensors = {f"generator.{k}": v for k, v in self.averaged_generator().state_dict().items()}
        return tensors | {f"discriminator.{k}": v for k, v in self.discriminator.state_dict().items()}

    def training_tensors(self) -> dict[str, Tensor]:
        """What else training needs to go on: the raw generator and both optimisers' moments.

        Random streams and the feed's position are functions of (seed, step) and need no saving.
        """
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        for name, optimizer in (("opt_g", self.opt_g), ("opt_d", self.opt_d)):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": v for k, v in moments.items()}
        return tensors

    def restore(self, step: int, model: dict[str, Tensor], training: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors. Raises ValueError if they belong to another model."""
        try:
            self.average.load_state_dict(_below("generator", model))
            self.discriminator.load_state_dict(_below("discriminator", model))
            self.generator.load_state_dict(_below("generator", training))
        except RuntimeError as error:
            raise ValueError(f"the checkpoint belongs to another model: {' '.join(str(error).split())}") from None
        for name, optimizer in (("opt_g", self.opt_g), ("opt_d", self.opt_d)):
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _below(name, training).items():
                index, _, kind = key.partition(".")
                moments.setdefault(int(index), {})[kind] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.step = step


def checkpoint_bytes(spec: ModelSpec) -> int:
    """What ``model_tensors`` and ``training_tensors`` take together, as float32."""
    with torch.device("meta"):
        generator, discriminator = (sum(p.numel() for p in module.parameters()) for module in spec.build())
    return 4 * (4 * generator + 3 * discriminator)  # averaged G, raw G, D, and two moments of each


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No weight gradient is computed inside: in G's step those of D and Q would be thrown away."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def train_step(
    state: TrainState, images: Tensor, latents: Tensor, weight: float = 1.0, moves: Tensor | None = None
) -> dict[str, Tensor]:
    """One update of D with Q, then one of G. ``images``: uint8 (B, C, H, W); ``latents``: (B, L). Nothing waits here.

    ``weight`` is B over the mean share of all ranks: where shares differ, it makes the mean of gradients that of rows.
    ``moves``: maps (B, 2, 3) of the consistency term, or None where that is off.
    Returns detached scalars: d_loss, g_loss, d_real and d_fake (D's mean probability of "real"), d_accuracy (the share
    of real and of made images that it judges rightly), both gradients' norms, train_mi/<code>, consistency_loss.
    """
    spec, count = state.spec.latents, len(images)

    # D's step: trunk, D head and Q head minimise the adversarial loss minus the weighted bound.
    with state.autocast():
        fakes, real = state.generate(latents), to_unit_range(images)
        if moves is not None:
            fakes, real = half_moved(fakes, moves), paired(real, moves)
        both = torch.cat([real, fakes.detach()])
        logits, q = state.discriminate(both, groups=2, q_from=count if moves is None else 0)
    real_logits, fake_logits = logits.chunk(2)
    bounds = information_bound(spec, latents, q[-count:])
    d_loss = discriminator_loss(real_logits, fake_logits)
    loss, extra = d_loss - weighted_bound(bounds, state.lambdas), {}
    if moves is not None:
        extra["consistency_loss"] = consistency_loss(spec, q[:count], state.consistency)
        loss = loss + state.consistency.weight_at(state.step) * extra["consistency_loss"]
    state.opt_d.zero_grad()
    (weight * loss).backward()
    d_norm = gradient_norm(state.discriminator)
    state.opt_d.step()

    # G's step: only G moves, on the same fakes, against the D and Q just made.
    with frozen(state.discriminator), state.autocast():
        logits, q = state.discriminator(fakes)
        g_loss = generator_loss(logits)
        information = weighted_bound(information_bound(spec, latents, q), state.lambdas)
        state.opt_g.zero_grad()
        (weight * (g_loss - information)).backward()
    g_norm = gradient_norm(state.generator)
    state.opt_g.step()

    state.step += 1
    state.update_average()
    metrics = {"d_loss": d_loss, "g_loss": g_loss, "d_grad_norm": d_norm, "g_grad_norm": g_norm}
    metrics |= {"d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean()}
    metrics["d_accuracy"] = ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2
    metrics |= extra | {f"train_mi/{name}": bound for name, bound in bounds.items()}
    return {name: value.detach() for name, value in metrics.items()}


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm over all of a module's gradients: not finite if any of them is not."""
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def never() -> bool:
    """The default of ``halt``: nobody asks the training to stop."""
    return False


def train(
    state: TrainState, feed: Feed, *, steps: int, log_every: int, checkpoint_every: int,
    rank: int = 0, world_size: int = 1, halt: Callable[[], bool] = never,
    stepped: Callable[[], None] | None = None,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Train up to ``steps``; yield means over all ranks every ``log_every`` steps and where a checkpoint is due.

    Ends early, on all ranks at the same step, when ``halt`` is true on any. Raises Diverged when a metric is not
    finite. The device is waited for only where metrics are read. ``stepped`` is called after each step.
    """
    window: list[dict[str, Tensor]] = []
    started = time.monotonic()
    # Ranks agree on a halt by a sum over all: at every step on a CPU, seldom on a GPU, which would have to wait for it.
    agree_every = 1 if state.device.type == "cpu" or world_size == 1 else HALT_EVERY
    while state.step < steps:
        if state.step % agree_every == 0 and _any_rank(halt(), world_size, state.device):
            return
        images = onto(state.device, feed.batch(state.step))
        images = state.augment(images, feed.batch_size, rank, world_size)
        weight = len(images) * world_size / feed.batch_size
        latents = state.latents(feed.batch_size, rank, world_size)
        state.set_learning_rates(steps)
        window.append(train_step(state, images, latents, weight, state.moves(feed.batch_size, rank, world_size)))
        if stepped is not None:
            stepped()
        step = state.step
        if step % log_every and step % checkpoint_every and step < steps:
            continue
        names = list(window[0])
        rows = torch.stack([torch.stack([row[name] for name in names]) for row in window]) * weight
        if world_size > 1:
            dist.all_reduce(rows)  # so that all ranks see a divergence at the same step
            rows /= world_size
        *each, means = torch.cat([rows, rows.mean(0, keepdim=True)]).tolist()  # the one place that waits for the device
        for row, at in zip(each, range(step - len(window) + 1, step + 1), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise Diverged(at, name, value)
        metrics: dict[str, float] = dict(zip(names, means, strict=True))
        metrics |= {"step": step, "epoch": step / feed.steps_per_epoch}
        metrics["images_per_second"] = len(window) * feed.batch_size / (time.monotonic() - started)
        yield metrics
        window, started = [], time.monotonic()


def _any_rank(flag: bool, world_size: int, device: torch.device) -> bool:
    if world_size == 1:
        return flag
    flags = torch.tensor([float(flag)], device=device)
    dist.all_reduce(flags)
    return bool(flags.item())
