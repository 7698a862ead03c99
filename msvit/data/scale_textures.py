"""Textures whose class is a period: a control, on which an axis of attention scales must matter.

Each row of an image repeats its own random pixels, black or white, after as many of them as the
class says. As many neighbouring pixels of a row, or fewer, are random ones in every class; only
more of them show that the first comes again. Which classes a network can tell apart is therefore
known from how far it sees along a row, and :func:`highest_accuracy` says what that is worth.
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

PERIODS = (3, 5, 7, 9, 11)
"""In pixels; one class each."""

_PER_CLASS = {"train": 300, "validation": 50, "test": 100}


class ScaleTexturesOptions(DataOptions):
    """1,500 training, 250 validation and 500 test images of ``image_size`` pixels per side.

    They are made from a fixed seed.
    """

    name: ClassVar[str] = "scale_textures"
    num_classes: ClassVar[int] = len(PERIODS)
    in_channels: ClassVar[int] = 1
    mean: ClassVar[tuple[float, ...]] = (0.5,)
    std: ClassVar[tuple[float, ...]] = (0.5,)

    image_size: int = Field(24, ge=2 * PERIODS[-1], le=128)
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
            labels = np.repeat(np.arange(len(PERIODS)), per_class)
            pixels = rows_of_period(np.array(PERIODS)[labels], self.image_size, random)
            made[split] = Images(torch.from_numpy(pixels[:, None]), torch.from_numpy(labels))
        train = made["train"]
        if self.train_per_class is not None:
            train = train[draw_per_class(train.labels, self.train_per_class, seed=1)[0]]
        return Splits(train, made["validation"], made["test"], self.mean, self.std)


def rows_of_period(periods: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """A texture uint8 ``[N, size, size]`` for each of ``periods`` ``[N]``."""
    import numpy as np

    drawn = random.randint(0, 2, (len(periods), size, size)) * 255  # more than are shown
    columns = np.arange(size) % periods[:, None]
    return np.take_along_axis(drawn, columns[:, None], axis=2).astype(np.uint8)


def highest_accuracy(reach: int, periods: Sequence[int] = PERIODS) -> float:
    """What is expected at most of a network that sees ``reach`` neighbouring pixels of a row.

    It knows the classes whose rows come again within them, and that an image is of none of these;
    then it guesses. (In images of few pixels a guess may be a little better than chance: what is
    averaged over shorter periods has fewer different parts, and varies more.)
    """
    known = sum(period < reach for period in periods)
    return min(1.0, (known + (known < len(periods))) / len(periods))
