"""What every spiking model shares: its options, its neurons, its checkpoint map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from msvit import kernels
from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.models.options import ModelOptions, SpikingOptions, TwinOptions
from msvit.neuron_kinds import TWINS


def neuron_spec(options: SpikingOptions) -> NeuronSpec:
    if isinstance(options, TwinOptions) and options.twin != "none":
        return NeuronSpec(kind=TWINS[options.twin], timesteps=options.twin_of_timesteps)
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
    """Base of the zoo: images ``[B, C, H, W]`` or events ``[T, B, C, H, W]`` → ``[T, B, K]``.

    NaN reaches no threshold: of images that are not finite, a spiking model's logits may be.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        """As any module, but neurons refuse to be rounded.

        Raises:
            TypeError: for ``half()``, ``bfloat16()`` and the like, before anything is converted.
        """
        dtype = fn(torch.empty(0)).dtype
        if dtype in (torch.float16, torch.bfloat16) and isinstance(self.options, SpikingOptions):
            name = str(dtype).removeprefix("torch.")
            raise TypeError(
                f"{type(self).__name__} stays in float32: potentials and statistics rounded to "
                f"{name} would change spikes; run it under torch.autocast(device, torch.{name})"
            )
        return super()._apply(fn, recurse)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with kernels.spikes_as_bytes(x.device):
            return super().__call__(x, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def official_map(self) -> OfficialMap:
        """Where the official implementation keeps each of this model's tensors."""
        raise NotImplementedError
