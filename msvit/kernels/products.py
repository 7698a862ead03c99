"""Convolutions and products whose input are spikes: only what has fired is added up.

A dense product multiplies each zero. Where few spikes come in, the sum of the weights of those that
came is several times faster, and so is the gradient of the weights; the gradient of the input is
dense in any case. Chosen call by call from the number of spikes, so that the same numbers take the
same way.

What is skipped is not looked at: a NaN in a weight is seen where its channel fires, one in a
gradient by the weights of channels that fired there and by the gradient of the input.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from msvit import processor

from . import cpp, plain, waiting

_FEWEST_CHANNELS = 16  # lists of fewer have little to skip
_LARGEST_PLACE = 2**16


class _Bounds(NamedTuple):
    """Beyond which a dense product is as fast.

    ``most_spikes`` per element. Fewer ``channels`` (so that the list of a pixel is short) or
    ``outputs`` are multiplied in the forward pass, but not for the gradient of the weights.
    """

    most_spikes: float
    channels: int
    outputs: int


def convolve(x: Tensor, weight: Tensor) -> Tensor | None:
    """Convolution with stride 1 that keeps the size of the plane, ``[T, B, H, W, C]``.

    None where a dense product is to do it: the input are no spikes, or too many, or nothing here
    fits the operands.
    """
    if not _fits(x, weight):
        return None
    products = cpp.products(x.dtype)
    if products is None or weight.dtype != products.real:
        return None
    x = x.contiguous()
    found = waiting.bytes_of(x)
    bounds = _bounds(x.dtype)
    if found is None or found.total > x.numel() * bounds.most_spikes:
        return None
    narrow = weight.shape[1] < bounds.channels or len(weight) < bounds.outputs
    return _SpikeConvolution.apply(x, weight, products, found.values, narrow)


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether lists of places can hold it; what torch would refuse in words is left to torch."""
    if torch.jit.is_tracing() or type(x) is not Tensor:  # what has no memory to read
        return False
    if x.ndim != 5 or weight.ndim != 4 or weight.device != x.device or not x.numel():
        return False
    channels, (height, width) = x.shape[-1], weight.shape[2:]
    if weight.shape[1] != channels or channels < _FEWEST_CHANNELS or not (height % 2 and width % 2):
        return False
    # Rows of one image in a frame are the smallest tile.
    framed = 1 if height == width == 1 else (x.shape[3] + width - 1) * (2 * height - 1)
    if max(channels, framed) >= _LARGEST_PLACE:
        return False
    if torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.get_autocast_dtype("cpu")
    return x.dtype == weight.dtype


@cache
def _bounds(dtype: torch.dtype) -> _Bounds:
    """Measured where dense products run at full speed: an AMD (Zen 4) and an Intel without AMX.

    In bfloat16 that is the speed of float32 or less, twice as much, or so much (AMX) that sums are
    expected to be slower at any firing rate.
    """
    if dtype == torch.float32:
        return _Bounds(0.33, 48, 0)
    if dtype == torch.float64 or not processor.multiplies_bf16_faster():
        return _Bounds(0.4, 0, 0)
    return _Bounds(0.0 if processor.multiplies_matrices() else 0.2, 48, 64)


class _SpikeConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x, weight, products, values, dense):
        weight = weight.contiguous()
        ctx.save_for_backward(values, weight)
        ctx.products, ctx.shape = products, x.shape
        if dense:
            padding = tuple(side // 2 for side in weight.shape[2:])
            return plain.convolve(x, weight.to(x.dtype), 1, padding, 1)
        return products.product(values, x.shape, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        values, weight = ctx.saved_tensors
        grad = grad.contiguous()
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        x_grad = weight_grad = None
        if needs_x:
            x_grad = _input_gradient(grad, weight.to(grad.dtype))
        if needs_weight:
            given = (values, ctx.shape, grad, weight.shape)
            weight_grad = ctx.products.weight_gradient(*given)
        return x_grad, weight_grad, None, None, None


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """What a convolution with the turned weight makes of the gradient."""
    padding = tuple(side // 2 for side in weight.shape[2:])
    turned = weight.flip(2, 3).transpose(0, 1)
    with torch.autocast("cpu", enabled=False):  # as in forward, whatever surrounds backward
        return plain.convolve(grad, turned, 1, padding, 1)
