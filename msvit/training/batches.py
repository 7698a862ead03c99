"""Batches of images: order, augmentation and normalisation on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from msvit.data.splits import Images
from msvit.recipes import TrainingOptions
from msvit.training.loading import Loader, to_device


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


def train_batches(
    loader: Loader, options: TrainingOptions, random: Generator, seed: Sequence[int] = ()
) -> Iterator[Images]:
    """One epoch in random order, augmented; the incomplete last batch is left out.

    A set smaller than one batch is one batch. ``random`` is a CPU generator: what it draws, and so
    the batches, are the same on every device. ``seed`` is of this epoch, for streamed images.
    """
    size = min(options.batch_size, len(loader))
    size -= size % 2 if options.mixup else 0  # mixup pairs the images of a batch
    order = torch.randperm(len(loader), generator=random)
    used = order[: size * steps_per_epoch(len(loader), options)]
    for batch in loader.batches(used, seed):
        yield Images(augment(batch.images, options.hflip, options.shift, random), batch.labels)


def augment(images: Tensor, hflip: bool, shift: int, random: Generator) -> Tensor:
    """Mirror and move each of ``images`` ``[B, C, H, W]`` on its own, in one gather.

    Rows and columns that move in are 0 (black, for bytes). ``random`` is a CPU generator.
    """
    if not hflip and not shift:
        return images
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
