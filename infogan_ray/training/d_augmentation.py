"""Augmentation in front of D: random changes of the images that D sees, real and generated alike.

With few images, D memorises them, and its gradient then says nothing about other images. If D sees all images
changed at random, it has far more of them. G learns to generate unchanged images, since its gradient passes through the
changes (Zhao et al. 2020, DiffAugment, arXiv:2006.10738). With ``adaptive``, each change has a probability that follows
D's accuracy (Karras et al. 2020, ADA, arXiv:2006.06676).
Shapes: N images (N, C, H, W) in [-1, 1], random numbers (N, UNIFORMS) in [0, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from infogan_ray import UserError

UNIFORMS = 12  # random numbers of an image: four that select it for a policy, then eight for the policies
SHIFT, CUT = 1 / 8, 1 / 2  # largest translation and side of the cutout, in image widths (DiffAugment)


def colour(images: Tensor, uniforms: Tensor) -> Tensor:
    """Change brightness by up to 0.5, saturation by a factor from 0 to 2, then contrast by a factor from 0.5 to 1.5."""
    brightness, saturation, contrast = uniforms[:, 4:7].view(-1, 3, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Tensor, uniforms: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of the size in each direction. Pixels outside the image are 0 (grey)."""
    size = images.shape[-1]
    most = int(size * SHIFT + 0.5)
    shifts = (uniforms[:, 7:9] * (2 * most + 1)).long() - most
    places = torch.arange(size, device=images.device)
    for axis, shift in zip((2, 3), shifts.unbind(1), strict=True):
        sources = places + shift[:, None]  # (N, H): where each row or column of the result comes from
        inside = (sources >= 0) & (sources < size)
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        index = sources.clamp(0, size - 1).view(shape).expand_as(images)
        images = images.gather(axis, index) * inside.view(shape)
    return images


def cutout(images: Tensor, uniforms: Tensor) -> Tensor:
    """Set a square of half the size, whose middle is anywhere in the image, to 0 (grey)."""
    size = images.shape[-1]
    cut = int(size * CUT + 0.5)
    starts = (uniforms[:, 9:11] * (size + 1 - cut % 2)).long() - cut // 2
    places = torch.arange(size, device=images.device)
    rows, columns = ((places >= start[:, None]) & (places < start[:, None] + cut) for start in starts.unbind(1))
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def flip(images: Tensor, uniforms: Tensor) -> Tensor:
    """Mirror half of the images, left to right."""
    return torch.where(uniforms[:, 11].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)


POLICIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "colour": colour, "translation": translation, "cutout": cutout, "flip": flip
}  # fmt: skip
ADAPTIVE = "adaptive"


def parse(text: str) -> tuple[tuple[str, ...], bool]:
    """The policies in the order of POLICIES, and whether ``adaptive`` is among the words. Raises UserError."""
    words = text.replace(",", " ").split()
    for word in words:
        if word not in (*POLICIES, ADAPTIVE):
            raise UserError(f"stability.augment_d has '{word}'; valid are {', '.join(POLICIES)} and {ADAPTIVE}")
    policies = tuple(name for name in POLICIES if name in words)
    if ADAPTIVE in words and not policies:
        raise UserError(
            f"stability.augment_d is '{text}'; add what D's images are changed by, for example colour translation"
        )
    return policies, ADAPTIVE in words


def augmented(images: Tensor, uniforms: Tensor, policies: tuple[str, ...], probability: Tensor | None) -> Tensor:
    """``images`` after all policies, differentiable. With a ``probability`` (a scalar), each changes that share."""
    for number, name in enumerate(policies):
        changed = POLICIES[name](images, uniforms)
        if probability is not None:
            changed = torch.where((uniforms[:, number] < probability).view(-1, 1, 1, 1), changed, images)
        images = changed
    return images


class AdaptiveProbability:
    """ADA's probability of each change. It rises while D is too good at the images it sees, and falls otherwise.

    The measure of D is r = 2 * d_accuracy - 1: 0 if D guesses, 1 if all its decisions are right. Karras et al. 2020
    (section 3.1, equation 1) use the mean sign of D's logits for real images. r is its mean with that for generated
    images, and exists for all games.
    """

    def __init__(self, target: float, images: int, batch_size: int, device: torch.device) -> None:
        self.target, self.change = target, batch_size / images
        self.value = torch.zeros((), device=device)

    def update(self, accuracy: Tensor) -> None:
        """After a step: ``accuracy`` is d_accuracy, a mean over all ranks."""
        direction = (2 * accuracy - 1 - self.target).sign()
        self.value.add_(direction * self.change).clamp_(0, 1)
