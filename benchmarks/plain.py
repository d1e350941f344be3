"""The usual InfoGAN loop of tutorials and well-known PyTorch repositories, for comparison.

It does not use infogan_ray. Only the architecture is the same (Chen et al. 2016, table 1: MNIST), so that both compute
the same products. Images go through PIL and a DataLoader. D processes real and generated images in two passes. G's step
computes gradients of D's weights and discards them. Adam is PyTorch's default, and losses are read at every step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

NOISE, CATEGORIES, UNIFORMS = 62, 10, 2
REAL, FAKE = 1.0, 0.0


class Digits(Dataset):
    """Like torchvision's MNIST: an array in memory, with a PIL image and a transform per item."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images  # uint8 (N, 28, 28)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[index], mode="L"))


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NOISE + CATEGORIES + UNIFORMS, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(),
            nn.Linear(1024, 128 * 7 * 7, bias=False), nn.BatchNorm1d(128 * 7 * 7), nn.ReLU(),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.1),
            nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(128 * 7 * 7, 1024, bias=False), nn.BatchNorm1d(1024), nn.LeakyReLU(0.1),
        )  # fmt: skip
        self.head = nn.Linear(1024, 1)
        self.recognition = nn.Sequential(nn.Linear(1024, 128, bias=False), nn.BatchNorm1d(128), nn.LeakyReLU(0.1))
        self.categories, self.means = nn.Linear(128, CATEGORIES), nn.Linear(128, UNIFORMS)
        self.variances = nn.Linear(128, UNIFORMS)

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.trunk(images))).view(-1)

    def recognise(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.recognition(self.trunk(images))
        return self.categories(features), self.means(features), torch.exp(self.variances(features))


def init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)


def normal_nll(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (0.5 * (2 * np.pi * variance + 1e-6).log() + (x - mean) ** 2 / (2 * variance + 1e-6)).sum(1).mean()


def training(images: np.ndarray, batch: int, device: torch.device, loader_workers: int = 0) -> Iterator[float]:
    """Endless: each item is one step, and its value is the sum of the losses of D and G."""
    loader = DataLoader(Digits(images), batch, shuffle=True, drop_last=True, num_workers=loader_workers)
    generator, discriminator = Generator().to(device), Discriminator().to(device)
    generator.apply(init_weights)
    discriminator.apply(init_weights)
    adversarial = nn.BCELoss()
    recognition = [
        *discriminator.recognition.parameters(), *discriminator.categories.parameters(),
        *discriminator.means.parameters(), *discriminator.variances.parameters(),
    ]  # fmt: skip
    d_parameters = [*discriminator.trunk.parameters(), *discriminator.head.parameters()]
    opt_d = torch.optim.Adam(d_parameters, lr=2e-4, betas=(0.5, 0.999))
    opt_g = torch.optim.Adam([*generator.parameters(), *recognition], lr=1e-3, betas=(0.5, 0.999))
    while True:
        for real in loader:
            real = real.to(device)
            category = torch.randint(CATEGORIES, (batch,), device=device)
            uniform = torch.rand(batch, UNIFORMS, device=device) * 2 - 1
            noise = torch.randn(batch, NOISE, device=device)
            latents = torch.cat([noise, F.one_hot(category, CATEGORIES).float(), uniform], 1)
            ones, zeros = torch.full((batch,), REAL, device=device), torch.full((batch,), FAKE, device=device)

            opt_d.zero_grad()
            loss_real = adversarial(discriminator(real), ones)
            loss_real.backward()
            fake = generator(latents)
            loss_fake = adversarial(discriminator(fake.detach()), zeros)
            loss_fake.backward()
            opt_d.step()

            opt_g.zero_grad()
            # D and Q share one pass through the trunk, as in the better repositories.
            features = discriminator.trunk(fake)
            loss = adversarial(torch.sigmoid(discriminator.head(features)).view(-1), ones)
            q = discriminator.recognition(features)
            loss = loss + F.cross_entropy(discriminator.categories(q), category)
            means, variances = discriminator.means(q), torch.exp(discriminator.variances(q))
            loss = loss + 0.1 * normal_nll(uniform, means, variances)
            loss.backward()
            opt_g.step()
            loss_d = loss_real + loss_fake
            yield loss_d.item() + loss.item()
