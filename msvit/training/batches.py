"""Batches of images: their order, augmentation and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor

from msvit import workers
from msvit.data.splits import Images
from msvit.recipes import TrainingOptions
from msvit.training.loading import Loader


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


Augment = Callable[[Tensor, Generator], Tensor]
"""Images and a CPU generator → images (:class:`msvit.training.augmentation.Augmentation`)."""


def train_batches(
    loader: Loader,
    options: TrainingOptions,
    augment: Augment,
    random: Generator,
    seed: Sequence[int] = (),
    first: int = 0,
) -> Iterator[Images]:
    """One epoch in random order, augmented, from batch ``first`` on.

    The incomplete last batch is left out; a set smaller than one batch is one batch. ``random`` is
    a CPU generator: what it draws, and so the batches, are the same on every device. The order is
    drawn in this call, the rest as the batches are taken. ``seed`` is of this epoch, for streamed
    images. Of several workers each takes its part of every batch.
    """
    size = options.batch_of(len(loader))
    order = torch.randperm(len(loader), generator=random)
    used = order[first * size : steps_per_epoch(len(loader), options) * size]
    used = workers.own(used.view(-1, size), 1, options.grad_accum_steps).flatten()

    def batches() -> Iterator[Images]:
        for batch in loader.batches(used, seed):
            yield Images(augment(batch.images, random), batch.labels)

    return batches()


def eval_batches(loader: Loader) -> Iterator[Images]:
    """All images once, in order; of several workers, each takes some of the batches as a whole."""
    if workers.count() == 1:
        return loader.batches()
    order = workers.own_batches(len(loader), loader.batch_size)
    return loader.batches(order) if len(order) else iter(())
