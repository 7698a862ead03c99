"""Random parts of images, drawn by timm.

Apart from the other views, as timm takes a second to load; and loaded where a view is made, before
processes are forked that show something by it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from msvit.data.views import View


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
