"""MSVIT, QKFormer and Spikformer (CIFAR layout) from plain spikingjelly modules.

The baseline of ``studies/speed.py`` and nothing else: what these models cost when they are
written as the released code writes them. Activations are ``[T, B, C, H, W]``, the image is
repeated T times, every projection is a Conv1d, Conv2d or Linear of its own with torch's
BatchNorm and spikingjelly's multi-step LIFNode, whose state the caller resets. Modules carry
the official names, so that ``msvit.load_official(ours, plain.state_dict())`` makes a model of
the zoo compute the same function (with ``batch_coupled=False``; the tests compare them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor, nn

from msvit.models import model_options, zoo
from msvit.models.options import (
    HierarchicalOptions,
    MSVITOptions,
    SpikformerOptions,
    SpikingOptions,
)
from msvit.options import ConfigError, unknown


def plain_model(name: str, **options: Any) -> nn.Module:
    """The plain twin of ``msvit.create_model(name, **options)``.

    It maps images ``[B, C, H, W]`` to time-averaged logits ``[B, num_classes]``.

    Raises:
        ConfigError: for an architecture or an option that has no plain twin.
    """
    parsed = model_options(name, options)
    architecture = zoo()[name]["architecture"]
    if architecture not in _BUILDERS or not isinstance(parsed, SpikingOptions):
        raise ConfigError(name, "", unknown(architecture, _BUILDERS, f"no plain {architecture}"))
    neuron = (parsed.neuron, parsed.surrogate, parsed.hard_reset, parsed.detach_reset)
    if neuron != ("lif", "sigmoid", True, True) or parsed.drop_path:
        raise ConfigError(name, "", "the plain models have the published neurons, no drop_path")
    return _BUILDERS[architecture](parsed)


class _Units(nn.Module):
    """A module that holds layers, norms and neurons side by side, named as officially."""

    def add_unit(
        self, name: str, layer: nn.Module, norm: nn.Module, kind: str = "conv", suffix: str = ""
    ) -> None:
        self.add_module(f"{name}_{kind}{suffix}", layer)
        self.add_module(f"{name}_bn{suffix}", norm)
        self.add_module(f"{name}_lif{suffix}", _lif())

    def unit(self, name: str, x: Tensor, suffix: str = "", pool: nn.Module | None = None) -> Tensor:
        """Layer → norm (→ pool) → neuron of ``[T, B, C, ...]``."""
        y = getattr(self, f"{name}_conv{suffix}")(x.flatten(0, 1))
        y = getattr(self, f"{name}_bn{suffix}")(y)
        if pool is not None:
            y = pool(y)
        return getattr(self, f"{name}_lif{suffix}")(y.unflatten(0, x.shape[:2]).contiguous())

    def linear_unit(self, name: str, x: Tensor) -> Tensor:
        """The same for tokens ``[T, B, N, C]`` and a Linear layer."""
        y = getattr(self, f"{name}_linear")(x.flatten(0, 1))
        y = getattr(self, f"{name}_bn")(y.transpose(1, 2)).transpose(1, 2)
        return getattr(self, f"{name}_lif")(y.unflatten(0, x.shape[:2]).contiguous())


def _lif(threshold: float = 1.0) -> LIFNode:
    return LIFNode(tau=2.0, v_threshold=threshold, detach_reset=True, step_mode="m")


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


class _Repeat(nn.Module):
    """Repeats an image over time steps: ``[B, C, H, W]`` → ``[T, B, C, H, W]``."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0).repeat(self.timesteps, 1, 1, 1, 1)


# ---- QKFormer and MSVIT ----------------------------------------------------------------------


