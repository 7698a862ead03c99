"""Dual spike self-attention (DSSA) on membrane potential ``[T, B, H, W, C]``.

Source: SpikingResformer (arXiv 2403.14302), section 4, and its code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msvit import workers
from msvit.kernels import NeuronSpec
from msvit.layers.attention import merge_heads, split_heads
from msvit.layers.synapses import MatrixProduct
from msvit.layers.units import ConvNorm
from msvit.neurons import Neuron

MOMENTUM = 0.999


class FiringRate(nn.Module):
    """Running mean of the firing rate per head of spikes ``[T, B, heads, N, n]``.

    A buffer, moved by every training batch as BatchNorm's statistics are. The first batch in
    which a head fires initialises it. Until then a head counts as always firing (rate 1), so
    that a model that was never trained has finite outputs in eval mode; the released code
    divides by zero there, and in training from the first silent head on. Where it does not,
    both are the same.
    """

    rate: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(1, 1, heads, 1, 1))

    def forward(self, spikes: Tensor) -> Tensor:
        """The running rate, ``[1, 1, heads, 1, 1]``, this batch included while training."""
        if self.training:
            with torch.no_grad():
                batch = spikes.mean(dim=(0, 1, 3, 4), keepdim=True, dtype=self.rate.dtype)
                if hasattr(self, "process_group"):  # as a norm that shares its statistics
                    batch = workers.total(batch) / workers.count()
                known = torch.where(self.rate > 0, self.rate, batch)
                self.rate.copy_(known.lerp(batch, 1 - MOMENTUM))
        return torch.where(self.rate > 0, self.rate, torch.ones_like(self.rate))


class DualSpikeAttention(nn.Module):
    """Attention between spikes x and a strided, analog transform of them (+ shortcut).

    ``y₁, y₂ = BN(conv_p(x))`` (kernel and stride p), ``A = LIF(c₁ · x y₁ᵀ)``,
    ``u ← BN(W LIF(c₂ · A y₂)) + u``. No product is left analog × analog: x and A are spikes.
    ``c₁ = 1/√(f_x d)`` and ``c₂ = 1/√(f_A N)`` keep the variance of the products, with the
    running firing rates f of x and A per head, d channels of a head and N tokens of y.
    """

    def __init__(
        self, dim: int, heads: int, patch: int, neuron: NeuronSpec, attn_threshold: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.neuron = Neuron(neuron)
        self.transform = ConvNorm(dim, 2 * dim, kernel=patch, stride=patch, padding=0)
        self.rate = FiringRate(heads)
        self.first = MatrixProduct()
        self.attn_neuron = Neuron(neuron.with_(threshold=attn_threshold))
        self.attn_rate = FiringRate(heads)
        self.second = MatrixProduct()
        self.out_neuron = Neuron(neuron)
        self.proj = ConvNorm(dim, dim)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        spikes = self.neuron(membrane)
        x = split_heads(spikes, self.heads)  # [T, B, heads, H·W, d]
        # The channels of a head: first its y₁, then its y₂.
        y1, y2 = split_heads(self.transform(spikes), self.heads).chunk(2, dim=-1)  # [.., N, d]

        scale = (self.rate(x) * x.shape[-1]).rsqrt()
        attn = self.attn_neuron(self.first(x, y1.transpose(-1, -2)) * scale)  # [.., H·W, N]
        scale = (self.attn_rate(attn) * attn.shape[-1]).rsqrt()
        out = merge_heads(self.second(attn, y2) * scale, spikes.shape[2])
        return self.proj(self.out_neuron(out), shortcut)
