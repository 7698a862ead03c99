"""Operations per layer: multiply-accumulates (MAC) and, where spikes come in, accumulates (AC).

What a layer costs depends on what it is given, so its input is looked at, not assumed:

``spikes``
    only 0 and 1: each spike adds its weights, ACs = rate × dense MACs, no MACs.
``integer``
    whole numbers, such as sums of spikes behind a shortcut: a 2 adds its weights twice,
    ACs = mean value × dense MACs. Negative values count with their magnitude.
``analog``
    anything else: every dense MAC is a MAC, and there is no rate.
``levels``
    whole numbers in a quantised twin, which has no spikes: every dense MAC is a MAC on the bits
    that its input has, ``input_bits``: those of the quantiser, or more behind a shortcut or a mask.

Two conventions stand side by side in a row, and every rule stands in this table. Counts are those
of the network as its authors deploy it (folded: :mod:`msvit.layers.folding`), per image and summed
over time steps, exact whole numbers before they are divided by the number of images. A static
image is convolved once, and counted once, however many time steps follow.

==================  ================================================================================
``dense_macs``      k²·h·w·c_in·c_out (over groups) of a convolution, padding not told apart,
                    c_in·c_out fully connected, n·m·p of a product. [1]
``macs``, ``acs``   by the papers' formula: dense MACs on analog input, else rate × dense MACs. [1]
                    They are of the network as it is trained: factors of a RepConv apart.
``synapses``        what one spike at every input would cost: dense MACs without the taps that lie
                    over zero padding; pixels that a stride leaves out reach nothing. [2, 3]
``synops``          synaptic operations to the synapse: every spike × the weights that it reaches, a
                    whole number as that many spikes. None of analog input and levels. [2]
``active_synops``   the same with 1 for every value that is not zero, analog ones too, and without
                    weights that are zero: NeuroBench's effective operations. [3]
classifier          It is given the mean of spikes over the image plane. ``acs``: rate × c_in·c_out,
                    for a mean times a weight is the sum of that weight at every spike, scaled once.
                    ``synops``: every spike reaches its weights, rate·h·w·c_in·c_out.
                    ``dense_macs``: a MAC on the mean, ``mean_macs`` those of which neither side is
                    zero. [1, 3, 4]
product ``a b``     Accumulates run over the spikes of one operand: the one with fewer, among those
                    that are binary where one is, min(rate_k, rate_v) for kᵀ v and rate_q for
                    q (kᵀ v) [4]. Behind ``other_``: the same for the other operand.
                    ``joint_synops``: Σ a·b, where both are there, as counted where hardware skips
                    the zeros of both. [5]
mask                A spike times a spike is an AND: no weight, no accumulate. Published formulas
                    count none, so the papers' columns hold zeros; ``outputs`` are the ANDs. Votes
                    and columns that are summed up around it are its ``additions``, one a spike.
                    In a twin, whose values are no spikes, it is a product, one by one, and votes
                    take an addition a value. ``votes`` are the values that are summed up.
``additions``       biases, which is what a folded norm is, one per output (``bias_additions`` tells
                    them from the rest); a mean of analog values, one per value; means over
                    neighbours, one per tap. Pools, shortcuts are free.
``inputs`` …        values read and written; ``active_inputs`` are not zero, ``input_peak`` is the
                    largest, which tells the bits that it needs. ``weights`` and ``biases`` are
                    numbers of them, ``zero_weights`` those of the weights that are zero.
neuron              Rows of their own (:mod:`msvit.metrics.membranes`); what a twin has in its
                    place compares and rounds, which is free, and has outputs.
RepConv             Its three factors are one 3×3 convolution when it is deployed: the row of the
                    first factor holds the counts of that one, those of the others are zero, and
                    ``folded_into`` names it. [6]
separable           Not folded: a 7×7 convolution over all channels would cost more than its
convolution         factors. The depthwise one adds weights of spikes, the pointwise one multiplies.
running scales      Folded into weights (SpikingResformer) or thresholds (the scale of attention).
==================  ================================================================================

[1] Spikformer (arXiv 2209.15425), appendix; QKFormer and MSVIT. [2] all-ones weights on real
spikes, as SpikingResformer's code counts. [3] NeuroBench 2 (arXiv 2304.04640). [4] the released
calculator of Spikingformer. [5] spikingjelly 2, ``op_counter``. [6] Spike-driven Transformer V2
(arXiv 2404.03663), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from msvit.layers.attention import SharedBranches, TokenAttention
from msvit.layers.blocks import Classifier
from msvit.layers.membrane import SpikeDrivenAttention
from msvit.layers.repconv import RepConv
from msvit.layers.synapses import Conv, Linear, MatrixProduct, SpikeMask, ValueMask, is_static
from msvit.metrics.contents import count_nonzero, whole_sum
from msvit.metrics.layer_names import layer_name
from msvit.metrics.operands import Operand, sparser
from msvit.metrics.window import Window
from msvit.neuron_kinds import bits_of
from msvit.neurons import Neuron
from msvit.records.schema import Operations

_KINDS = {
    Conv: "conv",
    Linear: "linear",
    MatrixProduct: "product",
    SpikeMask: "mask",
    ValueMask: "product",
}


@dataclass
class _Layer:
    """Sums over images and time steps, and what is known of a layer without any.

    Attributes:
        weights: of a layer that has some, with ``zero_weights`` of them.
        window: of a convolution as it is deployed; None for a factor that another one stands for.
        means: over neighbours, with a norm each, that are made of the output.
        on_means: what a classifier is given that averages the image plane, of ``averaged`` pixels.
    """

    kind: str
    weight: Tensor | None = None
    zero_weights: int = 0
    weights: int = 0
    biases: int = 0
    window: Window | None = None
    folded_into: str | None = None
    means: SharedBranches | None = None
    on_means: Operand | None = None
    averaged: int = 0
    operands: tuple[Operand, ...] = field(default_factory=lambda: (Operand(), Operand()))
    dense_macs: int = 0
    synapses: int = 0
    joint_synops: float = 0.0
    outputs: int = 0
    additions: float = 0.0
    bias_additions: int = 0
    votes: int = 0
    steps: int = 0

    def add(self, other: _Layer) -> None:
        """Take in what the same layer did for other images."""
        self.steps = max(self.steps, other.steps)  # 0 where no data have come here
        self.averaged = max(self.averaged, other.averaged)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for own, theirs in zip(self.operands, other.operands, strict=True):
            own.add(theirs)
        if self.on_means is not None and other.on_means is not None:
            self.on_means.add(other.on_means)


_SUMS = (
    "dense_macs",
    "synapses",
    "joint_synops",
    "outputs",
    "additions",
    "bias_additions",
    "votes",
)
"""Of a layer, over images and time steps."""


class OperationCounter:
    """Counts operations at every :mod:`msvit.layers.synapses` module of a model."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._reached: dict[str, _Layer] = {}  # in the order in which data first come to them

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook ``model``, whose weights do not change from here on."""
        handles = []
        level_bits = _level_bits(model)
        for path, module in model.named_modules():
            kind = _KINDS.get(type(module))
            if kind is None:
                continue
            name = layer_name(path)
            if name in self._layers:
                raise ValueError(f"two layers are called {name}")
            layer = self._layers[name] = _described(kind, module)
            layer.operands = (Operand(level_bits), Operand(level_bits))
            handles.append(module.register_forward_hook(partial(self._count, name, layer)))
        for path, module in model.named_modules():
            handles += self._attach_around(path, module)
        return handles

    def _attach_around(self, path: str, module: nn.Module) -> list[RemovableHandle]:
        """What is known of layers, or has to be seen, at the module that holds them."""
        if isinstance(module, RepConv):
            factors = ("point.conv", "depthwise", "mix.conv")
            layers = [self._layers[layer_name(f"{path}.{factor}")] for factor in factors]
            for layer in layers:
                layer.folded_into, layer.window = layer_name(path), None
                layer.weights = layer.biases = layer.zero_weights = 0
            first, window = layers[0], Window.folded(module)
            first.window, first.weights, first.biases = window, window.weights, window.channels
        elif isinstance(module, SharedBranches):
            query = self._layers[layer_name(f"{path}.query")]
            query.means, query.biases = module, query.biases * len(module.scales)
        elif isinstance(module, Classifier) and module.neuron is None:
            layer = self._layers[layer_name(f"{path}.linear")]
            layer.on_means = Operand()
            return [module.register_forward_pre_hook(partial(_see_averaged, layer))]
        elif isinstance(module, TokenAttention):
            mask = self._layers[layer_name(f"{path}.mask")]
            votes = partial(_add_votes, mask, module.dim)
            return [module.branches.register_forward_hook(votes)]
        elif isinstance(module, SpikeDrivenAttention):
            gather = self._layers[layer_name(f"{path}.gather")]
            columns = partial(_add_columns, gather)
            return [module.attn_neuron.register_forward_pre_hook(columns)]
        return []

    def _count(
        self, name: str, layer: _Layer, module: Any, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        self._reached.setdefault(name, layer)
        static = all(is_static(x) for x in inputs)
        layer.steps = 1 if static else inputs[0].shape[0]
        if layer.kind != "mask":
            other = inputs[1] if layer.kind == "product" else output
            each = module.dense_macs(inputs[0], other)
            layer.dense_macs += each * layer.steps * inputs[0].shape[1]
        seen = (*inputs, output)
        _RULES[type(module)](layer, *((x[:1] for x in seen) if static else seen))

    def counts(self) -> dict[str, _Layer]:
        """What was counted so far, without what all processes know of a layer."""
        return {
            name: replace(layer, weight=None, means=None, window=None)
            for name, layer in self._reached.items()
        }

    def add(self, counts: Mapping[str, _Layer]) -> None:
        """Take in the :meth:`counts` of the same model in another process."""
        for name, theirs in counts.items():
            self._reached.setdefault(name, self._layers[name]).add(theirs)

    def rows(self, images: int) -> list[Operations]:
        """A row per layer, per image of ``images`` and summed over time steps."""
        return [_row(name, layer, images) for name, layer in self._reached.items()]


def _level_bits(model: nn.Module) -> int:
    """Bits of the quantisers of a twin; 0 for any other network."""
    specs = (module.spec for module in model.modules() if isinstance(module, Neuron))
    return next((bits_of(spec.timesteps) for spec in specs if spec.kind == "quantised"), 0)


def _described(kind: str, module: Any) -> _Layer:
    """A layer before any data: its weights, and its biases when its norm is folded."""
    layer = _Layer(kind)
    if isinstance(module, Conv | Linear):
        layer.weight = module.weight
        layer.weights = module.weight.numel()
        if not module.weight.is_meta:
            layer.zero_weights = layer.weights - count_nonzero(module.weight.detach())
    if isinstance(module, Conv):
        layer.window, layer.biases = Window.of(module), len(module.weight)
    elif isinstance(module, Linear):
        layer.biases = 0 if module.bias is None else len(module.bias)
    return layer


def _count_conv(layer: _Layer, x: Tensor, output: Tensor) -> None:
    """``x`` ``[T, B, H, W, C]``."""
    operand, window = layer.operands[0], layer.window
    if window is None:  # a factor: the first one stands for all
        operand.skim(x)
        return
    height, width = x.shape[2:4]
    images = x.shape[0] * x.shape[1]
    before = operand.active_synops
    operand.see(x, window.reached)
    if layer.zero_weights and layer.weight is not None:
        operand.active_synops = before + _through_convolution(x, layer.weight, window)
    layer.synapses += images * x.shape[-1] * window.fan_out * window.taps(height, width)
    outputs = images * window.outputs(height, width) * window.channels
    biases = outputs if layer.means is None else outputs * len(layer.means.scales)
    layer.outputs += outputs
    layer.bias_additions += biases
    layer.additions += biases
    if layer.means is not None:
        layer.additions += _means(layer.means, output)


def _means(branches: SharedBranches, x: Tensor) -> int:
    """Additions of means over neighbours of ``x`` ``[T, B, H, W, C]``."""
    steps, images, height, width, channels = x.shape
    total = 0
    for scale in branches.scales:
        kernel = (scale, scale) if branches.plane else (1, scale)
        size = (height, width) if branches.plane else (1, height * width)
        window = Window(kernel, 1, (kernel[0] // 2, scale // 2), 1, 1, 0)
        total += window.taps(*size) if scale > 1 else 0
    return total * steps * images * channels


def _through_convolution(x: Tensor, weight: Tensor, window: Window) -> float:
    """Values that are not zero, each times the weights that it reaches and that are not."""
    maps = (x != 0).flatten(0, 1).permute(0, 3, 1, 2).double()
    groups = x.shape[-1] // weight.shape[1]
    kernel = (weight != 0).double()
    stride, padding = window.stride, window.padding
    return float(F.conv2d(maps, kernel, None, stride, padding, groups=groups).sum())


def _count_linear(layer: _Layer, x: Tensor, output: Tensor) -> None:
    """``x`` ``[T, B, ..., C]``; where it is a mean, the values behind it have been seen."""
    operand = layer.on_means or layer.operands[0]
    weight = layer.weight
    assert weight is not None
    before = operand.active_synops
    operand.see(x, lambda sums, total: len(weight) * total)
    if layer.zero_weights:
        operand.active_synops = before + _through_linear(x, weight)
    biases = output.numel() if layer.biases else 0
    layer.outputs += output.numel()
    layer.bias_additions += biases
    layer.additions += biases
    if layer.on_means is None:
        layer.synapses += x.numel() * len(weight)


def _through_linear(x: Tensor, weight: Tensor) -> float:
    """Values of ``[..., C]`` that are not zero, each times the weights that are not."""
    active = (x != 0).flatten(0, -2).sum(0, dtype=torch.float64)
    return float(active @ (weight != 0).sum(0, dtype=torch.float64))


def _see_averaged(layer: _Layer, module: Classifier, inputs: tuple[Tensor, ...]) -> None:
    """``[T, B, H, W, C]`` in front of the mean over H and W."""
    x = inputs[0][:1] if is_static(inputs[0]) else inputs[0]
    operand, fan_out = layer.operands[0], module.linear.out_features
    before = operand.active_synops
    operand.see(x, lambda sums, total: fan_out * total)
    if layer.zero_weights:
        operand.active_synops = before + _through_linear(x, module.linear.weight)
    layer.synapses += x.numel() * fan_out
    layer.averaged = math.prod(x.shape[2:-1])


def _count_product(layer: _Layer, a: Tensor, b: Tensor, output: Tensor) -> None:
    """``a [T, B, heads, n, m] @ b [T, B, heads, m, p]``: a value of a meets p others, of b n."""
    n, p = a.shape[-2], b.shape[-1]
    left, right = layer.operands
    of_left = left.see(a.transpose(-1, -2), lambda sums, total: p * total)
    of_right = right.see(b, lambda sums, total: n * total)
    layer.joint_synops += whole_sum(of_left.active.double() * of_right.active)
    layer.synapses += a.numel() * p
    layer.outputs += output.numel()


def _count_values(layer: _Layer, mask: Tensor, values: Tensor, output: Tensor) -> None:
    """``mask [T, B, ..., 1]`` times ``values [T, B, ..., d]``, one by one."""
    left, right = layer.operands
    of_mask = left.see(mask, lambda sums, total: values.shape[-1] * total)
    of_values = right.see(values, lambda sums, total: total)
    layer.joint_synops += whole_sum(of_mask.active.double() * of_values.active)
    layer.synapses += values.numel()
    layer.outputs += output.numel()


def _count_mask(layer: _Layer, mask: Tensor, spikes: Tensor, output: Tensor) -> None:
    for operand, x in zip(layer.operands, (mask, spikes), strict=True):
        operand.see(x, lambda sums, total: 0.0)
    layer.outputs += output.numel()


def _add_votes(
    mask: _Layer, dim: int, module: nn.Module, inputs: Any, output: tuple[Tensor, list[Tensor]]
) -> None:
    """The votes ``[T, B, H, W, C]``, all but the keys, are summed up, an addition a spike."""
    joined, wide = output
    for votes in (joined[..., :-dim], *wide):
        mask.votes += votes.numel()
        if mask.kind == "product":  # of a twin
            mask.additions += votes.numel()
            continue
        mask.additions += whole_sum(votes.sum(-1, dtype=torch.float32))


def _add_columns(gather: _Layer, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Sums over tokens, ``[T, B, 1, 1, C]``, took an addition a spike."""
    gather.additions += whole_sum(inputs[0])


