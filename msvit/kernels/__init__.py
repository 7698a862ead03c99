"""Spiking units in as few passes over memory as they need, and products that skip zeros.

A unit is what stands between two products of a spiking network: norm, (pool,) neuron and
shortcut. Activations are time-major and channels-last, ``[T, ..., C]``, contiguous or with a time
stride of 0 (a static input, computed once and expanded). float32, bfloat16 (potentials, statistics
and parameters stay float32) and float64.

This file alone chooses what runs. ``MSVIT_KERNELS`` in the environment tells what it may:

    unset, or empty   compiled C++ on the CPU, Triton on CUDA
    off               neither
    cpu               C++ on the CPU alone
    triton            Triton alone; CPU tensors then need its interpreter, ``TRITON_INTERPRET=1``

The reference, torch and spikingjelly, does the rest: what the others cannot, what they may not, and
what ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` record. Results are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from msvit.options import ConfigError

from . import autograd, reference
from .cpu import build, sparse_products, spike_bytes
from .cpu import passes as cpu_passes
from .spec import EQUATIONS, Backend, NeuronSpec, Norm

__all__ = [
    "NeuronSpec",
    "Norm",
    "available",
    "convolve",
    "cpp_compiler",
    "describe",
    "every_step",
    "max_pool",
    "neuron",
    "norm_add",
    "norm_neuron",
    "prepare",
    "spikes_as_bytes",
    "supports",
    "token_attention",
    "use_allocator",
]

CHOICES = ("", "off", "cpu", "triton")
"""Values of ``MSVIT_KERNELS``."""

cpp_compiler = build.compiler


def supports(spec: NeuronSpec) -> bool:
    """Whether the operations here know the equations of a neuron. A layer asks once, when built."""
    return spec.kind in EQUATIONS


def available(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> bool:
    """Whether units on ``device`` run in compiled passes; compiles them if need be."""
    return backend_for(torch.device(device), dtype) is not None


def describe(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """What computes the neurons of ``model``, on activations of ``dtype``, for its record.

    Neurons are its modules with a :class:`NeuronSpec` called ``spec``. The words:

    ``none``            it has none, as a twin
    ``fused``           compiled passes, with norm, pool and shortcut
    ``plain``           torch and spikingjelly, which compute norms and pools as well
    ``plain neurons``   spikingjelly, for want of kernels for them, between compiled norms and pools
    ``mixed neurons``   compiled passes some of them, spikingjelly the others

    Records of earlier versions may say ``torch.compile (…)``: the steps of an option that is gone.
    Single units whose operands lie otherwise than a backend can read go by the reference without
    being named here.
    """
    held = (getattr(module, "spec", None) for module in model.modules())
    specs = {spec for spec in held if isinstance(spec, NeuronSpec) and spec.fires}
    if not specs:
        return "none"
    if not available(device, dtype):
        return "plain"
    known = {supports(spec) for spec in specs}
    if len(known) == 2:
        return "mixed neurons"
    return "fused" if known == {True} else "plain neurons"


def prepare(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Compile and load what ``model`` needs on a CPU, before anybody looks at the clock.

    In autocast of ``dtype``, activations are of float32 as well.
    """
    if _cpp_on(device) and describe(model, device, dtype) != "none":
        for kind in {dtype, torch.float32}:
            build.units(kind)
            build.sparse_products(kind)


