"""What every spiking model shares: its options, its neurons, its checkpoint map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from msvit import kernels
from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.models.options import ModelOptions, SpikingOptions


def neuron_spec(options: SpikingOptions) -> NeuronSpec:
    return NeuronSpec(
        kind=options.neuron,
        tau=options.tau,
        threshold=options.threshold,
        surrogate=options.surrogate,
        surrogate_alpha=options.surrogate_alpha,
        hard_reset=options.hard_reset,
        detach_reset=options.detach_reset,
        timesteps=options.timesteps,
    )


class Model(nn.Module):
    """Base of the zoo: images ``[B, C, H, W]`` or events ``[T, B, C, H, W]`` → ``[T, B, K]``."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with kernels.spikes_as_bytes(x.device):
            return super().__call__(x, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def official_map(self) -> OfficialMap:
        """Where the official implementation keeps each of this model's tensors."""
        raise NotImplementedError
