"""Firing rates: spikes per neuron and time step, of every neuron layer; and its updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from msvit.kernels import NeuronSpec
from msvit.metrics.contents import count_nonzero
from msvit.metrics.layer_names import layer_name
from msvit.metrics.membranes import update_of
from msvit.neuron_kinds import bits_of
from msvit.neurons import Neuron, Spikes
from msvit.records.schema import Firing, Operations


@dataclass
class _Layer:
    """Sums over images of one layer; ``spikes`` is float64 ``[T]``, ``neurons`` an int."""

    spikes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    neurons: int = 0

    def add(self, spikes: Tensor, neurons: int) -> None:
        """Take in the spikes of further ``neurons``, those of all images being counted."""
        self.spikes = spikes + self.spikes if len(self.spikes) else spikes.clone()
        self.neurons += neurons


@dataclass
class _Neurons:
    """The neurons of one module: the layers that its parts are.

    ``active`` and ``peak``, of neurons whose outputs are whole numbers: how many are not zero, and
    the largest.
    """

    spec: NeuronSpec
    parts: list[str]
    active: int = 0
    peak: float = 1.0


@dataclass
class _Activations:
    """What a twin has in place of a module of neurons: values, and those that are not zero."""

    spec: NeuronSpec
    outputs: int = 0
    active: int = 0


_Counts = tuple[dict[str, _Layer], dict[str, _Neurons], dict[str, _Activations]]


class FiringMonitor:
    """Counts what passes every :class:`~msvit.neurons.Spikes` of a model.

    Integer-valued neurons count with their value: an output of 2 is two spikes. What does not spike
    has no rate.
    """

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._reached: dict[str, _Layer] = {}  # in the order in which data first come to them
        self._neurons: dict[str, _Neurons] = {}
        self._activations: dict[str, _Activations] = {}

    def attach(self, model: nn.Module, batch_size: Callable[[], int]) -> list[RemovableHandle]:
        """Hook ``model``; ``batch_size`` tells the number of images now in it."""
        modules = dict(model.named_modules())
        handles = []
        for path, module in modules.items():
            if isinstance(module, Spikes):
                of = path.rpartition(".")[0]
                holder = modules[of]
                spec = holder.spec if isinstance(holder, Neuron) else None
                if spec is not None and not spec.fires:
                    hook = self._hook_activations(of or "neuron", spec)
                else:
                    hook = self._hook(path, module.parts, batch_size, of or "neuron", spec)
                handles.append(module.register_forward_hook(hook))
        return handles

    def _hook(
        self,
        path: str,
        parts: tuple[str, ...],
        batch_size: Callable[[], int],
        of: str,
        spec: NeuronSpec | None,
    ) -> Callable:
        names = [layer_name(path, part) for part in parts] or [layer_name(path)]
        for name in names:
            if name in self._layers:
                raise ValueError(f"two neuron layers are called {name}")
            self._layers[name] = _Layer()
        neurons = _Neurons(spec, names) if spec is not None else None

        def count(module: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> None:
            # [T, B, ..., C]; batch-coupled neurons run over [T·B, 1, ..., C], in this order.
            images = batch_size()
            steps = spikes.shape[0] * spikes.shape[1] // images
            # [T·B, C], exact in float32 as long as an image has less than 2²⁴ positions
            rows = spikes.reshape(steps * images, -1, spikes.shape[-1])
            per_image = rows.sum(1, dtype=torch.float32)
            apart = per_image.view(steps, images, len(names), -1)
            per_step = apart.sum((1, 3), dtype=torch.float64).cpu()  # [T, parts]
            for name, part in zip(names, per_step.T, strict=True):
                layer = self._reached.setdefault(name, self._layers[name])
                layer.add(part, spikes.numel() // (steps * len(names)))
            if neurons is not None:
                self._neurons[of] = neurons
                if neurons.spec.kind == "ilif":
                    neurons.active += count_nonzero(spikes)
                    neurons.peak = max(neurons.peak, float(spikes.amax()))

        return count

    def _hook_activations(self, of: str, spec: NeuronSpec) -> Callable:
        found = _Activations(spec)

        def count(module: nn.Module, inputs: tuple[Tensor, ...], values: Tensor) -> None:
            self._activations[of] = found
            found.outputs += values.numel()
            found.active += count_nonzero(values)

        return count

    def counts(self) -> _Counts:
        """What was counted so far."""
        return self._reached, self._neurons, self._activations

    def add(self, counts: _Counts) -> None:
        """Take in the :meth:`counts` of the same model in another process."""
        layers, modules, activations = counts
        for name, theirs in layers.items():
            layer = self._reached.setdefault(name, self._layers[name])
            layer.add(theirs.spikes, theirs.neurons)
        for path, neurons in modules.items():
            own = self._neurons.setdefault(path, replace(neurons, active=0))
            own.active += neurons.active
            own.peak = max(own.peak, neurons.peak)
        for path, values in activations.items():
            found = self._activations.setdefault(path, _Activations(values.spec))
            found.outputs += values.outputs
            found.active += values.active

    def updates(self, images: int) -> list[Operations]:
        """A row per module of neurons, per image of ``images`` and summed over time steps.

        Of a twin, a row per module that is in their place.
        """
        neurons = [self._update_row(path, n, images) for path, n in self._neurons.items()]
        return neurons + [_output_row(path, a, images) for path, a in self._activations.items()]

    def _update_row(self, path: str, neurons: _Neurons, images: int) -> Operations:
        layers = [self._layers[name] for name in neurons.parts]
        steps = len(layers[0].spikes)
        per_step = sum(layer.neurons for layer in layers) / images
        spikes = sum(float(layer.spikes.sum()) for layer in layers) / images
        active = neurons.active / images if neurons.spec.kind == "ilif" else spikes
        updates = per_step * steps
        each = update_of(neurons.spec, steps)
        return {
            **_without_products(path),
            "steps": steps,
            "neuron": neurons.spec.kind,
            "updates": updates,
            "spikes": spikes,
            "active_outputs": active,
            "output_peak": neurons.peak,
            "outputs": updates,
            "additions": updates * each.additions + active * each.spike_additions,
            "multiplies": updates * each.multiplies + active * each.spike_multiplies,
            "states": per_step * each.states,
        }

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


def _without_products(path: str) -> Operations:
    return {
        "layer": path,
        "kind": "neuron",
        "input": "current",
        "dense_macs": 0.0,
        "input_rate": None,
        "macs": 0.0,
        "acs": 0.0,
    }


def _output_row(path: str, activations: _Activations, images: int) -> Operations:
    """Outputs alone: there is no potential to update."""
    row: Operations = {
        **_without_products(path),
        "steps": 1,
        "neuron": activations.spec.kind,
        "updates": 0.0,
        "spikes": 0.0,
        "active_outputs": activations.active / images,
        "outputs": activations.outputs / images,
        "additions": 0.0,
        "multiplies": 0.0,
        "states": 0.0,
    }
    if activations.spec.kind == "quantised":
        row["output_peak"] = 2.0 ** bits_of(activations.spec.timesteps) - 1
    return row
