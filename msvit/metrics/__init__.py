"""What a model does on real images: firing rates, operation counts, energy.

>>> measurement = measure(model, batches)      # batches of normalised images [B, C, H, W]
>>> measurement.firing_rate, measurement.energy_mj["sop_spikformer"]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from msvit.metrics.firing import FiringMonitor
from msvit.metrics.operations import OperationCounter
from msvit.records.energy import energies
from msvit.records.schema import Firing, Operations


@dataclass(frozen=True)
class Measurement:
    """Means over all images that were seen."""

    firing: list[Firing]
    """A row per neuron layer and time step: spikes per neuron, and neurons per image."""
    firing_rate: float
    """Spikes per neuron and time step over all layers; 0 for a model without neurons."""
    operations: list[Operations]
    """A row per layer, then one per module of neurons: operations per image over all steps."""
    energy_mj: dict[str, float]
    """Millijoule per image under each model of :data:`msvit.records.energy.ENERGY_MODELS`."""


class Meter:
    """Counts what ``model`` does while the context is open, in memory independent of images.

    Works by forward hooks: nothing is computed again, and outputs do not change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._batch = 0
        self._images = 0
        self._firing = FiringMonitor()
        self._operations = OperationCounter()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            self.model.register_forward_pre_hook(self._see_images),
            *self._firing.attach(self.model, lambda: self._batch),
            *self._operations.attach(self.model),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def counts(self) -> tuple[int, Any, Any]:
        """What was counted so far, for the meter of the same model in another process."""
        return self._images, self._firing.counts(), self._operations.counts()

    def add(self, counts: tuple[int, Any, Any]) -> None:
        """Take in the :meth:`counts` of another process, made of other images."""
        images, firing, operations = counts
        self._images += images
        self._firing.add(firing)
        self._operations.add(operations)

    def result(self) -> Measurement:
        """What was counted so far.

        Raises:
            ValueError: if the model has seen no images.
        """
        if not self._images:
            raise ValueError("nothing was measured: the model has seen no images")
        layers, neurons = self._operations.rows(self._images), self._firing.updates(self._images)
        operations = [*layers, *neurons]
        return Measurement(
            firing=self._firing.rows(self._images),
            firing_rate=self._firing.overall_rate(),
            operations=operations,
            energy_mj=energies(operations),
        )

    def _see_images(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0]  # [B, C, H, W] or events [T, B, C, H, W]
        self._batch = images.shape[-4]
        self._images += self._batch


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Tensor]) -> Measurement:
    """Run ``model`` in eval mode over ``batches`` and count; the mode it had comes back.

    ``batches`` hold normalised images ``[B, C, H, W]`` or events ``[T, B, C, H, W]``.

    Raises:
        ValueError: if there are no batches.
    """
    training = model.training
    model.eval()
    try:
        with Meter(model) as meter:
            for images in batches:
                model(images)
    finally:
        model.train(training)
    return meter.result()
