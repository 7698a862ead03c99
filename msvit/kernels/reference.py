"""The operations in torch's and spikingjelly's own words: the reference of every backend.

Names, arguments and shapes are those of :mod:`msvit.kernels`. Potentials and statistics are float32
(float64 for float64 activations), so that the result does not depend on which backend runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor

from .spec import NeuronSpec, Norm, shared_by

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup


def norm_neuron(
    y: Tensor,
    norm: Norm,
    spec: NeuronSpec,
    plif_w: Tensor | None = None,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    current = _normalise(y, norm, offset)
    return _add(_fire(_pool(current) if pool else current, spec, plif_w), shortcut, y.dtype)


def convolve(
    x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], groups: int
) -> Tensor:
    if weight.shape[2:] == (1, 1) and stride == groups == 1 and padding == (0, 0):
        return F.linear(x, weight.flatten(1))
    maps = x.flatten(0, 1).permute(0, 3, 1, 2)  # the same memory, as channels_last
    maps = F.conv2d(maps, weight, stride=stride, padding=padding, groups=groups)
    return maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def neuron(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None = None) -> Tensor:
    return _fire(_exact(x), spec, plif_w).to(x.dtype)


def norm_add(
    y: Tensor,
    norm: Norm,
    shortcut: Tensor | None = None,
    offset: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    membrane = _normalise(y, norm, offset)
    return _add(_pool(membrane) if pool else membrane, shortcut, y.dtype)


def max_pool(x: Tensor) -> Tensor:
    return _pool(x)


def token_attention(
    joined: Tensor,
    parts: int,
    wide: Sequence[Tensor],
    spec: NeuronSpec,
    heads: int,
    plif_w: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    *votes, keys = joined.chunk(parts, dim=-1)
    per_head = [_exact(v).unflatten(-1, (heads, -1)) for v in (*votes, *wide)]
    score = torch.stack([v.sum(-1) for v in per_head]).sum(0)
    mask = _fire(score, spec, plif_w).to(joined.dtype)
    return (mask.unsqueeze(-1) * keys.unflatten(-1, (heads, -1))).flatten(-2), mask.detach()


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _pool(x: Tensor) -> Tensor:
    """3×3 max pool with stride 2 of ``[T, B, H, W, C]``."""
    maps = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), kernel_size=3, stride=2, padding=1)
    return maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _add(out: Tensor, shortcut: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (out if shortcut is None else out + _exact(shortcut)).to(dtype)


def _normalise(y: Tensor, norm: Norm, offset: Tensor | None) -> Tensor:
    """Normalise ``[T, ..., C]`` over all axes but the last, as ``norm(y + offset)`` would."""
    rows = _exact(y).reshape(-1, y.shape[-1])
    if offset is not None:
        rows = rows + offset.detach()
    momentum = norm.momentum
    if norm.training:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    if (group := shared_by(norm)) is not None:
        return _normalise_together(rows, norm, momentum or 0.0, group).view(y.shape)
    normalised = F.batch_norm(
        *(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias),
        *(norm.training, momentum or 0.0, norm.eps),
    )
    return normalised.view(y.shape)


def _normalise_together(rows: Tensor, norm: Norm, momentum: float, group: ProcessGroup) -> Tensor:
    """``rows [n, C]`` by the statistics of all workers' rows; torch's own knows no CPU."""
    from torch.distributed.nn.functional import all_reduce  # with a gradient

    sums = all_reduce(torch.cat((rows.sum(0), rows.new_tensor([len(rows)]))), group=group)
    count = sums[-1]
    rows = rows - sums[:-1] / count
    var = all_reduce(rows.square().sum(0), group=group) / count
    with torch.no_grad():
        norm.running_mean.lerp_(sums[:-1] / count, momentum)
        norm.running_var.lerp_(var * (count / (count - 1)), momentum)
    return rows * (var + norm.eps).rsqrt() * norm.weight + norm.bias


def surrogate_function(spec: NeuronSpec) -> surrogate.SurrogateFunctionBase:
    """spikingjelly's surrogate of ``spec``."""
    name = {"atan": "ATan"}.get(spec.surrogate, spec.surrogate.title().replace("_", ""))
    return getattr(surrogate, name)(alpha=spec.alpha)


def _fire(x: Tensor, spec: NeuronSpec, plif_w: Tensor | None) -> Tensor:
    if len(x) == 0:  # of a neuron that steps over the images of an empty batch
        return x
    membrane = torch.zeros_like(x[0])
    v_reset = 0.0 if spec.hard_reset else None
    common = (spec.threshold, v_reset, surrogate_function(spec), spec.detach_reset)
    spec.check_equations()
    if spec.kind == "if":
        return functional.if_multi_step(x, membrane, *common)[0]
    if spec.kind == "lif":
        return functional.lif_multi_step(x, membrane, spec.tau, spec.decay_input, *common)[0]
    return functional.plif_multi_step(x, membrane, plif_w, spec.decay_input, *common)[0]
