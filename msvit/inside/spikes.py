"""Which neurons fire when, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from msvit.metrics.layer_names import layer_name
from msvit.neurons import Neuron, Spikes


@dataclass(frozen=True)
class LayerSpikes:
    """The neurons of one layer while the network sees one image.

    Attributes:
        rate: float64 ``[T]``, spikes per neuron in each time step.
        active: share of the neurons that fire at all.
        neurons: int64 ``[n]``, places of some of those that fire, evenly over all that do.
        raster: float32 ``[n, T]``, their spikes.
    """

    rate: np.ndarray
    active: float
    neurons: np.ndarray
    raster: np.ndarray


class SpikeWatch:
    """While the context is open, ``seen`` holds the spikes of the last batch.

    ``seen[layer][i]`` is of the image at ``places[i]`` of the batch. Layers are called as in
    records, in the order in which data first come to them. What does not spike is left out.
    """

    def __init__(self, model: nn.Module, neurons: int) -> None:
        """``neurons`` is how many of a layer a raster shows at most."""
        self.places: Sequence[int] = ()
        self.seen: dict[str, list[LayerSpikes]] = {}
        self._model, self._most = model, neurons
        self._batch = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        modules = dict(self._model.named_modules())
        self._handles = [self._model.register_forward_pre_hook(self._see_images)]
        for path, module in modules.items():
            holder = modules[path.rpartition(".")[0]]
            spiking = not isinstance(holder, Neuron) or holder.spec.fires
            if isinstance(module, Spikes) and spiking:
                names = [layer_name(path, part) for part in module.parts] or [layer_name(path)]
                self._handles.append(module.register_forward_hook(self._hook(names)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _see_images(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._batch = inputs[0].shape[-4]
        self.seen = {}

    def _hook(self, names: Sequence[str]) -> Callable:
        def remember(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
            # [T, B, ..., C]; batch-coupled neurons run over [T·B, 1, ..., C], in this order.
            whole = spikes.detach().reshape(-1, self._batch, *spikes.shape[2:])
            chosen = whole[:, torch.as_tensor(self.places, device=whole.device)].float().cpu()
            for name, part in zip(names, chosen.chunk(len(names), -1), strict=True):
                self.seen[name] = [self._of_image(image) for image in part.unbind(1)]

        return remember

    def _of_image(self, spikes: Tensor) -> LayerSpikes:
        """Of spikes ``[T, ..., C]``."""
        flat = spikes.flatten(1)
        firing = flat.any(0).nonzero()[:, 0].numpy()
        evenly = np.linspace(0, len(firing) - 1, min(self._most, len(firing))).round().astype(int)
        neurons = firing[evenly]
        return LayerSpikes(
            rate=flat.mean(1, dtype=torch.float64).numpy(),
            active=len(firing) / flat.shape[1],
            neurons=neurons,
            raster=flat[:, neurons].T.contiguous().numpy(),
        )
