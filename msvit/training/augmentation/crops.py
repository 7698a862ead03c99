"""Random parts of images on the device, resized to whole ones.

The random resized crop of Szegedy et al. 2015 (arXiv 1409.4842) for images that live on the device
at their final size; those that are streamed are cropped where they are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from msvit import workers
from msvit.runtime import to_device

_TOGETHER = 256  # images of a whole split that are resized at a time

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""


class RandomCrops:
    """Images ``[B, C, H, W]`` → of each a random part, resized to the same shape.

    ``scale`` is the share of the area, ``ratio`` width through height, from and to. timm draws,
    from the global generator of ``random``.
    """

    def __init__(
        self, scale: tuple[float, float], ratio: tuple[float, float], turns: int = 1
    ) -> None:
        """``turns`` as of :func:`msvit.workers.own`."""
        self._scale, self._ratio, self._turns = scale, ratio, turns

    def __call__(self, images: Tensor) -> Tensor:
        drawn = [self.draw(images[0]) for _ in range(len(images) * workers.count())]
        return resized_parts(images, workers.own_of(drawn, self._turns))

    def draw(self, image: Tensor) -> Box:
        """For one image."""
        return RandomResizedCropAndInterpolation.get_params(image, self._scale, self._ratio)


def middle(images: Tensor, share: float) -> Tensor:
    """The middle of ``images`` ``[N, C, H, W]``, ``share`` of each side, resized to all of it."""
    sides = images.shape[-2:]
    high, wide = (max(1, round(share * side)) for side in sides)
    box = ((sides[0] - high) // 2, (sides[1] - wide) // 2, high, wide)
    if not len(images):
        return images
    return torch.cat([resized_parts(some, [box] * len(some)) for some in images.split(_TOGETHER)])


def resized_parts(images: Tensor, boxes: Sequence[Box]) -> Tensor:
    """The part of each image in its box, at the size of the whole: bicubic, as Pillow resizes.

    Rows, then columns, are products with a matrix for each image: one batched product each.
    """
    height, width = images.shape[-2:]
    corners = to_device(torch.tensor(boxes, dtype=torch.float64), images.device)
    top, left, high, wide = (part.view(-1, 1, 1) for part in corners.unbind(1))
    across = _shares(left, wide, width).float()  # [B, W, W]
    down = _shares(top, high, height).float()  # [B, H, H]
    narrow = _rounded(images.float() @ across.unsqueeze(1).mT)
    return _rounded(down.unsqueeze(1) @ narrow).to(images.dtype)


def _shares(start: Tensor, length: Tensor, size: int) -> Tensor:
    """``[B, to, from]``: shares of ``size`` pixels in as many of the stretch, float64.

    The stretch is no longer than the image, so that nothing is averaged.
    """
    pixels = torch.arange(size, device=start.device, dtype=torch.float64)
    centres = start + (pixels.view(-1, 1) + 0.5) * (length / size)
    distance = (pixels + 0.5 - centres).abs()
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    shares = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    shares = torch.where((pixels >= start) & (pixels < start + length), shares, 0.0)
    return shares / shares.sum(-1, keepdim=True)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)
