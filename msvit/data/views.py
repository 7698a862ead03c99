"""What a model is shown of an image in a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msvit.options import DataError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class View(ABC):
    """An image in red, green and blue → ``size`` × ``size`` pixels of it."""

    size: int

    @abstractmethod
    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Image.Image:
        """``seed`` is of this image in this epoch: the same seed always shows the same."""

    def check(self, width: int, height: int) -> None:  # noqa: B027 -- most show any size
        """Whether an image of this size can be shown, before it is decoded.

        Raises:
            DataError: where it cannot.
        """


@dataclass(frozen=True)
class Whole(View):
    """The image as it is, which has this size and no other."""

    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Image.Image:
        return image

    def check(self, width: int, height: int) -> None:
        if (width, height) != (self.size, self.size):
            raise DataError(f"{width}×{height} pixels, expected {self.size}×{self.size}")


@dataclass(frozen=True)
class Centre(View):
    """The middle of the image, whose shorter side is first resized to ``size / ratio``, bicubic.

    To the pixel what torchvision's ``Resize`` and ``CenterCrop`` make of an image of Pillow's.
    """

    ratio: float = 1.0

    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Image.Image:
        from PIL.Image import Resampling

        shorter = math.floor(self.size / self.ratio)
        sides = [int(shorter * side / min(image.size)) for side in image.size]
        left, top = (round((side - self.size) / 2) for side in sides)
        resized = image.resize((sides[0], sides[1]), Resampling.BICUBIC)
        return resized.crop((left, top, left + self.size, top + self.size))
