"""Augmentation of a batch, on its device.

Everything random is drawn on the host, so that a batch is the same on every device and nothing
waits; and all generators begin each epoch from its number, so that an epoch is the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from msvit.recipes import TrainingOptions
from msvit.training.augmentation.crops import RandomCrops
from msvit.training.augmentation.moves import augment
from msvit.training.augmentation.rand_augment import RandAugment


class Augmentation:
    """uint8 images ``[B, C, H, W]`` → as many, augmented, before they are normalised.

    Part of the image (where ``crops``: streamed images come as parts already), mirrored and
    shifted, RandAugment: the order of timm. ``mean`` is that of pixels in [0, 1].
    """

    def __init__(
        self,
        options: TrainingOptions,
        mean: Sequence[float],
        device: torch.device,
        crops: bool = True,
    ) -> None:
        self._hflip, self._shift = options.hflip, options.shift
        self._crop: Callable[[Tensor], Tensor] | None = None
        if crops and options.crop_scale is not None:
            self._crop = RandomCrops(options.crop_scale, options.crop_ratio)
        self._rand_augment: Callable[[Tensor], Tensor] | None = None
        if options.rand_augment is not None:
            self._rand_augment = RandAugment(options.rand_augment, mean, device)

    def __call__(self, images: Tensor, random: Generator) -> Tensor:
        """``random`` is a CPU generator; timm's parts draw from the global ones."""
        if self._crop is not None:
            images = self._crop(images)
        images = augment(images, self._hflip, self._shift, random)
        return images if self._rand_augment is None else self._rand_augment(images)
