"""Transformer blocks around an attention, patch embeddings, and the classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from msvit import workers
from msvit.kernels import NeuronSpec
from msvit.layers.synapses import Linear
from msvit.layers.units import ConvNormNeuron
from msvit.neurons import Neuron


def as_sequence(x: Tensor, timesteps: int) -> Tensor:
    """Images ``[B, C, H, W]`` or events ``[T, B, C, H, W]`` → ``[T, B, H, W, C]``.

    Images are not copied: all time steps are the same memory (stride 0), which the layers
    behind recognise and compute once.

    Raises:
        ValueError: if ``x`` has neither 4 nor 5 dimensions.
    """
    if x.ndim == 4:
        return x.permute(0, 2, 3, 1).expand(timesteps, -1, -1, -1, -1)
    if x.ndim == 5:
        return x.permute(0, 1, 3, 4, 2)
    raise ValueError(
        f"expected images [B, C, H, W] or events [T, B, C, H, W], got shape {tuple(x.shape)}"
    )


class MLP(nn.Module):
    """Two 1×1 conv-norm-neuron units, spikes ``[T, B, H, W, C]`` → the same (+ shortcut)."""

    def __init__(self, dim: int, hidden: int, neuron: NeuronSpec, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = ConvNormNeuron(dim, hidden, neuron, bias=bias)
        self.fc2 = ConvNormNeuron(hidden, dim, neuron, bias=bias)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.fc2(self.fc1(x), shortcut)


class Block(nn.Module):
    """Attention (or another mixer) and MLP, each added to its input ``[T, B, H, W, C]``.

    In spike-shortcut models the sums of spikes are integers from here on; in membrane-shortcut
    models potentials are added. ``drop_path`` is the probability that a branch is left out
    for an image, in all its time steps alike (stochastic depth, arXiv 1603.09382).
    ``attention`` is None in stages that mix no tokens.
    """

    def __init__(self, attention: nn.Module | None, mlp: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.attention, self.mlp):
            if branch is None:
                continue
            if self.training and self.drop_path:
                x = x + drop_images(branch(x), self.drop_path)
            else:
                x = branch(x, shortcut=x)
        return x


def drop_images(x: Tensor, probability: float) -> Tensor:
    """Zero whole images of ``[T, B, ...]`` at random, scaling the others to keep the mean.

    Several workers draw for the whole batch, the same, and take what falls to their images.
    """
    images = x.shape[1] * workers.count()
    keep = x.new_empty(1, images, *(1,) * (x.ndim - 2)).bernoulli_(1 - probability)
    return x * (workers.own(keep, dim=1) / (1 - probability))


def drop_rates(drop_path: float, depth: int) -> list[float]:
    """Probabilities that rise linearly over ``depth`` blocks from 0 to ``drop_path``."""
    return [drop_path * i / max(depth - 1, 1) for i in range(depth)]


class PatchEmbedding(nn.Module):
    """A chain of 3×3 conv-norm-neuron units with a 1×1 shortcut around its end.

    Unit ``i`` has ``widths[i]`` channels and, where ``pools[i]``, max pooling before its
    neuron. The shortcut convolution starts from the output of unit ``shortcut_from - 1`` (0:
    the input) and strides over as much as the pools behind that point.
    Source: QKFormer (arXiv 2403.16552), fig. 2; MSVIT uses the same.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        shortcut_from: int,
        neuron: NeuronSpec,
    ) -> None:
        super().__init__()
        inputs = (in_channels, *widths)
        self.units = nn.ModuleList(
            ConvNormNeuron(inputs[i], width, neuron, 3, pool="before" if pool else "none")
            for i, (width, pool) in enumerate(zip(widths, pools, strict=True))
        )
        self.shortcut = ConvNormNeuron(
            inputs[shortcut_from], widths[-1], neuron, stride=2 ** sum(pools[shortcut_from:])
        )
        self.shortcut_from = shortcut_from

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units[: self.shortcut_from]:
            x = unit(x)
        shortcut = self.shortcut(x)
        for unit in self.units[self.shortcut_from : -1]:
            x = unit(x)
        return self.units[-1](x, shortcut)


class Classifier(nn.Module):
    """Mean over the image plane (→ neuron) → linear: ``[T, B, H, W, C]`` → logits per step."""

    def __init__(
        self, dim: int, num_classes: int, neuron: NeuronSpec | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.neuron = Neuron(neuron) if neuron is not None else None
        self.linear = Linear(dim, num_classes, bias=bias)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        features = x.mean(dim=(2, 3), keepdim=True)  # a neuron sees an image of one pixel
        if self.neuron is not None:
            features = self.neuron(features)
        return self.linear(features.flatten(2))
