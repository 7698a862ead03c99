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
        return int(self._reach(0, height).sum() * self._reach(1, width).sum())

    def reached(self, sums: Tensor) -> float:
        """Sums over channels, ``[T, B, H, W]``, each times the synapses that a channel reaches."""
        height, width = sums.shape[2:]
        if self.kernel == (1, 1) and self.stride == 1:
            return self.fan_out * whole_sum(sums)
        by_pixel = sums.sum((0, 1), dtype=torch.float64).cpu()
        taps = self._reach(0, height)[:, None] * self._reach(1, width)
        return self.fan_out * float((by_pixel * taps).sum())

    def _reach(self, axis: int, size: int) -> Tensor:
        return _reach(size, self.kernel[axis], self.stride, self.padding[axis])


@cache
def _reach(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Along one axis: how many outputs see each of ``size`` inputs, float64 ``[size]``."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    first = torch.arange(outputs)[:, None] * stride - padding  # where each output's kernel begins
    place = torch.arange(size)
    return ((first <= place) & (place < first + kernel)).sum(0, dtype=torch.float64)
