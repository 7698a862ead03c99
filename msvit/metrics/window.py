"""How many outputs of a convolution each of its inputs reaches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from msvit.layers.repconv import RepConv
from msvit.layers.synapses import Conv
from msvit.metrics.contents import whole_sum


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution of ``[T, B, H, W, C]``.

    Attributes:
        kernel, padding: height and width.
        fan_out: output channels that one input channel reaches.
        channels: of the output.
        weights: how many there are.
    """

    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    fan_out: int
    channels: int
    weights: int

    @classmethod
    def of(cls, conv: Conv) -> Window:
        channels = len(conv.weight)
        weights = conv.weight.numel()
        fan_out = channels // conv.groups
        return cls(conv.kernel, conv.stride, conv.padding, fan_out, channels, weights)

    @classmethod
    def folded(cls, module: RepConv) -> Window:
        """The one convolution that the factors of ``module`` are when it is deployed."""
        narrow, wide = module.point.conv.weight.shape[1], len(module.mix.conv.weight)
        return cls((3, 3), 1, (1, 1), wide, wide, 9 * narrow * wide)

    def outputs(self, height: int, width: int) -> int:
        """Pixels of the output of an image of this size."""
        sizes = zip((height, width), self.kernel, self.padding, strict=True)
        rows, columns = ((n + 2 * pad - k) // self.stride + 1 for n, k, pad in sizes)
        return rows * columns

    def taps(self, height: int, width: int) -> int:
        """Pairs of a pixel of the image and an output pixel that it reaches."""
        return int(self._reach(height, width).sum())

    def reached(self, sums: Tensor, total: float) -> float:
        """Sums over channels, ``[T, B, H, W]``, each times the synapses that a channel reaches.

        ``total`` is the sum of them all.
        """
        if self.kernel == (1, 1) and self.stride == 1:
            return self.fan_out * total
        by_pixel = sums.sum((0, 1), dtype=torch.float64).cpu()
        return self.fan_out * whole_sum(by_pixel.mul_(self._reach(*by_pixel.shape)))

    def _reach(self, height: int, width: int) -> Tensor:
        return _reach_of_pixels((height, width), self.kernel, self.stride, self.padding)


@cache
def _reach_of_pixels(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Tensor:
    """How many outputs see each pixel, float64 ``[H, W]``."""
    rows, columns = (_reach(size[i], kernel[i], stride, padding[i]) for i in (0, 1))
    return rows[:, None] * columns


def _reach(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Along one axis: how many outputs see each of ``size`` inputs, float64 ``[size]``."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    first = torch.arange(outputs)[:, None] * stride - padding  # where each output's kernel begins
    place = torch.arange(size)
    return ((first <= place) & (place < first + kernel)).sum(0, dtype=torch.float64)
