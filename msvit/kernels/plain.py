"""The spiking units in torch's and spikingjelly's own words: the reference of every backend.

Shapes are those of :mod:`msvit.kernels`. Potentials and statistics are float32 (float64 for
float64 activations), so that the result does not depend on which backend runs.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .spec import NeuronSpec


def norm_neuron(
    y: Tensor,
    norm: _BatchNorm,
    spec: NeuronSpec,
    plif_w: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    return _add(_fire(_normalise(y, norm), spec, plif_w), shortcut, y.dtype)


def neuron(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None = None) -> Tensor:
    return _fire(_exact(x), spec, plif_w).to(x.dtype)


def norm_add(y: Tensor, norm: _BatchNorm, shortcut: Tensor | None = None) -> Tensor:
    return _add(_normalise(y, norm), shortcut, y.dtype)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _add(out: Tensor, shortcut: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (out if shortcut is None else out + _exact(shortcut)).to(dtype)


def _normalise(y: Tensor, norm: _BatchNorm) -> Tensor:
    """Normalise ``[T, ..., C]`` over everything but the last axis, as ``norm(...)`` would."""
    batch = norm.training or norm.running_mean is None
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    rows = _exact(y).reshape(-1, y.shape[-1])
    normalised = F.batch_norm(
        rows,
        norm.running_mean if not norm.training or norm.track_running_stats else None,
        norm.running_var if not norm.training or norm.track_running_stats else None,
        norm.weight,
        norm.bias,
        batch,
        0.0 if momentum is None else momentum,
        norm.eps,
    )
    return normalised.view(y.shape)


@cache
def _surrogate(spec: NeuronSpec) -> surrogate.SurrogateFunctionBase:
    return {"sigmoid": surrogate.Sigmoid, "atan": surrogate.ATan}[spec.surrogate](alpha=spec.alpha)


def _fire(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None) -> Tensor:
    membrane = torch.full_like(x[0], spec.v_reset or 0.0)
    common = (spec.threshold, spec.v_reset, _surrogate(spec), spec.detach_reset)
    if spec.kind == "if":
        return functional.if_multi_step(x, membrane, *common)[0]
    if spec.kind == "lif":
        return functional.lif_multi_step(x, membrane, spec.tau, spec.decay_input, *common)[0]
    return functional.plif_multi_step(x, membrane, plif_w, spec.decay_input, *common)[0]
