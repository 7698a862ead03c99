"""Batches of images in memory: order, augmentation and normalisation on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from msvit.data.splits import Images
from msvit.recipes import TrainingOptions
from msvit.training.augmentation.moves import augment


class Normalise:
    """uint8 images ``[B, C, H, W]`` to float32 with mean 0 and deviation 1 per channel.

    ``mean`` and ``std`` are those of pixels in [0, 1].
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device):
        self.mean = torch.tensor(mean, device=device).mul(255).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).mul(255).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean).div_(self.std)


def steps_per_epoch(images: int, options: TrainingOptions) -> int:
    """Full batches in a training set of this many images; at least one."""
    return max(1, images // options.batch_size)


def train_batches(data: Images, options: TrainingOptions, random: Generator) -> Iterator[Images]:
    """One epoch in random order, augmented; the incomplete last batch is left out.

    A set smaller than one batch is one batch. ``random`` is a CPU generator: what it draws, and so
    the batches, are the same on every device.
    """
    size = min(options.batch_size, len(data))
    size -= size % 2 if options.mixup else 0  # mixup pairs the images of a batch
    order = to_device(torch.randperm(len(data), generator=random), data.labels.device)
    for step in range(steps_per_epoch(len(data), options)):
        batch = data[order[step * size : (step + 1) * size]]
        yield Images(augment(batch.images, options.hflip, options.shift, random), batch.labels)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` of the host on ``device``, without waiting for what the device still has to do."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def eval_batches(data: Images, batch_size: int) -> Iterator[Images]:
    """All images once, in order."""
    for start in range(0, len(data), batch_size):
        yield data[start : start + batch_size]