class _TokenAttention(_Units):
    """Token attention: ``q`` votes, in MSVIT also ``p`` of kernel size 3; the vote masks ``k``."""

    def __init__(self, dim: int, heads: int, threshold: float, votes: dict[str, int]) -> None:
        super().__init__()
        self.heads = heads
        self.votes = tuple(votes)
        for name, kernel in {**votes, "k": 1}.items():
            conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, bias=False)
            self.add_unit(name, conv, nn.BatchNorm1d(dim))
        self.attn_lif = _lif(threshold)
        self.add_unit("proj", nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(3)  # [T, B, C, N]
        votes = [self._per_head(self.unit(name, tokens)) for name in self.votes]
        k = self._per_head(self.unit("k", tokens))
        score = votes[0].sum(dim=3, keepdim=True)
        for vote in votes[1:]:
            score = score + vote.sum(dim=3, keepdim=True)
        masked = torch.mul(self.attn_lif(score), k).flatten(2, 3)
        return self.unit("proj", masked).unflatten(3, x.shape[3:])

    def _per_head(self, spikes: Tensor) -> Tensor:
        return spikes.unflatten(2, (self.heads, -1))  # [T, B, heads, d, N]


class _SelfAttention(_Units):
    def __init__(self, dim: int, heads: int, threshold: float) -> None:
        super().__init__()
        self.heads = heads
        for name in "qkv":
            conv = nn.Conv1d(dim, dim, 1, bias=False)
            self.add_unit(name, conv, nn.BatchNorm1d(dim))
        self.attn_lif = _lif(threshold)
        self.add_unit("proj", nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(3)
        q, k, v = (self._per_head(self.unit(name, tokens)) for name in "qkv")
        out = (q @ (k.transpose(-2, -1) @ v)) * 0.125  # [T, B, heads, N, d]
        out = out.transpose(3, 4).flatten(2, 3).contiguous()
        return self.unit("proj", self.attn_lif(out)).unflatten(3, x.shape[3:])

    def _per_head(self, spikes: Tensor) -> Tensor:
        return spikes.unflatten(2, (self.heads, -1)).transpose(3, 4).contiguous()


class _ConvMLP(_Units):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.add_unit("mlp1", nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden))
        self.add_unit("mlp2", nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.unit("mlp2", self.unit("mlp1", x))


class _Block(nn.Module):
    """Attention under its official name (``tssa``, ``ssa`` or ``attn``), then the MLP."""

    def __init__(self, name: str, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.mixer = name
        self.add_module(name, attention)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + getattr(self, self.mixer)(x)
        return x + self.mlp(x)


class _FirstEmbedding(_Units):
    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.add_unit("proj", _conv3x3(in_channels, half), nn.BatchNorm2d(half))
        self.add_unit("proj1", _conv3x3(half, dim), nn.BatchNorm2d(dim))
        self.add_unit("proj_res", nn.Conv2d(half, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit("proj", x)
        return self.unit("proj1", x) + self.unit("proj_res", x)


class _NextEmbedding(_Units):
    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.add_unit("proj3", _conv3x3(in_channels, dim), nn.BatchNorm2d(dim))
        self.add_unit("proj4", _conv3x3(dim, dim), nn.BatchNorm2d(dim))
        self.pool = _pool()
        around = nn.Conv2d(in_channels, dim, 1, stride=2, bias=False)
        self.add_unit("proj_res", around, nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        out = self.unit("proj4", self.unit("proj3", x), pool=self.pool)
        return out + self.unit("proj_res", x)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class PlainHierarchical(nn.Module):
    """QKFormer (``votes`` q) or MSVIT (q and p) with three stages."""

    def __init__(self, options: HierarchicalOptions, votes: dict[str, int]) -> None:
        super().__init__()
        if options.layout != "cifar" or options.batch_coupled:
            message = "the plain models have the CIFAR layout and no batch coupling"
            raise ConfigError("", "", message)
        self.repeat = _Repeat(options.timesteps)
        self.depth = len(options.depths)
        previous = options.in_channels
        for stage, (dim, depth) in enumerate(zip(options.stage_dims, options.depths, strict=True)):
            embedding = _NextEmbedding if stage else _FirstEmbedding
            self.add_module(f"patch_embed{stage + 1}", embedding(previous, dim))
            last = stage + 1 == self.depth
            blocks = (self._block(options, dim, None if last else votes) for _ in range(depth))
            self.add_module(f"stage{stage + 1}", nn.Sequential(*blocks))
            previous = dim
        self.head = nn.Linear(previous, options.num_classes)

    @staticmethod
    def _block(options: HierarchicalOptions, dim: int, votes: dict[str, int] | None) -> _Block:
        mlp = _ConvMLP(dim, round(dim * options.mlp_ratio))
        if votes is None:
            return _Block("ssa", _SelfAttention(dim, options.heads, options.attn_threshold), mlp)
        attention = _TokenAttention(dim, options.heads, options.attn_threshold, votes)
        return _Block("tssa", attention, mlp)

    def forward(self, images: Tensor) -> Tensor:
        x = self.repeat(images)
        for stage in range(1, self.depth + 1):
            x = getattr(self, f"patch_embed{stage}")(x)
            x = getattr(self, f"stage{stage}")(x)
        return self.head(x.flatten(3).mean(3).mean(0))


def _msvit(options: MSVITOptions) -> nn.Module:
    if (options.scales, options.fusion, options.branch_kernel, options.projections) != (
        *((1, 3), "token", "1d", "separate"),
    ) or options.stages != (1, 2):
        raise ConfigError("", "", "the plain MSVIT has the options of the CIFAR-10 model")
    return PlainHierarchical(options, {"q": 1, "p": 3})


def _qkformer(options: HierarchicalOptions) -> nn.Module:
    return PlainHierarchical(options, {"q": 1})


# ---- Spikformer ------------------------------------------------------------------------------


class _Stem(_Units):
    def __init__(self, in_channels: int, dim: int, pools: tuple[bool, ...]) -> None:
        super().__init__()
        widths = (in_channels, dim // 8, dim // 4, dim // 2, dim)
        for i in range(4):
            conv = _conv3x3(widths[i], widths[i + 1])
            self.add_unit("proj", conv, nn.BatchNorm2d(widths[i + 1]), suffix=str(i or ""))
        self.pools = pools
        self.pool = _pool()
        self.add_unit("rpe", _conv3x3(dim, dim), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[:2]
        for i, pool in enumerate(self.pools):
            x = self.unit("proj", x, suffix=str(i or ""))
            if pool:
                x = self.pool(x.flatten(0, 1)).unflatten(0, steps)
        x = x + self.unit("rpe", x)
        return x.flatten(3).transpose(2, 3)  # tokens [T, B, N, C]


class _LinearAttention(_Units):
    def __init__(self, dim: int, heads: int, threshold: float, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        for name in "qkv":
            self.add_unit(name, nn.Linear(dim, dim), nn.BatchNorm1d(dim), kind="linear")
        self.attn_lif = _lif(threshold)
        self.add_unit("proj", nn.Linear(dim, dim), nn.BatchNorm1d(dim), kind="linear")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._per_head(self.linear_unit(name, x)) for name in "qkv")
        out = (q @ k.transpose(-2, -1)) * self.scale @ v  # [T, B, heads, N, d]
        out = out.transpose(2, 3).flatten(3).contiguous()
        return self.linear_unit("proj", self.attn_lif(out))

    def _per_head(self, spikes: Tensor) -> Tensor:
        return spikes.unflatten(3, (self.heads, -1)).transpose(2, 3).contiguous()


class _LinearMLP(_Units):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.add_unit("fc1", nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), kind="linear")
        self.add_unit("fc2", nn.Linear(hidden, dim), nn.BatchNorm1d(dim), kind="linear")

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_unit("fc2", self.linear_unit("fc1", x))


class PlainSpikformer(nn.Module):
    """Spikformer with Linear projections, as released for CIFAR."""

    def __init__(self, options: SpikformerOptions) -> None:
        super().__init__()
        if not options.qkv_bias:
            raise ConfigError("", "", "the plain Spikformer is the CIFAR model: qkv_bias=True")
        dim = options.dim
        self.repeat = _Repeat(options.timesteps)
        self.patch_embed = _Stem(options.in_channels, dim, options.pools)
        heads, threshold, scale = options.heads, options.attn_threshold, options.attn_scale
        self.block = nn.Sequential(
            *(
                _Block(
                    "attn",
                    _LinearAttention(dim, heads, threshold, scale),
                    _LinearMLP(dim, round(dim * options.mlp_ratio)),
                )
                for _ in range(options.depth)
            )
        )
        self.head = nn.Linear(dim, options.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.block(self.patch_embed(self.repeat(images)))
        return self.head(tokens.mean(2).mean(0))


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "msvit": _msvit,
    "qkformer": _qkformer,
    "spikformer": PlainSpikformer,
}
