"""Images in memory and how they are divided. The division never depends on a cell's seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msvit.options import DataError


@dataclass(frozen=True)
class Images:
    """``images`` uint8 ``[N, C, H, W]`` and their class ``labels`` int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> Images:
        return Images(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets: to train on, to select on, and to report.

    ``mean`` and ``std`` normalise pixels in [0, 1], one value per channel.

    Raises:
        DataError: where they are not one finite value for each channel, ``std`` above 0.
    """

    train: Images
    validation: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        channels = self.train.images.shape[-3]
        for name, values in (("mean", self.mean), ("std", self.std)):
            usable = all(math.isfinite(v) and (name == "mean" or v > 0) for v in values)
            if len(values) != channels or not usable:
                message = f"{name} {values}: one number for each of {channels} channels is needed"
                raise DataError(message + ("" if name == "mean" else ", above 0"))


def draw_per_class(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (drawn, rest) with ``count`` images of every class drawn, both ascending.

    ``labels`` int64 ``[N]``. The same labels, count and seed always give the same images.

    Raises:
        DataError: if a class has fewer than ``count`` images.
    """
    # RandomState's stream is frozen across numpy versions: a split stays what it was.
    random = np.random.RandomState(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0].numpy()
        if len(members) < count:
            raise DataError(f"class {label} has {len(members)} images, {count} were asked for")
        drawn[random.permutation(members)[:count]] = True
    return drawn.nonzero()[:, 0], (~drawn).nonzero()[:, 0]


def split_train(
    images: Images, validation: float, train_per_class: int | None
) -> tuple[Images, Images]:
    """``(train, validation)``: a share ``validation`` of each class held out, balanced.

    The held-out images are the same for every ``train_per_class``.

    Raises:
        DataError: if a class has too few images.
    """
    smallest = int(images.labels.bincount().min())
    held_out, rest = draw_per_class(images.labels, max(1, int(smallest * validation)), seed=0)
    train = images[rest]
    if train_per_class is not None:
        drawn, _ = draw_per_class(train.labels, train_per_class, seed=1)
        train = train[drawn]
    return train, images[held_out]
