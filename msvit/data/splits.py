"""Labelled samples, in memory or on disk, and how they are divided.

The division never depends on a cell's seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from msvit.data.encoded import Encoded
from msvit.data.fingerprint import Fingerprint
from msvit.data.views import View
from msvit.options import DataError


class Samples(Protocol):
    """What a split is: ``N`` samples of one ``shape``, whose ``labels`` (int64) are in memory.

    Batches of it come from :class:`msvit.training.loading.Loader`, wherever the samples are.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, such as ``(C, H, W)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor | slice) -> Self:
        """Some of the samples, as a split of their own."""


@dataclass(frozen=True)
class Images:
    """In memory: ``images`` uint8 ``[N, C, H, W]`` and their class ``labels`` int64 ``[N]``.

    Or events: ``[N, T, C, H, W]``, a frame for each time step, which counts what happened in it.
    """

    images: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> Images:
        return Images(self.images[indices], self.labels[indices])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, the same memory."""
        return self.images.numpy(), self.labels.numpy()

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Streamed:
    """On disk: ``encoded`` images, decoded when they are asked for, as ``view`` shows them."""

    encoded: Encoded
    labels: Tensor
    view: View

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.view.size, self.view.size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> Streamed:
        at = indices if isinstance(indices, slice) else indices.numpy()
        return Streamed(self.encoded[at], self.labels[indices], self.view)

    def seen(self, view: View) -> Streamed:
        """The same images by another view."""
        return replace(self, view=view)

    def decode(self, indices: np.ndarray, into: np.ndarray, seed: Sequence[int] = ()) -> None:
        """Write the images at ``indices`` to ``into``, uint8 ``[len(indices), *shape]``.

        What a random view shows follows from ``seed`` and the index alone.

        Raises:
            DataError: naming the image that cannot be read.
        """
        for place, index in enumerate(indices.tolist()):
            into[place] = self.encoded.pixels(index, self.view, (*seed, index))


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets: to train on, to select on, and to report.

    ``mean`` and ``std`` normalise pixels in [0, 1], one value per channel (of events, counts of
    which 255 is 1). ``fingerprint`` is that of all images that were found; records keep it.

    Raises:
        DataError: where they are not one finite value for each channel, ``std`` above 0.
    """

    train: Samples
    validation: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: Fingerprint | None = None

    def __post_init__(self) -> None:
        channels = self.train.shape[-3]
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


Part = TypeVar("Part", bound=Samples)


def split_train(
    images: Part,
    validation: float,
    train_per_class: int | None,
    classes: Sequence[str] | None = None,
) -> tuple[Part, Part]:
    """``(train, validation)``: a share ``validation`` of each class held out, balanced.

    The held-out images are the same for every ``train_per_class``. Errors call the ``classes`` by
    their names, or by their numbers.

    Raises:
        DataError: if a class has too few images.
    """
    counts = images.labels.bincount()
    names = classes or [str(label) for label in range(len(counts))]
    smallest = int(counts.min())
    if smallest < 2:
        raise DataError(
            f"class {names[int(counts.argmin())]}: {smallest} images to train on and to hold out; "
            "it takes at least 2"
        )
    held = max(1, int(smallest * validation))
    if train_per_class is not None and train_per_class > smallest - held:
        raise DataError(
            f"class {names[int(counts.argmin())]}: train_per_class {train_per_class} of "
            f"{smallest - held} images (and {held} held out)"
        )
    held_out, rest = draw_per_class(images.labels, held, seed=0)
    train = images[rest]
    if train_per_class is not None:
        train = train[draw_per_class(train.labels, train_per_class, seed=1)[0]]
    return train, images[held_out]


def some_per_class(images: Part, count: int | None, classes: Sequence[str]) -> Part:
    """A stratified subset of ``count`` images of each of the ``classes``; ``None`` takes all.

    Raises:
        DataError: if a class has too few images.
    """
    if count is None:
        return images
    counts = images.labels.bincount(minlength=len(classes))
    if count > (fewest := int(counts.min())):
        message = f"train_per_class {count} of {fewest} images"
        raise DataError(f"class {classes[int(counts.argmin())]}: {message}")
    return images[draw_per_class(images.labels, count, seed=1)[0]]
