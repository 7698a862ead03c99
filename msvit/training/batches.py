"""Batches of images in memory: order, augmentation and normalisation on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from msvit.data.splits import Images
from msvit.recipes import TrainingOptions
from msvit.runtime import to_device
from msvit.training.augmentation.events import augment_events


class Normalise:
    """uint8 images ``[B, C, H, W]`` to float32 with mean 0 and deviation 1 per channel.

    ``mean`` and ``std`` are those of pixels in [0, 1]. Events ``[B, T, C, H, W]`` have those with
    which they become counts again.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device):
        self.mean = torch.tensor(mean, device=device).mul(255).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).mul(255).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean).div_(self.std)


def time_first(images: Tensor) -> Tensor:
    """As models take them: events ``[B, T, C, H, W]`` → ``[T, B, C, H, W]``, images as they are."""
    return images.transpose(0, 1) if images.ndim == 5 else images


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
        images = augment(batch.images, options.hflip, options.shift, random)
        if options.event_augmentation == "snn_wide":
            images = augment_events(images, random)
        yield Images(images, batch.labels)


def eval_batches(data: Images, batch_size: int) -> Iterator[Images]:
    """All images once, in order."""
    for start in range(0, len(data), batch_size):
        yield data[start : start + batch_size]


def augment(images: Tensor, hflip: bool, shift: int, random: Generator) -> Tensor:
    """Mirror and move each of ``images`` ``[B, C, H, W]`` on its own, in one gather.

    Rows and columns that move in are 0 (black, for bytes). ``random`` is a CPU generator. All
    frames of an event sample ``[B, T, C, H, W]`` are treated alike.
    """
    if not hflip and not shift:
        return images
    if images.ndim == 5:
        return augment(images.flatten(1, 2), hflip, shift, random).unflatten(1, images.shape[1:3])
    count, channels, height, width = images.shape
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=random)
    rows = torch.arange(height) + offsets[0]  # [B, H] in the padded image
    columns = torch.arange(width)
    if hflip:
        mirrored = torch.rand(count, 1, generator=random) < 0.5
        columns = torch.where(mirrored, columns.flip(0), columns)
    columns = columns + offsets[1]  # [B, W]
    padded = pad(images, (shift, shift, shift, shift))
    rows, columns = to_device(rows, images.device), to_device(columns, images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
