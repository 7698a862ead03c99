"""Spiking units in as few passes over memory as they need, and products that skip zeros.

A unit is what stands between two products of a spiking network: norm, (pool,) neuron and
shortcut. Activations are time-major and channels-last, ``[T, ..., C]``, contiguous or with a time
stride of 0 (a static input, computed once and expanded). float32, bfloat16 (potentials, statistics
and parameters stay float32) and float64.

This file alone chooses what runs: compiled C++ on the CPU, Triton on CUDA, torch and spikingjelly
where that is impossible, where ``MSVIT_KERNELS=off``, and in what ``torch.compile`` traces. Results
are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import build, cpp, fused, plain, products, waiting
from .spec import NeuronSpec, Norm

__all__ = [
    "NeuronSpec",
    "Norm",
    "available",
    "convolve",
    "max_pool",
    "neuron",
    "norm_add",
    "norm_neuron",
    "score_mask",
    "spikes_as_bytes",
]


def off() -> bool:
    """Whether ``MSVIT_KERNELS=off`` forbids all compiled code of our own."""
    return os.environ.get("MSVIT_KERNELS") == "off"


def _left_to_torch() -> bool:
    return off() or torch.compiler.is_compiling()


def available(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> bool:
    """Whether units on ``device`` run in compiled passes; compiles them if need be."""
    return _backend(torch.device(device), dtype) is not None


def norm_neuron(
    y: Tensor,
    norm: Norm,
    spec: NeuronSpec,
    plif_w: Tensor | None = None,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    """Norm (→ 3×3 max pool with stride 2) → neuron (→ + shortcut).

    Args:
        y: output of a convolution or product, ``[T, ..., C]``.
        norm: a BatchNorm of C channels; its running statistics move as in ``norm(y)``.
        spec: the neuron.
        plif_w: scalar, learnable, where ``spec.kind`` is ``"plif"``: decay = sigmoid(w).
        shortcut: added to the spikes, of their shape.
        offset: bias ``[C]`` of the layer in front that y lacks. It only moves the running mean
            (and is known to eval mode); batch statistics cancel it, it receives no gradient.
        pool: ``y`` is ``[T, B, H, W, C]`` and the spikes ``[T, B, ⌈H/2⌉, ⌈W/2⌉, C]``.

    Returns:
        spikes (+ shortcut), ``[T, ..., C]`` of y's dtype.
    """
    passes = _for_units(y, norm, shortcut, offset, pool)
    if passes is None:
        return plain.norm_neuron(y, norm, spec, plif_w, shortcut, offset, pool)
    return fused.norm_neuron(passes, y, norm, spec, plif_w, shortcut, offset, pool)


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """2-D convolution of ``x [T, B, H, W, C]`` with ``weight [N, C / groups, kh, kw]``.

    On a CPU, the weights of spikes (and of small sums of them) are added up where they are few
    enough for that to be faster than multiplying. As in a dense product, bfloat16 rounds operands,
    not sums.

    Returns:
        ``[T, B, H', W', N]``, in autocast of its dtype.
    """
    if weight.shape[2:] == (1, 1) and stride > 1 and padding == (0, 0):
        x, stride = x[:, :, ::stride, ::stride], 1
    same = weight.shape[2:] == tuple(2 * side + 1 for side in padding)
    ours = x.device.type == "cpu" and not _left_to_torch()
    if ours and same and stride == groups == 1:
        y = products.convolve(x, weight)
        if y is not None:
            return y
    return plain.convolve(x, weight, stride, padding, groups)


def neuron(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None = None) -> Tensor:
    """Spikes ``[T, ...]`` of a neuron that is fed ``x [T, ...]``."""
    passes = _for_units(x)
    if passes is None:
        return plain.neuron(x, spec, plif_w)
    return fused.neuron(passes, x, spec, plif_w)


def norm_add(
    y: Tensor,
    norm: Norm,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    """Norm (→ max pool) (→ + shortcut): membrane potential; see :func:`norm_neuron`."""
    passes = _for_units(y, norm, shortcut, offset, pool)
    if passes is None:
        return plain.norm_add(y, norm, shortcut, offset, pool)
    return fused.norm_add(passes, y, norm, shortcut, offset, pool)


def max_pool(x: Tensor) -> Tensor:
    """3×3 max pool with stride 2 and padding 1, ``[T, B, H, W, C]`` → ``[T, B, ⌈H/2⌉, ⌈W/2⌉, C]``.

    The gradient goes to the first of equal values, as in ``torch.nn.functional.max_pool2d``.
    """
    passes = _for_units(x)
    return plain.max_pool(x) if passes is None else fused.max_pool(passes, x)


def score_mask(
    joined: Tensor,
    parts: int,
    wide: Sequence[Tensor],
    spec: NeuronSpec,
    heads: int,
    plif_w: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token attention: votes are summed per head, a neuron makes a mask of them for the keys.

    Args:
        joined: spikes ``[T, ..., parts · C]`` of one product: ``parts - 1`` votes, then the keys.
        parts: at least 1.
        wide: further votes, ``[T, ..., C]`` each.
        spec: the attention neuron, fed one score per token and head.
        heads: C is a multiple of it.
        plif_w: as in :func:`norm_neuron`.

    Returns:
        masked keys ``[T, ..., C]``, and the mask's spikes ``[T, ..., heads]`` (for monitors,
        without gradient).

    Source: QKFormer (arXiv 2403.16552), eq. 6 and 7; MSVIT (arXiv 2505.14719).
    """
    passes = _for_units(joined)
    channels = joined.shape[-1] // parts
    alike = all(w.shape == (*joined.shape[:-1], channels) and _same(w, joined) for w in wide)
    if passes is None or not alike or channels // heads * joined.element_size() % passes.head_bytes:
        return plain.score_mask(joined, parts, wide, spec, heads, plif_w)
    return fused.score_mask(passes, joined, parts, wide, spec, heads, plif_w)


