"""Neuron-first branches of membrane-shortcut models: ``[T, B, H, W, C]`` potential in and out.

Every neuron stands in front of its weights, so that only spikes are multiplied and what is
added at a shortcut is membrane potential. Source: Spikingformer (arXiv 2304.11954).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from msvit.kernels import NeuronSpec
from msvit.layers.attention import AttentionCore, merge_heads, split_heads
from msvit.layers.synapses import SpikeMask
from msvit.layers.units import ConvNorm, ConvNormNeuron, NeuronConvNorm
from msvit.neurons import Neuron


class MembraneMLP(nn.Module):
    """Two neuron-conv-norm units (+ shortcut), with kernels of 1×1 unless told otherwise."""

    def __init__(
        self, dim: int, hidden: int, neuron: NeuronSpec, bias: bool = True, kernel: int = 1
    ) -> None:
        super().__init__()
        self.fc1 = NeuronConvNorm(dim, hidden, neuron, kernel, bias=bias)
        self.fc2 = NeuronConvNorm(hidden, dim, neuron, kernel, bias=bias)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.fc2(self.fc1(membrane), shortcut)


class MembraneSelfAttention(nn.Module):
    """Spiking self-attention between a neuron in front and a projection behind (+ shortcut).

    ``q, k, v = LIF(BN(W LIF(u)))``, ``u ← BN(W_o LIF_attn(scale · q kᵀ v)) + u``; q, k and v
    are one product. Source: Spikingformer (arXiv 2304.11954).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronSpec,
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


class SpikeDrivenAttention(nn.Module):
    """Attention by masks and additions only: ``BN(W_o (q ⊙ LIF_attn(Σ_N k ⊙ v)))`` (+ shortcut).

    N are the tokens, so one spike or none per channel masks that channel of all queries.
    ``pool`` lets every spike spread to its neighbours (3×3 max pooling, stride 1): those of k
    and v over the image plane, those of both masked tensors over a head's matrix of tokens ×
    channels, as the released code does on CIFAR10-DVS. ``heads`` has a part only in this.
    Source: Spike-driven Transformer (arXiv 2307.01694), and its code.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronSpec,
        attn_threshold: float = 0.5,
        pool: bool = False,
    ) -> None:
        super().__init__()
        self.neuron = Neuron(neuron)
        self.qkv = ConvNormNeuron(dim, 3 * dim, neuron, parts=("q", "k", "v"))
        self.gather = SpikeMask()
        self.attn_neuron = Neuron(neuron.with_(threshold=attn_threshold))
        self.mask = SpikeMask()
        self.proj = ConvNorm(dim, dim, bias=True)
        self.heads = heads
        self.pool = pool

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.neuron(membrane)).chunk(3, dim=-1)
        if self.pool:
            k, v = spread_in_plane(k), spread_in_plane(v)
        gathered = self.gather(k, v)
        if self.pool:
            gathered = spread_in_heads(gathered, self.heads)
        chosen = self.attn_neuron(gathered.sum(dim=(2, 3), keepdim=True))  # [T, B, 1, 1, C]
        out = self.mask(chosen, q)
        if self.pool:
            out = spread_in_heads(out, self.heads)
        return self.proj(out, shortcut)


def spread_in_plane(spikes: Tensor) -> Tensor:
    """3×3 maximum over the image plane of ``[T, B, H, W, C]``, size kept."""
    maps = spikes.flatten(0, 1).permute(0, 3, 1, 2)
    maps = F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    return maps.permute(0, 2, 3, 1).unflatten(0, spikes.shape[:2])


def spread_in_heads(spikes: Tensor, heads: int) -> Tensor:
    """3×3 maximum over tokens × channels of every head of ``[T, B, H, W, C]``, size kept."""
    matrices = split_heads(spikes, heads)
    spread = F.max_pool2d(matrices.flatten(0, 2).unsqueeze(1), kernel_size=3, stride=1, padding=1)
    return merge_heads(spread.view(matrices.shape), spikes.shape[2])
