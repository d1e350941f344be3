"""The gradients of the whole objective, for D with Q and for G, in float64.

Run: pytest tests/training/test_gradients.py
Each is compared with the gradient of the objective as the papers write it, and with a finite difference of that
objective. Games, penalties, the consistency term and λ per code are in it together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.training.consistency import consistency_loss, transform_half, with_copies
from infogan_ray.training.d_augmentation import augmented
from infogan_ray.training.regularisers import gradient_penalties
from infogan_ray.training.step import discriminator_step, generator_step
from infogan_ray.training.step_inputs import Microbatch, StepNoise
from infogan_ray.training.train_state import TrainState
from tests.conftest import make_image_set, tiny_config

ROWS = 8
STABILITY = {"r1": 2.0, "r2": 3.0, "label_smoothing": 0.1}
FORMS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "logistic with everything": {"stability": STABILITY, "consistency": {"weight": 0.5, "start": 0, "full": 1}},
    "relativistic": {
        "objective": {"game": "relativistic", "lambda_code": {"cat0": 0.7}},
        "stability": STABILITY, "network": {"d_norm": "none", "output": "linear"},
    },
    "relativistic with everything, residual": {
        "objective": {"game": "relativistic"}, "consistency": {"weight": 0.5, "start": 0, "full": 1},
        "stability": STABILITY, "network": {"architecture": "residual", "d_norm": "none", "output": "linear"},
    },
    "augmented, Q not": {
        "objective": {"game": "relativistic"}, "network": {"d_norm": "none", "output": "linear"},
        "stability": {**STABILITY, "augment_d": "colour translation cutout flip"},
        "consistency": {"weight": 0.5, "start": 0, "full": 1},
    },
    "augmented, Q too": {"stability": {**STABILITY, "augment_d": "colour flip", "augment_q": True}},
    "relativistic with batch norm": {"objective": {"game": "relativistic"}, "stability": STABILITY},
}  # fmt: skip


class Objective:
    """The losses of one step, written as in the papers, on fixed images, latents and random numbers in float64."""

    def __init__(self, form: dict[str, Any]) -> None:
        # With slope 1, D has no kinks. At a kink the penalties jump, and their finite difference would be wrong.
        network = {"leaky_slope": 1.0, **form.get("network", {})}
        config = tiny_config().override({**form, "network": network}, "test")
        state = TrainState(config, 16, 1)
        for module in (state.generator, state.discriminator):
            for weight in module.double().parameters():
                if not weight.any():  # a branch that starts at zero would hide the gradients of its other layers
                    nn.init.normal_(weight, 0, 0.1)
        state.step = 1  # the consistency term is on
        self.state, self.schedule = state, state.schedule()._replace(has_penalty=bool(state.stability.penalties))
        noise = state.step_noise(ROWS, self.schedule)
        self.noise = StepNoise(*(None if part is None else part.double() for part in noise))  # type: ignore[arg-type]
        self.latents = state.latents(ROWS).double()
        self.bytes = make_image_set().images[:ROWS]
        self.weights = torch.tensor(
            [self.schedule.lambdas[name] for name in state.spec.latents.names], dtype=torch.float64
        )

    @property
    def batch(self) -> Microbatch:
        return Microbatch(self.bytes, self.latents, self.noise)

    def images(self) -> tuple[Tensor, Tensor]:
        """Real and generated images, with the consistency term's transformations if it is on."""
        real, generated = to_unit_range(self.bytes).double(), self.state.generator(self.latents)
        if self.noise.transformations is None:
            return real, generated
        return with_copies(real, self.noise.transformations), transform_half(generated, self.noise.transformations)

    def augmented(self, images: Tensor) -> Tensor:
        """What D sees of images (2B, C, H, W)."""
        policies, numbers = self.state.stability.d_policies, self.noise.augmentation
        return images if numbers is None else augmented(images, numbers, policies, None)

    def adversarial(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        """D's loss and G's loss, by cross-entropies with the targets of the papers."""
        entropy, ones = F.binary_cross_entropy_with_logits, torch.ones(ROWS, dtype=torch.float64)
        target = ones - self.state.stability.label_smoothing
        if self.state.game.needs_real_in_g_step:
            return entropy(real - generated, target), entropy(generated - real, ones)
        return entropy(real, target) + entropy(generated, 0 * ones), entropy(generated, ones)

    def information(self, q: Tensor) -> Tensor:
        """sum_j lambda_j (H(c_j) + E log Q(c_j | x)) for cat=3 and a uniform code with its learned deviation."""
        code = self.latents[:, 4:]
        categorical = torch.log(torch.tensor(3.0)) + (q[:, :3].log_softmax(1) * code[:, :3]).sum(1).mean()
        sigma = self.state.spec.latents.sigma
        log_likelihood = self.state.spec.latents["uniform0"].log_likelihood(q[:, 3:], code[:, 3:], sigma)
        uniform = torch.log(torch.tensor(2.0)) + log_likelihood.mean()
        return (self.weights * torch.stack([categorical, uniform])).sum()

    def of_d(self) -> Tensor:
        with torch.no_grad():
            plain = torch.cat(self.images())
            inputs = self.augmented(plain)
        inputs.requires_grad_()
        logits, q = self.state.discriminator(inputs, groups=2)
        if not self.state.stability.augment_q:
            q = self.state.discriminator(plain, groups=2)[1]
        loss = self.adversarial(*logits.chunk(2))[0] - self.information(q[ROWS:])
        if self.noise.transformations is not None:
            weight = float(self.schedule.consistency)
            loss = loss + weight * consistency_loss(self.state.spec.latents, q[:ROWS], self.state.consistency)
        if self.noise.signs is not None:
            (slopes,) = torch.autograd.grad((self.noise.signs * logits).sum(), inputs, create_graph=True)
            squares = slopes.square().flatten(1).sum(1)
            loss = loss + STABILITY["r1"] / 2 * squares[:ROWS].mean() + STABILITY["r2"] / 2 * squares[ROWS:].mean()
        return loss

    def of_g(self) -> Tensor:
        plain = torch.cat(self.images())
        real, generated = self.augmented(plain).chunk(2)
        on_generated, q = self.state.discriminator(generated)
        on_real, _ = self.state.discriminator(real)
        if not self.state.stability.augment_q:
            q = self.state.discriminator(plain[ROWS:])[1]
        return self.adversarial(on_real, on_generated)[1] - self.information(q)


def slope_along(objective: Callable[[], Tensor], weights: list[nn.Parameter], directions: list[Tensor]) -> float:
    """The derivative of a scalar along a direction of all weights, by a central difference.

    It is so small that hardly any activation of G crosses its kink.
    """
    step, values = 1e-6, {}
    for times in (-1, 1):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += times * step * direction
        values[times] = float(objective().detach())
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight -= times * step * direction
    return (values[1] - values[-1]) / (2 * step)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("player", ["D with Q", "G"])
def test_gradients_equal_those_of_the_papers_objective(form: dict[str, Any], player: str) -> None:
    objective = Objective(form)
    state, batch = objective.state, objective.batch
    module, written = (
        (state.discriminator, objective.of_d) if player == "D with Q" else (state.generator, objective.of_g)
    )
    images = objective.images()
    if player == "D with Q":
        discriminator_step(state, batch, images, objective.schedule)
    else:
        generator_step(state, batch, images, objective.schedule)
    weights = list(module.parameters())
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    expected = torch.autograd.grad(written(), weights, allow_unused=True)
    for gradient, wanted in zip(found, expected, strict=True):
        assert torch.allclose(gradient, torch.zeros_like(gradient) if wanted is None else wanted, atol=1e-9)
    assert all(float(gradient.norm()) > 0 for gradient in found if gradient.dim() > 1), "a layer gets no gradient"
    torch.manual_seed(0)
    for _ in range(2):
        directions = [torch.randn_like(weight) * weight.abs().mean() for weight in weights]
        along = sum(float((gradient.detach() * way).sum()) for gradient, way in zip(found, directions, strict=True))
        assert slope_along(written, weights, directions) == pytest.approx(along, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("network", [{}, {"architecture": "residual"}], ids=["dcgan", "residual"])
def test_bf16_keeps_the_penalties_and_their_gradient(network: dict[str, Any]) -> None:
    """So R1 and R2 need no step in fp32. Measured cosines at 32 and 64 pixels: 0.9993 to 0.9999."""
    found = {}
    for precision in ("fp32", "bf16"):
        config = tiny_config(precision=precision).override(
            {"network": {"d_norm": "none", **network}, "stability": {"r1": 2.0, "r2": 2.0}}, "test"
        )
        state = TrainState(config, 16, 1)
        images = to_unit_range(make_image_set().images[:16]).requires_grad_()
        with state.autocast():
            logits, _ = state.discriminator(images)
        total = torch.stack(list(gradient_penalties(state.stability, torch.ones(16), logits, images).values())).sum()
        slopes = torch.autograd.grad(total, list(state.discriminator.trunk.parameters()), allow_unused=True)
        found[precision] = torch.cat([slope.flatten() for slope in slopes if slope is not None])
    assert torch.cosine_similarity(found["fp32"], found["bf16"], dim=0) > 0.995
    assert found["bf16"].norm() == pytest.approx(float(found["fp32"].norm()), rel=0.02)
