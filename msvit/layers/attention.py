"""Spiking attentions on spikes ``[T, B, H, W, C]``; tokens are the pixels in raster order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from msvit import kernels
from msvit.kernels import NeuronSpec
from msvit.layers.norm import BatchNorm
from msvit.layers.synapses import Conv, MatrixProduct, SpikeMask, ValueMask
from msvit.layers.units import ConvNormNeuron, fire
from msvit.neurons import Neuron, watched


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[T, B, H, W, C]`` → ``[T, B, heads, N, C/heads]``, a view."""
    return x.flatten(2, 3).unflatten(-1, (heads, -1)).transpose(2, 3)


def merge_heads(x: Tensor, height: int) -> Tensor:
    """``[T, B, heads, N, C/heads]`` → ``[T, B, H, W, C]``."""
    return x.transpose(2, 3).flatten(3).unflatten(2, (height, -1))


class AttentionCore(nn.Module):
    """Softmax-free attention ``LIF(scale · q kᵀ v)`` between spikes ``[T, B, H, W, C]``.

    Without a softmax the product may be taken in either order; the one that needs fewer
    operations is. Source: Spikformer (arXiv 2209.15425), eq. 7.
    """

    def __init__(self, heads: int, neuron: NeuronSpec, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.first = MatrixProduct()
        self.second = MatrixProduct()
        self.neuron = Neuron(neuron)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        height = q.shape[2]
        q, k, v = (split_heads(s, self.heads) for s in (q, k, v))
        if q.shape[-2] > q.shape[-1]:
            out = self.second(q, self.first(k.transpose(-1, -2), v))
        else:
            out = self.second(self.first(q, k.transpose(-1, -2)), v)
        return self.neuron(merge_heads(out * self.scale, height))


class SelfAttention(nn.Module):
    """Spiking self-attention (SSA) of conv-norm-neuron order: spikes → spikes.

    q, k and v are one product. ``coupled`` reproduces the released QKFormer and MSVIT code,
    whose last neuron steps over ``T·B``. Source: Spikformer (arXiv 2209.15425), eq. 5–8.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronSpec,
        attn_threshold: float = 0.5,
        scale: float = 0.125,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        coupled: bool = False,
    ) -> None:
        super().__init__()
        self.qkv = ConvNormNeuron(dim, 3 * dim, neuron, bias=qkv_bias, parts=("q", "k", "v"))
        self.attend = AttentionCore(heads, neuron.with_(threshold=attn_threshold), scale)
        self.proj = ConvNormNeuron(dim, dim, neuron, bias=proj_bias, coupled=coupled)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(self.attend(q, k, v), shortcut)


class TokenAttention(nn.Module):
    """Multi-scale token attention: every branch votes for tokens, the vote masks the keys.

    ``out = Conv-BN-LIF(LIF_attn(Σ_s Σ_c p_s) ⊙ k)``, where branch ``s`` is
    ``p_s = LIF(BN(conv_s(x)))`` with the odd kernel size ``s`` and c runs over the channels
    of a head. ``scales=(1,)`` is QKFormer's token Q-K attention (arXiv 2403.16552, eq. 6–7),
    ``scales=(1, 3)`` is MSVIT's multi-scale spiking attention (arXiv 2505.14719).

    Args:
        fusion: ``"token"`` sums every branch over its head's channels, one score per token
            and head; ``"token_channel"`` sums only the first branch, the others add their
            spikes channel by channel (released CIFAR-100 model).
        branch_kernel: ``"1d"`` runs over the raster-ordered token sequence, and wraps at row
            ends, as the released code does; ``"2d"`` over the image plane.
        projections: ``"separate"`` gives each branch its own weights; ``"shared"`` computes
            one 1×1 projection, and branch ``s`` is its mean over ``s`` neighbouring tokens
            (``s × s`` in 2-D) with a norm of its own: scale without parameters.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronSpec,
        scales: tuple[int, ...] = (1, 3),
        attn_threshold: float = 1.0,
        fusion: str = "token",
        branch_kernel: str = "1d",
        projections: str = "separate",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.heads = heads
        self.fusion = fusion
        self.names = branch_names(scales)
        plane = branch_kernel == "2d"
        self.branches: SharedBranches | SeparateBranches
        if projections == "shared":
            self.branches = SharedBranches(dim, neuron, scales, self.names, plane)
        else:
            self.branches = SeparateBranches(dim, neuron, scales, self.names, plane)
        self.attn_neuron = Neuron(neuron.with_(threshold=attn_threshold))
        self.in_kernels = fusion == "token" and self.attn_neuron.in_kernels
        self.mask = SpikeMask() if neuron.fires else ValueMask()
        self.proj = ConvNormNeuron(dim, dim, neuron, bias=True)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        joined, wide = self.branches(x)
        neuron = self.attn_neuron
        if self.in_kernels and not watched(self.mask):
            masked, attend = kernels.token_attention(
                joined,
                joined.shape[-1] // self.dim,
                wide,
                neuron.spec,
                self.heads,
                neuron.time_constant,
            )
            neuron.spikes(attend)
        else:
            masked = self._score_and_mask(joined, wide)
        return self.proj(masked, shortcut)

    def _score_and_mask(self, joined: Tensor, wide: list[Tensor]) -> Tensor:
        """The same in single steps, which monitors can see and every fusion and neuron takes."""
        score = sum(self.votes(joined, wide))
        assert isinstance(score, Tensor), "there is at least one branch"
        attend = self.attn_neuron(score.flatten(-2)).unflatten(-1, (self.heads, -1))
        keys = joined[..., -self.dim :].unflatten(-1, (self.heads, -1))
        return self.mask(attend, keys).flatten(-2)

    def votes(self, joined: Tensor, wide: list[Tensor]) -> list[Tensor]:
        """What each branch adds to the score, in the order of the scales, of their spikes.

        ``[T, B, H, W, heads, 1]`` of those that are summed over the channels of a head, else
        ``[T, B, H, W, heads, d]``.
        """
        near, far = iter(joined.split(self.dim, dim=-1)), iter(wide)  # the keys, last, are left
        per_head = [
            next(near if name in self.branches.points else far).unflatten(-1, (self.heads, -1))
            for name in self.names
        ]
        summed = len(per_head) if self.fusion == "token" else 1
        return [v.sum(-1, keepdim=True) for v in per_head[:summed]] + per_head[summed:]


def branch_names(scales: tuple[int, ...]) -> tuple[str, ...]:
    """``(1, 3, 3)`` → ``("scale1", "scale3", "scale3_2")``."""
    seen: Counter[int] = Counter()
    names = []
    for scale in scales:
        seen[scale] += 1
        names.append(f"scale{scale}" + (f"_{seen[scale]}" if seen[scale] > 1 else ""))
    return tuple(names)


class SeparateBranches(nn.Module):
    """One projection per scale, and the keys: ``[T, B, H, W, C]`` → (joined, wide votes).

    All branches of kernel size 1 and, last, the keys are one product: ``joined`` holds their
    spikes ``[T, B, H, W, n·C]``. The others come one by one, ``[T, B, H, W, C]`` each.
    """

    def __init__(
        self,
        dim: int,
        neuron: NeuronSpec,
        scales: tuple[int, ...],
        names: tuple[str, ...],
        plane: bool,
    ) -> None:
        super().__init__()
        self.points = tuple(n for n, s in zip(names, scales, strict=True) if s == 1)
        parts = (*self.points, "k")
        self.point = ConvNormNeuron(dim, len(parts) * dim, neuron, parts=parts)
        self.wide = nn.ModuleDict(
            {
                name: ConvNormNeuron(dim, dim, neuron, kernel=scale if plane else (1, scale))
                for name, scale in zip(names, scales, strict=True)
                if scale > 1
            }
        )
        self.plane = plane

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        height = x.shape[2]
        tokens = x if self.plane else x.flatten(2, 3).unsqueeze(2)
        wide = [branch(tokens) for branch in self.wide.values()]
        if not self.plane:
            wide = [spikes.squeeze(2).unflatten(2, (height, -1)) for spikes in wide]
        return self.point(x), wide


class SharedBranches(nn.Module):
    """One projection for all scales: branch ``s`` is its mean over ``s`` neighbours.

    Returns as :class:`SeparateBranches` does, only the keys being joined.
    """

    points = ()

    def __init__(
        self,
        dim: int,
        neuron: NeuronSpec,
        scales: tuple[int, ...],
        names: tuple[str, ...],
        plane: bool,
    ) -> None:
        super().__init__()
        self.key = ConvNormNeuron(dim, dim, neuron, parts=("k",))
        self.query = Conv(dim, dim)
        self.scales = scales
        norms = nn.ModuleDict({name: BatchNorm(dim) for name in names})
        neurons = nn.ModuleDict({name: Neuron(neuron) for name in names})
        self.norms = cast(Mapping[str, BatchNorm], norms)  # torch does not say what it holds
        self.neurons = cast(Mapping[str, Neuron], neurons)
        self.plane = plane

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        projected = self.query(x)
        votes = []
        for scale, (name, norm) in zip(self.scales, self.norms.items(), strict=True):
            pooled = mean_of_neighbours(projected, scale, self.plane)
            votes.append(fire(norm, self.neurons[name], pooled))
        return self.key(x), votes


def mean_of_neighbours(x: Tensor, size: int, plane: bool) -> Tensor:
    """Mean over ``size`` tokens around each (``size × size`` in the plane), zeros outside."""
    if size == 1:
        return x
    maps = x.flatten(0, 1).permute(0, 3, 1, 2)
    if plane:
        maps = F.avg_pool2d(maps, size, stride=1, padding=size // 2)
    else:
        flat = F.avg_pool2d(
            maps.flatten(2).unsqueeze(2), (1, size), stride=1, padding=(0, size // 2)
        )
        maps = flat.view(maps.shape)
    return maps.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]).contiguous()
