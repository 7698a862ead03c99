"""How images of any size become images of a model's size: as timm does it.

Apart from the views that need no timm, which takes a second to load; and loaded where a view is
made, not by every process that shows something by it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torchvision.transforms.functional import center_crop, resize

from msvit.data.views import View


@dataclass(frozen=True)
class Centre(View):
    """The middle of the image, whose shorter side is first resized to ``size / ratio``."""

    ratio: float = 1.0
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Image.Image:
        shorter = math.floor(self.size / self.ratio)
        resized = resize(image, [shorter], str_to_interp_mode(self.interpolation))
        return center_crop(resized, [self.size, self.size])


@dataclass(frozen=True)
class RandomPart(View):
    """A random part of the image, resized: of ``scale`` of its area, and of ``ratio`` wide to high.

    The random resized crop of Szegedy et al. 2015 (arXiv 1409.4842), drawn by timm.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image, seed: Sequence[int]) -> Image.Image:
        crop = RandomResizedCropAndInterpolation(
            self.size, self.scale, self.ratio, self.interpolation
        )
        state = random.getstate()  # timm draws from the global generator
        try:
            random.seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))
            return crop(image)
        finally:
            random.setstate(state)