_RULES: dict[type[nn.Module], Callable[..., None]] = {
    Conv: _count_conv,
    Linear: _count_linear,
    MatrixProduct: _count_product,
    SpikeMask: _count_mask,
    ValueMask: _count_values,
}


def _row(name: str, layer: _Layer, images: int) -> Operations:
    decisive, other = layer.operands
    if layer.kind == "product":
        decisive, other = sorted(layer.operands, key=sparser)
    kind, spiking = decisive.kind, decisive.spiking
    if layer.on_means is not None and not spiking:
        kind = "analog"  # a mean of levels is none
    analog = kind == "analog"
    dense = layer.dense_macs / images
    rate = decisive.rate
    row: Operations = {
        "layer": name,
        "kind": layer.kind,
        "input": kind,
        "dense_macs": dense,
        "input_rate": rate,
        "macs": 0.0 if spiking else dense,
        "acs": 0.0 if rate is None else rate * dense,
        "steps": layer.steps,
        "synapses": layer.synapses / images,
        "synops": decisive.synops / images if spiking else None,
        "active_synops": decisive.active_synops / images,
        "inputs": decisive.elements / images,
        "active_inputs": decisive.active / images,
        "input_peak": None if analog else decisive.peak,
        "outputs": layer.outputs / images,
        "additions": layer.additions / images,
        "weights": layer.weights,
        "zero_weights": layer.zero_weights,
        "biases": layer.biases,
    }
    if decisive.kind == "levels":
        row["input_bits"] = decisive.bits
    if layer.on_means is not None:
        row["averaged"] = layer.averaged
        row["mean_macs"] = layer.on_means.active_synops / images
    if layer.on_means is not None and analog:  # a MAC on the mean, which has to be made first
        row["synapses"] = dense
        row["active_synops"] = layer.on_means.active_synops / images
        row["additions"] += decisive.elements / images
    if layer.kind in ("conv", "linear"):
        row["bias_additions"] = layer.bias_additions / images
    if layer.window is not None:
        row["kernel"] = list(layer.window.kernel)
        row["stride"] = layer.window.stride
        row["fan_out"] = layer.window.fan_out
    elif layer.kind == "linear" and layer.weight is not None:
        row["fan_out"] = len(layer.weight)
    if layer.folded_into is not None:
        row["folded_into"] = layer.folded_into
    if layer.kind in ("product", "mask"):
        row["other_input"] = other.kind
        row["other_rate"] = other.rate
        row["other_synops"] = other.synops / images if other.spiking else None
        row["other_active_inputs"] = other.active / images
        row["other_inputs"] = other.elements / images
        row["joint_synops"] = layer.joint_synops / images
        row["votes"] = layer.votes / images
        if other.kind == "levels":
            row["other_bits"] = other.bits
    return row
