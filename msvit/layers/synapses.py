"""Weights and products: the places where operations are counted.

Each class is called as a module, so that a forward hook sees its operands, and tells by
``dense_macs`` what one image costs in one time step if nothing is skipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from msvit import kernels


def is_static(x: Tensor) -> bool:
    """True where all time steps of ``x`` are one and the same memory (an image spread over T)."""
    return x.shape[0] > 1 and x.stride(0) == 0


class Conv(nn.Module):
    """2-D convolution over ``[T, B, H, W, C_in]`` → ``[T, B, H', W', C_out]``.

    ``kernel`` is a side length or ``(height, width)``. A kernel of 1 is computed as a matrix
    product. A static input is convolved once. ``bias`` is not added here: behind a
    normalisation it only moves the running mean (:class:`msvit.layers.norm.BatchNorm`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.kernel = (height, width)
        self.stride = stride
        self.padding = (height // 2, width // 2) if padding is None else (padding, padding)
        self.groups = groups
        self.weight: Tensor = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, height, width)
        )
        self.bias: Tensor | None = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if is_static(x):
            return kernels.every_step(self._convolve(x[:1]), len(x))
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        return kernels.convolve(x, self.weight, self.stride, self.padding, self.groups)

    def dense_macs(self, x: Tensor, y: Tensor) -> int:
        """Multiply-accumulates of one image in one time step, padding not counted apart."""
        return math.prod(y.shape[2:4]) * self.weight.numel()

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        text = f"{in_channels * self.groups}, {out_channels}, kernel={self.kernel}"
        text += f", stride={self.stride}" if self.stride > 1 else ""
        return text + (f", groups={self.groups}" if self.groups > 1 else "")


class Linear(nn.Linear):
    """Fully connected layer on the last axis, ``[T, B, C_in]`` → ``[T, B, C_out]``."""

    def dense_macs(self, x: Tensor, y: Tensor) -> int:
        return math.prod(y.shape[2:-1]) * self.weight.numel()


class MatrixProduct(nn.Module):
    """Product of two activations, ``[T, B, heads, n, m] @ [T, B, heads, m, p]``."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def dense_macs(self, a: Tensor, b: Tensor) -> int:
        return math.prod(a.shape[2:]) * b.shape[-1]


class SpikeMask(nn.Module):
    """Mask ``spikes`` by spikes of a broadcastable shape: an AND, no arithmetic."""

    def forward(self, mask: Tensor, spikes: Tensor) -> Tensor:
        return mask * spikes


class ValueMask(nn.Module):
    """The same of values that are no spikes: a product for each of ``values`` ``[T, B, ...]``."""

    def forward(self, mask: Tensor, values: Tensor) -> Tensor:
        return mask * values

    def dense_macs(self, mask: Tensor, values: Tensor) -> int:
        return math.prod(values.shape[2:])
