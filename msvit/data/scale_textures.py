"""Textures whose class is a distance: a control, on which an axis of attention scales must matter.

Every image has the same number of dots at random places, in pairs that lie side by side at the
distance of the class (dot pairs after Glass 1969, Nature 223, 578). Pairs go on at the other end
of their row, so that every pixel is as likely to be a dot in one class as in another: what sees
fewer than distance + 1 neighbouring pixels sees the same in both. Which classes a network can
tell apart is therefore known from how far it sees along a row, and :func:`highest_accuracy` says
what it can reach at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.options import DataOptions

if TYPE_CHECKING:
    import numpy as np

    from msvit.data.splits import Splits

DISTANCES = (3, 5, 7, 9, 11)
"""Pixels from one dot of a pair to the other; one class each."""

_PIXELS_PER_PAIR = 48
_PER_CLASS = {"train": 400, "validation": 50, "test": 100}


class ScaleTexturesOptions(DataOptions):
    """2,000 training, 250 validation and 500 test images, made from a fixed seed.

    ``image_size``: pixels per side; a pair that goes on at the other end of its row is farther
    apart there than any distance of a class.
    """

    name: ClassVar[str] = "scale_textures"
    num_classes: ClassVar[int] = len(DISTANCES)
    in_channels: ClassVar[int] = 1
    mean: ClassVar[None] = None  # dots that fall on each other are fewer on larger images
    std: ClassVar[None] = None

    image_size: int = Field(24, ge=2 * DISTANCES[-1] + 2, le=128)
    train_per_class: int | None = Field(None, gt=0, le=_PER_CLASS["train"])

    def fingerprint(self, data_dir: Path | None) -> None:
        """Wherever other data sets are, these images are made."""

    def load(self, data_dir: Path | None) -> Splits:
        import numpy as np
        import torch

        from msvit.data.splits import Images, Splits, draw_per_class

        # RandomState's stream is frozen across numpy versions: an image stays what it was.
        random = np.random.RandomState(0)
        made = {}
        for split, per_class in _PER_CLASS.items():
            labels = np.repeat(np.arange(len(DISTANCES)), per_class)
            distances = np.array(DISTANCES)[labels]
            pixels = dot_pairs(distances, self.image_size, random)
            made[split] = Images(torch.from_numpy(pixels[:, None]), torch.from_numpy(labels))
        train = made["train"]
        scaled = train.images.float() / 255
        mean, std = (float(scaled.mean()),), (float(scaled.std()),)
        if self.train_per_class is not None:
            train = train[draw_per_class(train.labels, self.train_per_class, seed=1)[0]]
        return Splits(train, made["validation"], made["test"], mean, std)


def dot_pairs(distances: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """An image of black and white dots uint8 ``[N, size, size]`` for each of ``distances`` [N]."""
    import numpy as np

    images = np.zeros((len(distances), size, size), np.uint8)
    shape = (len(distances), size * size // _PIXELS_PER_PAIR)
    rows, columns = random.randint(0, size, shape), random.randint(0, size, shape)
    which = np.arange(len(distances))[:, None]
    images[which, rows, columns] = 255
    images[which, rows, (columns + distances[:, None]) % size] = 255
    return images


def highest_accuracy(reach: int, distances: Sequence[int] = DISTANCES) -> float:
    """What is expected at most of a network that sees ``reach`` neighbouring pixels of a row.

    It knows the classes whose pairs fit in, and that an image is of none of them; then it guesses.
    """
    known = sum(distance < reach for distance in distances)
    return min(1.0, (known + (known < len(distances))) / len(distances))