def use_allocator() -> None:
    """Have torch take CPU memory from an allocator that uses freed memory again."""
    if _cpp_on(torch.device("cpu")) and (library := build.allocator()):
        library.allocator_use()


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
            Where a process group is there, it gets zeros: ``DistributedDataParallel`` waits for
            a gradient of every parameter.
        pool: ``y`` is ``[T, B, H, W, C]`` and the spikes ``[T, B, ⌈H/2⌉, ⌈W/2⌉, C]``.

    Returns:
        spikes (+ shortcut), ``[T, ..., C]`` of y's dtype.
    """
    backend = _for_unit(y, norm, shortcut, offset, pool)
    if backend is None:
        out = reference.norm_neuron(y, norm, spec, plif_w, shortcut, offset, pool)
    else:
        out = autograd.norm_neuron(backend, y, norm, spec, plif_w, shortcut, offset, pool)
    return _with_zeros_for(offset, norm, out)


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
    if same and stride == groups == 1 and _cpp_on(x.device) and sparse_products.supports(x, weight):
        dense = x.contiguous()
        spikes = sparse_products.few_spikes(dense, weight)
        if spikes is not None:
            return sparse_products.convolve(dense, weight, spikes)
    return reference.convolve(x, weight, stride, padding, groups)


def every_step(x: Tensor, steps: int) -> Tensor:
    """``[1, ...]`` as ``[T, ...]`` without a copy, which units recognise and compute once."""
    if _recorded() or not (torch.is_grad_enabled() and x.requires_grad):
        return x.expand(steps, *x.shape[1:])
    return autograd.every_step(x, steps)


def neuron(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None = None) -> Tensor:
    """Spikes ``[T, ...]`` of a neuron that is fed ``x [T, ...]``."""
    backend = _for_unit(x)
    if backend is None:
        return reference.neuron(x, spec, plif_w)
    return autograd.neuron(backend, x, spec, plif_w)


def norm_add(
    y: Tensor,
    norm: Norm,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    """Norm (→ max pool) (→ + shortcut): membrane potential; see :func:`norm_neuron`."""
    backend = _for_unit(y, norm, shortcut, offset, pool)
    if backend is None:
        out = reference.norm_add(y, norm, shortcut, offset, pool)
    else:
        out = autograd.norm_add(backend, y, norm, shortcut, offset, pool)
    return _with_zeros_for(offset, norm, out)


def _with_zeros_for(offset: Tensor | None, norm: Norm, out: Tensor) -> Tensor:
    """``out``, such that workers who wait for a gradient of every parameter get the offset's.

    Elsewhere it has none, and no optimizer or norm of gradients has to go over zeros.
    """
    if offset is None or not (norm.training and offset.requires_grad and out.requires_grad):
        return out
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return autograd.cancelled(out, offset) if together else out


def max_pool(x: Tensor) -> Tensor:
    """3×3 max pool with stride 2 and padding 1, ``[T, B, H, W, C]`` → ``[T, B, ⌈H/2⌉, ⌈W/2⌉, C]``.

    The gradient goes to the first of equal values, as in ``torch.nn.functional.max_pool2d``.
    """
    backend = _for_unit(x)
    return reference.max_pool(x) if backend is None else autograd.max_pool(backend, x)


def token_attention(
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
    backend = _for_token_attention(joined, parts, wide, heads)
    if backend is None:
        return reference.token_attention(joined, parts, wide, spec, heads, plif_w)
    return autograd.token_attention(backend, joined, parts, wide, spec, heads, plif_w)


def spikes_as_bytes(device: torch.device) -> AbstractContextManager:
    """Context for a forward pass: spikes that are kept for the backward pass take a byte each.

    On a CPU. Where there are hooks on saved tensors already, they have precedence.
    """
    if not _cpp_on(device) or build.compiler() is None:
        return nullcontext()
    keep = torch.is_grad_enabled() and not spike_bytes.others_are_at_work()
    return spike_bytes.spikes_as_bytes(keep)


# What may run, and what a backend cannot do, is said below and nowhere else.


def _allowed() -> str:
    """One of ``CHOICES``."""
    value = os.environ.get("MSVIT_KERNELS", "")
    if value not in CHOICES:
        message = f"one of {', '.join(CHOICES[1:])}, or unset for the fastest"
        raise ConfigError(f"MSVIT_KERNELS={value}", "", message)
    return value


def _recorded() -> bool:
    """Whether torch records operations instead of computing: ours have no memory to read then."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _cpp_on(device: torch.device) -> bool:
    """Whether tensors of ``device`` may go through C++."""
    if device.type != "cpu" or _recorded():
        return False
    return _allowed() in ("", "cpu")


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The passes for tensors of this kind, None where the reference has to do."""
    if _cpp_on(device):
        return cpu_passes.backend(dtype)
    if _recorded():
        return None
    allowed = _allowed()
    # Triton starts kernels on the current device only.
    if device.type == "cuda" and device.index in (None, torch.cuda.current_device()):
        return _triton(dtype) if allowed in ("", "triton") else None
    if device.type == "cpu" and allowed == "triton":
        return _interpreted(dtype)
    return None


def _triton(dtype: torch.dtype) -> Backend | None:
    try:
        from .cuda import passes
    except ImportError:
        return None
    return passes.backend(dtype)


def _interpreted(dtype: torch.dtype) -> Backend | None:
    try:
        from .cuda import passes
    except ImportError:
        raise ConfigError("MSVIT_KERNELS=triton", "", "Triton is not installed") from None
    if not passes.INTERPRETED:
        message = "on the CPU Triton needs TRITON_INTERPRET=1 in the environment from the start"
        raise ConfigError("MSVIT_KERNELS=triton", "", message)
    return passes.backend(dtype)


def _for_unit(
    y: Tensor,
    norm: Norm | None = None,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
) -> Backend | None:
    """The backend that can run a unit on these operands, None for the reference.

    The passes read memory as it is said to lie; whatever else torch would take, or refuse with
    words, is left to torch.
    """
    backend = backend_for(y.device, y.dtype)
    if backend is None or y.numel() == 0:
        return None
    if norm is not None:
        vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if not all(_is_vector(v, y, backend.real) for v in vectors):
            return None
        if offset is not None and not _is_vector(offset, y, backend.real):
            return None
    shape: tuple[int, ...] = y.shape
    if pool:
        shape = (*y.shape[:2], *((size + 1) // 2 for size in y.shape[2:4]), y.shape[4])
    if shortcut is not None and not (shortcut.shape == shape and _same(shortcut, y)):
        return None
    return backend


def _for_token_attention(
    joined: Tensor, parts: int, wide: Sequence[Tensor], heads: int
) -> Backend | None:
    backend = _for_unit(joined)
    if backend is None:
        return None
    channels = joined.shape[-1] // parts
    if not all(w.shape == (*joined.shape[:-1], channels) and _same(w, joined) for w in wide):
        return None
    whole_words = channels // heads * joined.element_size() % backend.head_bytes == 0
    return backend if whole_words else None


def _is_vector(v: Tensor, y: Tensor, dtype: torch.dtype) -> bool:
    in_place = v.device == y.device and v.is_contiguous()
    return in_place and v.dtype == dtype and v.shape == y.shape[-1:]


def _same(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.device == y.device
