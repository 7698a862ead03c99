"""Spiking units in as few passes over memory as they need.

A unit is what stands between two products of a spiking network: norm, (pool,) neuron and
shortcut. Activations are time-major and channels-last, ``[T, ..., C]``, contiguous or with a time
stride of 0 (a static input, computed once and expanded). float32, bfloat16 (potentials, statistics
and parameters stay float32) and float64.

This file alone chooses what runs: compiled C++ on the CPU, torch and spikingjelly where that is
impossible or ``MSVIT_KERNELS=off``. Results are the same.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from . import cpp, fused, plain
from .spec import NeuronSpec, Norm

__all__ = ["NeuronSpec", "Norm", "available", "neuron", "norm_add", "norm_neuron"]


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
) -> Tensor:
    """Norm → neuron (→ + shortcut).

    Args:
        y: output of a convolution or product, ``[T, ..., C]``.
        norm: a BatchNorm of C channels; its running statistics move as in ``norm(y)``.
        spec: the neuron.
        plif_w: scalar, learnable, where ``spec.kind`` is ``"plif"``: decay = sigmoid(w).
        shortcut: added to the spikes, ``[T, ..., C]``.
        offset: bias ``[C]`` of the layer in front that y lacks. It only moves the running mean
            (and is known to eval mode); batch statistics cancel it, it receives no gradient.

    Returns:
        spikes (+ shortcut), ``[T, ..., C]`` of y's dtype.
    """
    passes = _for_units(y, norm)
    if passes is None:
        return plain.norm_neuron(y, norm, spec, plif_w, shortcut, offset)
    return fused.norm_neuron(passes, y, norm, spec, plif_w, shortcut, offset)


def neuron(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None = None) -> Tensor:
    """Spikes ``[T, ...]`` of a neuron that is fed ``x [T, ...]``."""
    passes = _for_units(x)
    if passes is None:
        return plain.neuron(x, spec, plif_w)
    return fused.neuron(passes, x, spec, plif_w)


def norm_add(
    y: Tensor, norm: Norm, shortcut: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """Norm (→ + shortcut) without a neuron: membrane potentials, ``[T, ..., C]``."""
    passes = _for_units(y, norm)
    if passes is None:
        return plain.norm_add(y, norm, shortcut, offset)
    return fused.norm_add(passes, y, norm, shortcut, offset)


def _backend(device: torch.device, dtype: torch.dtype):
    if os.environ.get("MSVIT_KERNELS") == "off" or device.type != "cpu":
        return None
    return cpp.passes(dtype)


def _for_units(y: Tensor, norm: Norm | None = None):
    """The backend that can run a unit on ``y``, None for the plain path."""
    passes = _backend(y.device, y.dtype)
    if passes is None or y.numel() == 0:
        return None
    if norm is not None:
        vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if any(v is not None and v.dtype != passes.real for v in vectors):
            return None
    return passes
