"""Convolutions and products whose input are spikes: only what has fired is added up.

A dense product multiplies each zero. Where few spikes come in, the sum of the weights of those that
came is several times faster, and so is the gradient of the weights; the gradient of the input is
dense in any case. Chosen call by call from the number of spikes, so that the same numbers take the
same way.

What is skipped is not looked at: a NaN in a weight is seen where its channel fires, one in a
gradient by the weights of channels that fired there and by the gradient of the input.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import POINTER, c_int, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from msvit import processor

from .. import reference
from . import build, spike_bytes
from .spike_bytes import Spikes

FEWEST_CHANNELS = 16  # lists of fewer have little to skip
_LARGEST_PLACE = 2**16


class Bounds(NamedTuple):
    """Beyond which a dense product is as fast.

    ``most_spikes`` per element. Fewer ``channels`` (so that the list of a pixel is short) or
    ``outputs`` are multiplied in the forward pass, but not for the gradient of the weights.
    """

    most_spikes: float
    channels: int
    outputs: int


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether these operands can be added up: as they lie, and as far as products were compiled.

    What torch would refuse in words is left to torch.
    """
    if not _fits(x, weight):
        return False
    products = library(x.dtype)
    return products is not None and weight.dtype == products.real


def few_spikes(x: Tensor, weight: Tensor) -> Spikes | None:
    """The bytes of contiguous ``x``, None where it holds other numbers or too many spikes."""
    found = spike_bytes.bytes_of(x)
    if found is None or found.total > x.numel() * bounds(x.dtype).most_spikes:
        return None
    return found


def convolve(x: Tensor, weight: Tensor, spikes: Spikes) -> Tensor:
    """Convolution with stride 1 that keeps the size of the plane, ``[T, B, H, W, C]``.

    Contiguous ``x`` and its ``spikes`` hold the same numbers.
    """
    least = bounds(x.dtype)
    narrow = weight.shape[1] < least.channels or len(weight) < least.outputs
    return _SpikeConvolution.apply(x, weight, library(x.dtype), spikes.values, narrow)


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether lists of places can hold it."""
    if torch.jit.is_tracing() or type(x) is not Tensor:  # what has no memory to read
        return False
    if x.ndim != 5 or weight.ndim != 4 or weight.device != x.device or not x.numel():
        return False
    channels, (height, width) = x.shape[-1], weight.shape[2:]
    if weight.shape[1] != channels or channels < FEWEST_CHANNELS or not (height % 2 and width % 2):
        return False
    # Rows of one image in a frame are the smallest tile.
    framed = 1 if height == width == 1 else (x.shape[3] + width - 1) * (2 * height - 1)
    if max(channels, framed) >= _LARGEST_PLACE:
        return False
    if torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.get_autocast_dtype("cpu")
    return x.dtype == weight.dtype


@cache
def bounds(dtype: torch.dtype) -> Bounds:
    """Measured where dense products run at full speed: an AMD (Zen 4) and an Intel without AMX.

    In bfloat16 that is the speed of float32 or less, twice as much, or so much (AMX) that sums are
    expected to be slower at any firing rate.
    """
    if dtype == torch.float32:
        return Bounds(0.33, 48, 0)
    if dtype == torch.float64 or not processor.multiplies_bf16_faster():
        return Bounds(0.4, 0, 0)
    return Bounds(0.0 if processor.multiplies_matrices() else 0.2, 48, 64)


class _SpikeConvolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, products: Products, values: Tensor, dense: bool
    ) -> Tensor:
        weight = weight.contiguous()
        ctx.save_for_backward(values, weight)
        ctx.products, ctx.shape = products, x.shape
        if dense:
            padding = (weight.shape[2] // 2, weight.shape[3] // 2)
            return reference.convolve(x, weight.to(x.dtype), 1, padding, 1)
        return products.product(values, x.shape, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    turned = weight.flip(2, 3).transpose(0, 1)
    with torch.autocast("cpu", enabled=False):  # as in forward, whatever surrounds backward
        return reference.convolve(grad, turned, 1, padding, 1)


@cache
def library(dtype: torch.dtype) -> Products | None:
    """Products of spikes for activations of ``dtype``, None where they cannot be compiled."""
    compiled = build.sparse_products(dtype)
    return None if compiled is None else Products(compiled, dtype)


class _Plane(ctypes.Structure):
    _fields_ = tuple(
        (name, c_int64)
        for name in (
            *("images", "height", "width", "channels", "outputs"),
            *("kernel_height", "kernel_width"),
        )
    )


class Products:
    """The products of sparse_products.cpp: of spikes, given as bytes, with weights or gradients.

    ``x`` are the bytes of spikes ``[..., H, W, C]``, with ``shape``; ``weight``, contiguous
    ``[N, C, kh, kw]`` of dtype ``real`` with odd sides, slides over H and W with stride 1 and zeros
    around the plane.
    """

    def __init__(self, compiled: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self._product, self._gradient = compiled.spike_product, compiled.spike_gradient
        for function in (self._product, self._gradient):
            function.argtypes = (c_void_p, c_void_p, c_void_p, POINTER(_Plane), c_int)
            function.restype = None

    def product(self, x: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        """``[..., H, W, N]`` of the activations' dtype."""
        out = torch.empty(*shape[:-1], len(weight), dtype=self.dtype)
        self._run(self._product, x, weight, out, _plane(shape, weight.shape))
        return out

    def weight_gradient(
        self, x: Tensor, shape: torch.Size, grad: Tensor, weight_shape: torch.Size
    ) -> Tensor:
        """Gradient of the weight, of dtype ``real``, from that of the product, contiguous."""
        out = torch.empty(weight_shape, dtype=self.real)
        self._run(self._gradient, x, grad, out, _plane(shape, weight_shape))
        return out

    @staticmethod
    def _run(function: Any, x: Tensor, other: Tensor, out: Tensor, plane: _Plane) -> None:
        threads = torch.get_num_threads()
        function(x.data_ptr(), other.data_ptr(), out.data_ptr(), plane, threads)


def _plane(shape: torch.Size, weight_shape: torch.Size) -> _Plane:
    *images, height, width, channels = shape
    outputs, _, *kernel = weight_shape
    if kernel == [1, 1]:  # a matrix product knows no plane
        images, height, width = [], math.prod((*images, height, width)), 1
    return _Plane(math.prod(images), height, width, channels, outputs, *kernel)
