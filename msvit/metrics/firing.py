"""Firing rates: spikes per neuron and time step, of every neuron layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from msvit.metrics.layer_names import layer_name
from msvit.neurons import Spikes
from msvit.records.schema import Firing


@dataclass
class _Layer:
    """Sums over images of one layer; ``spikes`` is float64 ``[T]``, ``neurons`` an int."""

    spikes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    neurons: int = 0


class FiringMonitor:
    """Counts what passes every :class:`~msvit.neurons.Spikes` of a model.

    Integer-valued neurons count with their value: an output of 2 is two spikes.
    """

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._reached: dict[str, _Layer] = {}  # in the order in which data first come to them

    def attach(self, model: nn.Module, batch_size: Callable[[], int]) -> list[RemovableHandle]:
        """Hook ``model``; ``batch_size`` tells the number of images now in it."""
        return [
            module.register_forward_hook(self._hook(path, module.parts, batch_size))
            for path, module in model.named_modules()
            if isinstance(module, Spikes)
        ]

    def _hook(self, path: str, parts: tuple[str, ...], batch_size: Callable[[], int]) -> Callable:
        names = [layer_name(path, part) for part in parts] or [layer_name(path)]
        for name in names:
            if name in self._layers:
                raise ValueError(f"two neuron layers are called {name}")
            self._layers[name] = _Layer()

        def count(module: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> None:
            # [T, B, ..., C]; batch-coupled neurons run over [T·B, 1, ..., C], in this order.
            images = batch_size()
            steps = spikes.shape[0] * spikes.shape[1] // images
            # [T·B, C], exact in float32 as long as an image has less than 2²⁴ positions
            rows = spikes.reshape(steps * images, -1, spikes.shape[-1])
            per_image = rows.sum(1, dtype=torch.float32)
            per_part = per_image.double().unflatten(-1, (len(names), -1)).sum(-1)
            per_step = per_part.unflatten(0, (steps, images)).sum(1).cpu()  # [T, parts]
            for name, part in zip(names, per_step.T, strict=True):
                layer = self._reached.setdefault(name, self._layers[name])
                layer.spikes = part + layer.spikes if len(layer.spikes) else part.clone()
                layer.neurons += spikes.numel() // (steps * len(names))

        return count

    def rows(self, images: int) -> list[Firing]:
        """A row per layer and time step, means over ``images``."""
        return [
            {
                "layer": name,
                "timestep": step,
                "rate": spikes / layer.neurons,
                "neurons": layer.neurons // images,
            }
            for name, layer in self._reached.items()
            for step, spikes in enumerate(layer.spikes.tolist())
        ]

    def overall_rate(self) -> float:
        """All spikes over all neurons and time steps; 0 where there are no neurons."""
        spikes = sum(float(layer.spikes.sum()) for layer in self._layers.values())
        chances = sum(layer.neurons * len(layer.spikes) for layer in self._layers.values())
        return spikes / chances if chances else 0.0
