"""What a model is shown of an image in a file."""

from __future__ import annotations

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
