"""Training images changed at random, on their device and a whole batch at once.

Everything is drawn on the host, so that a batch is the same on every device and nothing waits; and
all generators begin each epoch from its number, so that an epoch is the same again. Workers that
share a batch draw the same for all of its images, and each takes what falls to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from msvit.recipes import TrainingOptions
from msvit.training.augmentation.crops import RandomCrops
from msvit.training.augmentation.events import augment_events
from msvit.training.augmentation.moves import mirror_and_shift
from msvit.training.augmentation.rand_augment import RandAugment


class Augmentation:
    """uint8 images ``[B, C, H, W]``, or events ``[B, T, C, H, W]`` → as many, before they are
    normalised.

    In timm's order: a part of the image (unless they are ``parts`` already, as streamed ones are),
    mirrored and shifted, RandAugment. ``mean`` is that of pixels in [0, 1].
    """

    def __init__(
        self,
        options: TrainingOptions,
        mean: Sequence[float],
        device: torch.device,
        parts: bool = False,
    ) -> None:
        self._options, self._turns = options, options.grad_accum_steps
        self._crop: Callable[[Tensor], Tensor] | None = None
        if options.crop_scale is not None and not parts:
            self._crop = RandomCrops(options.crop_scale, options.crop_ratio, self._turns)
        self._rand_augment: Callable[[Tensor], Tensor] | None = None
        if options.rand_augment is not None:
            self._rand_augment = RandAugment(options.rand_augment, mean, device, self._turns)

    def __call__(self, images: Tensor, random: Generator) -> Tensor:
        """``random`` is a CPU generator; what is timm's draws from the global ones."""
        if self._crop is not None:  # of events [B, T·C, H, W]: all frames alike
            images = self._crop(images.flatten(1, -3)).view(images.shape)
        hflip, shift = self._options.hflip, self._options.shift
        images = mirror_and_shift(images, hflip, shift, random, self._turns)
        if self._rand_augment is not None:
            images = self._rand_augment(images)
        if self._options.event_augmentation == "snn_wide":
            images = augment_events(images, random, self._turns)
        return images
