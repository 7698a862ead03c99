"""Neuron-first branches of membrane-shortcut models: ``[T, B, H, W, C]`` potential in and out.

Every neuron stands in front of its weights, so that only spikes are multiplied and what is
added at a shortcut is membrane potential. Source: Spikingformer (arXiv 2304.11954), fig. 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from msvit.layers.attention import AttentionCore
from msvit.layers.units import ConvNorm, ConvNormNeuron, NeuronConvNorm
from msvit.neurons import Neuron, NeuronConfig


class MembraneMLP(nn.Module):
    """Two 1×1 neuron-conv-norm units (+ shortcut)."""

    def __init__(self, dim: int, hidden: int, neuron: NeuronConfig, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = NeuronConvNorm(dim, hidden, neuron, bias=bias)
        self.fc2 = NeuronConvNorm(hidden, dim, neuron, bias=bias)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.fc2(self.fc1(membrane), shortcut)


class MembraneSelfAttention(nn.Module):
    """Spiking self-attention between a neuron in front and a projection behind (+ shortcut).

    ``q, k, v = LIF(BN(W LIF(u)))``, ``u ← BN(W_o LIF_attn(scale · q kᵀ v)) + u``; q, k and v
    are one product. Source: Spikingformer (arXiv 2304.11954), eq. 7–10.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronConfig,
        attn_threshold: float = 0.5,
        scale: float = 0.125,
        proj_bias: bool = True,
    ) -> None:
        super().__init__()
        self.neuron = Neuron(neuron)
        self.qkv = ConvNormNeuron(dim, 3 * dim, neuron, parts=("q", "k", "v"))
        self.attend = AttentionCore(heads, neuron.with_(threshold=attn_threshold), scale)
        self.proj = ConvNorm(dim, dim, bias=proj_bias)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.neuron(membrane)).chunk(3, dim=-1)
        return self.proj(self.attend(q, k, v), shortcut)
