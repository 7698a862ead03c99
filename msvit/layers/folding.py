"""A network as it is deployed: convolutions with a bias, neurons, products; no norm, no rate.

What is constant at inference is folded into the weights that it scales:

norms              into the convolution in front, as a scale of its weights and a bias
:class:`RepConv`   its three factors and two norms, and the norm behind, into one 3×3 convolution
firing rates       of dual spike self-attention into the transform that the products meet
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from msvit.layers.dualspike import DualSpikeAttention
from msvit.layers.norm import BatchNorm
from msvit.layers.repconv import RepConv
from msvit.layers.units import ConvNorm, ConvNormNeuron

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def folded(model: Network) -> Network:
    """A copy of ``model`` in eval mode that computes the same with everything folded.

    Norms that are left only add a bias. Those of branches that share a projection stay as they
    are: one set of weights cannot have the scale of each.
    """
    network = copy.deepcopy(model).eval()
    for module in [*network.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, RepConv):
                whole = _one_convolution(child)
                setattr(module, name, whole)
                outer = getattr(module, f"{name}_norm", None)
                if isinstance(outer, BatchNorm):
                    scale, shift = _affine(outer)
                    _fold(whole, scale, shift)
                    _only_bias(outer, torch.zeros_like(shift))
    for module in network.modules():
        if isinstance(module, ConvNorm | ConvNormNeuron):
            _fold(module)
    for module in network.modules():
        if isinstance(module, DualSpikeAttention):
            _fold_rates(module)
    return network


def _affine(norm: BatchNorm, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and shift of what ``norm`` does in eval mode to a current that lacks ``offset``."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if offset is None else norm.running_mean - offset
    return scale, norm.bias - mean * scale


def _only_bias(norm: BatchNorm, bias: Tensor) -> None:
    norm.weight.fill_(1)
    norm.bias.copy_(bias)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)


def _fold(
    unit: ConvNorm | ConvNormNeuron, scale: Tensor | None = None, shift: Tensor | None = None
) -> None:
    """Fold the norm of a unit into its convolution, and then a scale and shift behind it."""
    own_scale, own_shift = _affine(unit.norm, unit.conv.bias)
    if scale is not None and shift is not None:
        own_scale, own_shift = own_scale * scale, own_shift * scale + shift
    unit.conv.weight.mul_(own_scale.view(-1, 1, 1, 1))
    unit.conv.bias = None
    _only_bias(unit.norm, own_shift)


def _one_convolution(module: RepConv) -> ConvNorm:
    """1×1 → norm → depthwise 3×3 → 1×1 → norm as one 3×3 convolution with a bias.

    The border that the depthwise factor sees is what the first norm makes of zero, so that zero
    padding around the whole is the same.
    """
    point, mix = module.point.conv.weight[:, :, 0, 0], module.mix.conv.weight[:, :, 0, 0]
    depthwise = module.depthwise.weight[:, 0]  # [wide, 3, 3]
    scale, shift = _affine(module.point.norm)
    parts = len(mix) // mix.shape[1]
    full = torch.block_diag(*mix.chunk(parts))  # [wide, wide], over all groups
    weight = torch.einsum("om,mhw,mi->oihw", full, depthwise, scale[:, None] * point)
    whole = ConvNorm(weight.shape[1], len(weight), 3).to(weight)
    whole.conv.weight.copy_(weight)
    _only_bias(whole.norm, full @ (depthwise.sum((1, 2)) * shift))
    _fold(whole, *_affine(module.mix.norm))
    return whole.eval()


def _fold_rates(attention: DualSpikeAttention) -> None:
    """Running rates, one per head, into the channels of y₁ and y₂ that they scale.

    The constant parts of the scales, channels and tokens, belong to the neurons' thresholds.
    """
    transform = attention.transform
    first, second = (
        torch.where(r.rate > 0, r.rate, torch.ones_like(r.rate)).rsqrt().flatten()
        for r in (attention.rate, attention.attn_rate)
    )
    width = len(transform.conv.weight) // (2 * attention.heads)
    scale = torch.stack([first, second], 1).repeat_interleave(width, 1).flatten()
    transform.conv.weight.mul_(scale.view(-1, 1, 1, 1))
    transform.norm.bias.mul_(scale)
    for rate in (attention.rate, attention.attn_rate):
        rate.rate.fill_(1)
