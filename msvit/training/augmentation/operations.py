"""Operations on a batch of bytes ``[B, C, H, W]``, each image with an argument of its own.

They give what Pillow gives for one image, where torchvision takes one argument for all; an
argument for each image is a tensor ``[B]`` on its device. Nothing here reads a value back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LUMINANCE = (19595, 38470, 7471)  # of red, green and blue, in 2⁻¹⁶: Pillow's


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of every byte."""
    lowest = 2.0 ** (8 - bits.double().clamp(0, 8))
    return images & (256 - lowest).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is not below ``threshold``."""
    return torch.where(images < threshold.view(-1, 1, 1, 1), images, 255 - images)


def solarize_add(images: Tensor, add: Tensor) -> Tensor:
    """Add to what is below 128."""
    brighter = (images + add.to(torch.int16).view(-1, 1, 1, 1)).clamp(max=255)
    return torch.where(images < 128, brighter.to(torch.uint8), images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """From black (0) through the image (1) on."""
    return _blend(images.new_zeros(()), images, factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """From its mean grey (0) through the image (1) on."""
    mean = grey(images).double().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor(), images, factor)


def adjust_color(images: Tensor, factor: Tensor) -> Tensor:
    """From grey (0) through the image (1) on."""
    return _blend(grey(images), images, factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """From smooth (0) through the image (1) on; the outermost pixels stay as they are."""
    smooth = images.clone()
    if min(images.shape[-2:]) > 2:
        wide = images.to(torch.int32)
        rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
        around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        weighted = around + 4 * wide[..., 1:-1, 1:-1]
        smooth[..., 1:-1, 1:-1] = ((2 * weighted + 13) // 26).to(torch.uint8)  # rounded 13ths
    return _blend(smooth, images, factor)


def grey(images: Tensor) -> Tensor:
    """Luminance ``[B, 1, H, W]``, rounded to bytes; of one channel, that channel."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (
        weight * x for weight, x in zip(_LUMINANCE, images.to(torch.int32).unbind(1), strict=True)
    )
    return ((red + green + blue + 2**15) >> 16).to(torch.uint8).unsqueeze(1)


def _blend(first: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """``first + factor · (images - first)``, cut off to bytes."""
    first, second = first.float(), images.float()
    blended = first + factor.float().view(-1, 1, 1, 1) * (second - first)
    return blended.clamp_(0, 255).to(torch.uint8)


def affine(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Every pixel ``(x, y)`` from ``(a·x + b·y + c, d·x + e·y + f)``, by bicubic interpolation.

    ``matrix`` float64 ``[B, 6]``: ``a`` to ``f``, in pixels whose centres are at halves. What lies
    outside is ``fill``, uint8 ``[C]``.
    """
    _, channels, height, width = images.shape
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = torch.arange(height, device=images.device, dtype=torch.float64).view(-1, 1) + 0.5
    a, b, c, d, e, f = (part.view(-1, 1, 1) for part in matrix.unbind(1))
    across, down = a * x + b * y + c, d * x + e * y + f  # [B, H, W], where the colour comes from
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    left, top = (across - 0.5).floor(), (down - 0.5).floor()
    of_column = _bicubic((across - 0.5 - left).float())
    of_row = _bicubic((down - 0.5 - top).float())
    columns = [(left.long() + i).clamp_(0, width - 1) for i in (-1, 0, 1, 2)]
    rows = [(top.long() + i).clamp_(0, height - 1) * width for i in (-1, 0, 1, 2)]
    pixels = images.flatten(2)  # [B, C, H·W]
    mixed = torch.zeros(images.shape, device=images.device)
    for row, weight in zip(rows, of_row, strict=True):
        line = torch.zeros_like(mixed)
        for column, share in zip(columns, of_column, strict=True):
            index = (row + column).flatten(1).unsqueeze(1).expand(-1, channels, -1)
            line += share.unsqueeze(1) * pixels.gather(2, index).view(images.shape)
        mixed += weight.unsqueeze(1) * line
    # What float32 has rounded off a whole number must not cost a level.
    levels = (mixed + 2**-10).clamp_(0, 255).to(torch.uint8)
    return torch.where(inside.unsqueeze(1), levels, fill.view(-1, 1, 1))


def _bicubic(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shares of four neighbours where the second is ``d`` behind: the cubic with slope -1, as
    Pillow's ``transform`` has it (its ``resize`` has -1/2, torch's ``grid_sample`` -3/4)."""
    d2, d3 = d * d, d * d * d
    return -d + 2 * d2 - d3, 1 - 2 * d2 + d3, d + d2 - d3, d3 - d2


def rotation(degrees: float, width: int, height: int) -> tuple[float, ...]:
    """Matrix of :func:`affine` that turns an image about its middle, against the clock."""
    angle = -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y
