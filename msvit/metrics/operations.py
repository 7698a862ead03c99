"""Operations per layer: multiply-accumulates (MAC) and, where spikes come in, accumulates (AC).

What a layer costs depends on what it is given, so its input is looked at, not assumed:

``spikes``
    only 0 and 1: each spike adds its weights, ACs = rate × dense MACs, no MACs.
``integer``
    whole numbers, such as sums of spikes behind a shortcut: a 2 adds its weights twice,
    ACs = mean value × dense MACs. Negative values count with their magnitude.
``analog``
    anything else: every dense MAC is a MAC, and there is no rate.

This is the published convention (Spikformer, arXiv 2209.15425, appendix; QKFormer, MSVIT):
synaptic operations = input rate × time steps × dense MACs. Dense MACs are k²·h·w·c_in·c_out
(over groups) for a convolution, padding not told apart, c_in·c_out for a fully connected
layer; normalisation is folded, pooling and the neurons themselves are free. A static image
is convolved once, and counted once, however many time steps follow.

Three cases need a rule of their own:

*Classifier.* Its input is the mean of spikes over the image plane. A mean of spikes times a
weight is the sum of that weight at every spike, scaled once, so the layer counts with the
kind and the rate of what is averaged.

*Products* (q kᵀ v). Accumulates run over the spikes of one operand. The rate is that of the
operand with the fewer spikes, among those that are binary where one of them is: min(rate_k,
rate_v) for kᵀ v, and rate_q for q (kᵀ v), as in the released calculator of Spikingformer.

*Masks.* A spike times a spike is an AND: no weight, no accumulate. Published formulas count
none, so the row holds the mask's rate and zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from msvit.layers.blocks import Classifier
from msvit.layers.synapses import Conv, Linear, MatrixProduct, SpikeMask, is_static
from msvit.metrics.layer_names import layer_name
from msvit.records.schema import Operations

_KINDS = {Conv: "conv", Linear: "linear", MatrixProduct: "product", SpikeMask: "mask"}
_CONTENTS = ("spikes", "integer", "analog")  # each includes those before it


@dataclass
class Operand:
    """What an input carried so far: the widest of ``_CONTENTS``, and its mean magnitude."""

    content: str = "spikes"
    total: float = 0.0
    elements: int = 0

    @property
    def rate(self) -> float | None:
        """Mean magnitude of the values; None for analog input and before any was seen."""
        if self.content == "analog" or not self.elements:
            return None
        return self.total / self.elements

    def see(self, x: Tensor) -> None:
        """Take in ``x`` ``[T, B, ...]``."""
        if self.content == "analog":
            return
        if is_static(x):
            x = x[:1]
        content, total = inspect(x.detach())
        self.content = max(self.content, content, key=_CONTENTS.index)
        self.total += total
        self.elements += x.numel()


def inspect(x: Tensor) -> tuple[str, float]:
    """What ``x`` ``[T, B, ...]`` carries, and the sum of its magnitudes."""
    if x.dtype == torch.bool:
        x = x.view(torch.uint8)
    low, high = (float(end) for end in torch.aminmax(x))
    if low % 1 or high % 1:
        return "analog", 0.0  # decides at once for most analog tensors, infinite ones included
    if low >= 0:
        # Image by image: sums of whole numbers below 2²⁴ are exact in float32.
        total = float(x.flatten(2).sum(-1, dtype=torch.float32).double().sum())
        # Values within [0, 1] sum up to their number of non-zeros only if all are 0 or 1.
        if high <= 1 and total == _count_nonzero(x):
            return "spikes", total
    else:
        total = sum(float(step.abs().sum(dtype=torch.float64)) for step in x)
    if x.is_floating_point() and any(_count_nonzero(step.frac()[None]) for step in x):
        return "analog", 0.0
    return "integer", total


def _count_nonzero(x: Tensor) -> int:
    """Values of ``x`` ``[T, ...]`` other than 0; several times faster than torch's own count."""
    return sum(int(step.bool().view(torch.uint8).sum(dtype=torch.int32)) for step in x)


@dataclass
class _Layer:
    kind: str
    operands: tuple[Operand, ...]
    dense_macs: int = 0  # summed over images and time steps


class OperationCounter:
    """Counts operations at every :mod:`msvit.layers.synapses` module of a model."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._reached: dict[str, _Layer] = {}  # in the order in which data first come to them

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook ``model``."""
        averaging = [m for m in model.modules() if isinstance(m, Classifier) and m.neuron is None]
        classifiers = {module.linear: module for module in averaging}
        handles = []
        for path, module in model.named_modules():
            kind = _KINDS.get(type(module))
            if kind is None:
                continue
            name = layer_name(path)
            if name in self._layers:
                raise ValueError(f"two layers are called {name}")
            layer = self._layers[name] = _Layer(kind, (Operand(), Operand()))
            if module in classifiers:
                see = _see_input(layer)
                handles.append(classifiers[module].register_forward_pre_hook(see))
                handles.append(
                    module.register_forward_hook(_count(name, layer, self._reached, look=False))
                )
            else:
                handles.append(module.register_forward_hook(_count(name, layer, self._reached)))
        return handles

    def rows(self, images: int) -> list[Operations]:
        """A row per layer, per image of ``images`` and summed over time steps."""
        return [_row(name, layer, images) for name, layer in self._reached.items()]


def _see_input(layer: _Layer) -> Callable:
    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer.operands[0].see(inputs[0])

    return see


def _count(name: str, layer: _Layer, reached: dict[str, _Layer], look: bool = True) -> Callable:
    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        reached.setdefault(name, layer)
        first = inputs[0]
        if look:
            seen = inputs if layer.kind == "product" else inputs[:1]
            for operand, x in zip(layer.operands, seen, strict=False):
                operand.see(x)
        if layer.kind == "mask":
            return
        steps = 1 if all(is_static(x) for x in inputs) else first.shape[0]
        other = inputs[1] if layer.kind == "product" else output
        layer.dense_macs += module.dense_macs(first, other) * steps * first.shape[1]

    return count


def _row(name: str, layer: _Layer, images: int) -> Operations:
    decisive = layer.operands[0]
    if layer.kind == "product":
        decisive = _sparser(*layer.operands)
    dense = layer.dense_macs / images
    rate = decisive.rate
    return {
        "layer": name,
        "kind": layer.kind,
        "input": decisive.content,
        "dense_macs": dense,
        "input_rate": rate,
        "macs": dense if decisive.content == "analog" else 0.0,
        "acs": 0.0 if rate is None else rate * dense,
    }


def _sparser(a: Operand, b: Operand) -> Operand:
    """The operand whose spikes a product runs over: binary before integer, then by rate."""
    return min(a, b, key=lambda o: (_CONTENTS.index(o.content), o.rate or 0.0))
