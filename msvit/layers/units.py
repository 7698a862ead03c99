"""The units every spiking model is written in.

``ConvNormNeuron`` emits spikes (Spikformer, QKFormer, MSVIT); ``NeuronConvNorm`` passes
membrane potential on (Spikingformer, Spike-driven Transformer, Max-Former). Both take
``[T, B, H, W, C]`` and add an optional shortcut to what they return.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from msvit import kernels
from msvit.layers.norm import BatchNorm
from msvit.layers.synapses import Conv, is_static
from msvit.neurons import Neuron, NeuronConfig


def max_pool(x: Tensor) -> Tensor:
    """3×3 max pooling with stride 2: ``[T, B, H, W, C]`` → ``[T, B, ⌈H/2⌉, ⌈W/2⌉, C]``."""
    if is_static(x):
        return max_pool(x[:1]).expand(x.shape[0], *(-1,) * 4)
    maps = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), kernel_size=3, stride=2, padding=1)
    return maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def add(x: Tensor, shortcut: Tensor | None) -> Tensor:
    return x if shortcut is None else x + shortcut


def fire(
    norm: BatchNorm,
    neuron: Neuron,
    y: Tensor,
    offset: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Norm → neuron (→ + shortcut) of a current ``y``, in one go where kernels can.

    A monitored neuron shows its spikes before the shortcut is added.
    """
    if neuron.spec is None:
        return add(neuron(norm(y, offset)), shortcut)
    fused_shortcut = None if neuron.watched else shortcut
    with norm.behind(offset) as seen:
        out = kernels.norm_neuron(y, seen, neuron.spec, neuron.time_constant, fused_shortcut)
    if fused_shortcut is not None:
        return out
    return add(neuron.spikes(out), shortcut)


class ConvNorm(nn.Module):
    """Convolution → norm (→ max pool) (→ + shortcut): a current, or membrane potential."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        pool: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, kernel, stride, padding, groups, bias)
        self.norm = BatchNorm(out_channels)
        self.pool = pool

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if not self.pool:
            return self.norm(y, self.conv.bias, shortcut)
        return add(max_pool(self.norm(y, self.conv.bias)), shortcut)


class ConvNormNeuron(nn.Module):
    """Convolution → norm (→ max pool) → neuron (→ max pool) (→ + shortcut): spikes.

    ``pool`` tells where 3×3 max pooling with stride 2 stands: ``"before"`` or ``"after"``
    the neuron. ``parts`` names slices of the output channels (:class:`msvit.neurons.Spikes`).
    With ``coupled`` the neuron steps over ``T·B`` instead of ``T``: membrane potential
    passes from one image to the next, as in the last neuron of the released QKFormer's and
    MSVIT's self-attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        neuron: NeuronConfig,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        pool: Literal["none", "before", "after"] = "none",
        parts: tuple[str, ...] = (),
        coupled: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, kernel, stride, groups=groups, bias=bias)
        self.norm = BatchNorm(out_channels)
        self.neuron = Neuron(neuron, parts)
        self.pool = pool
        self.coupled = coupled

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if self.coupled:
            y = y.reshape(-1, 1, *y.shape[2:])
            spikes = fire(self.norm, self.neuron, y, self.conv.bias)
            return add(spikes.reshape(*x.shape[:2], *spikes.shape[2:]), shortcut)
        if self.pool == "none":
            return fire(self.norm, self.neuron, y, self.conv.bias, shortcut)
        if self.pool == "before":
            spikes = self.neuron(max_pool(self.norm(y, self.conv.bias)))
        else:
            spikes = max_pool(fire(self.norm, self.neuron, y, self.conv.bias))
        return add(spikes, shortcut)


class NeuronConvNorm(nn.Module):
    """Neuron (→ max pool) → convolution → norm (→ max pool) (→ + shortcut): membrane potential.

    ``pool`` tells where 3×3 max pooling with stride 2 stands: ``"spikes"``, behind the
    neuron, or ``"membrane"``, behind the norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        neuron: NeuronConfig,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
        pool: Literal["none", "spikes", "membrane"] = "none",
    ) -> None:
        super().__init__()
        self.neuron = Neuron(neuron)
        self.pool = pool == "spikes"
        self.synapse = ConvNorm(
            in_channels, out_channels, kernel, stride, padding, groups, bias, pool == "membrane"
        )

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        spikes = self.neuron(membrane)
        return self.synapse(max_pool(spikes) if self.pool else spikes, shortcut)