def spikes_as_bytes(device: torch.device) -> AbstractContextManager:
    """Context for a forward pass: spikes that are kept for the backward pass take a byte each.

    On a CPU. Where there are hooks on saved tensors already, they have precedence.
    """
    if device.type != "cpu" or _left_to_torch() or build.compiler() is None:
        return nullcontext()
    return waiting.spikes_as_bytes(torch.is_grad_enabled() and not waiting.others_are_at_work())


def _backend(device: torch.device, dtype: torch.dtype):
    """The passes for tensors of this kind, None where the plain path has to do."""
    if _left_to_torch():
        return None
    if device.type == "cpu":
        return cpp.passes(dtype)
    # Triton starts kernels on the current device only.
    if device.type == "cuda" and device.index in (None, torch.cuda.current_device()):
        return _triton_passes(dtype)
    return None


def _triton_passes(dtype: torch.dtype):
    try:
        from . import triton_units
    except ImportError:
        return None
    return triton_units.passes(dtype)


def _for_units(
    y: Tensor,
    norm: Norm | None = None,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
):
    """The backend that can run a unit on these operands, None for the plain path.

    The passes read memory as it is said to lie; whatever else torch would take, or refuse with
    words, is left to torch.
    """
    passes = _backend(y.device, y.dtype)
    if passes is None or y.numel() == 0:
        return None
    if norm is not None:
        vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var, offset)
        if not all(v is None or _is_vector(v, y, passes.real) for v in vectors):
            return None
    shape = y.shape
    if pool:
        shape = (*y.shape[:2], *((size + 1) // 2 for size in y.shape[2:4]), y.shape[4])
    if shortcut is not None and not (shortcut.shape == shape and _same(shortcut, y)):
        return None
    return passes


def _is_vector(v: Tensor, y: Tensor, dtype: torch.dtype) -> bool:
    in_place = v.device == y.device and v.is_contiguous()
    return in_place and v.dtype == dtype and v.shape == y.shape[-1:]


def _same(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.device == y.device
