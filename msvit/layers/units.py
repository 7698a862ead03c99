"""The units every spiking model is written in.

``ConvNormNeuron`` emits spikes (Spikformer, QKFormer, MSVIT); ``NeuronConvNorm`` passes
membrane potential on (Spikingformer, Spike-driven Transformer, Max-Former). Both take
``[T, B, H, W, C]`` and add an optional shortcut to what they return.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from msvit import kernels
from msvit.kernels import NeuronSpec, max_pool
from msvit.layers.norm import BatchNorm
from msvit.layers.synapses import Conv
from msvit.neurons import Neuron, watched


def add(x: Tensor, shortcut: Tensor | None) -> Tensor:
    return x if shortcut is None else x + shortcut


def fire(
    norm: BatchNorm,
    neuron: Neuron,
    y: Tensor,
    offset: Tensor | None = None,
    shortcut: Tensor | None = None,
    pool: bool = False,
) -> Tensor:
    """Norm (→ max pool) → neuron (→ + shortcut) of a current, in one go where kernels know it.

    A monitored neuron shows its spikes before the shortcut is added.
    """
    if not neuron.in_kernels:
        return add(neuron(norm(y, offset, pool=pool)), shortcut)
    unit = (y, norm, neuron.spec, neuron.time_constant)
    if shortcut is not None and not watched(neuron.spikes):
        return kernels.norm_neuron(*unit, shortcut, offset, pool)
    return add(neuron.spikes(kernels.norm_neuron(*unit, None, offset, pool)), shortcut)


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
        return self.norm(self.conv(x), self.conv.bias, shortcut, self.pool)


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
        neuron: NeuronSpec,
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
        if self.pool == "after":
            return add(max_pool(fire(self.norm, self.neuron, y, self.conv.bias)), shortcut)
        return fire(self.norm, self.neuron, y, self.conv.bias, shortcut, self.pool == "before")


class NeuronConvNorm(nn.Module):
    """Neuron (→ max pool) → convolution → norm (→ max pool) (→ + shortcut): membrane potential.

    ``pool`` tells where 3×3 max pooling with stride 2 stands: ``"spikes"``, behind the
    neuron, or ``"membrane"``, behind the norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        neuron: NeuronSpec,
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
