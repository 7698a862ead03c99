"""What stands in place of a neuron in a twin: a network of the same structure that does not spike.

A twin has one time step. Its activations are those of a ReLU, or of a quantiser of as many bits as
the spikes of a train of T steps need: the fair comparison of Yan et al. (arXiv 2409.08290).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from msvit.kernels import NeuronSpec
from msvit.neuron_kinds import ActivationName, bits_of


class Quantiser(nn.Module):
    """Levels 0 … 2ᵇ - 1 of ``[T, B, ..., C]``, by a learned step size: ``round(clip(x / s))``.

    As LSQ quantises activations (Esser et al., ICLR 2020, arXiv 1902.08153): the gradient passes
    the rounding as if it were not there, that of s is scaled by 1/√(N · (2ᵇ - 1)), N being the
    values of an image, and s starts as 2 · E|x| / √(2ᵇ - 1) of the first training batch. Two things
    are ours. The logarithm of s is learned, so that s stays positive and an optimizer whose steps
    do not depend on the size of gradients changes it by shares. And levels are told, not levels
    times s: the norm behind the next product takes any scale away, with the same gradients, and
    sums at shortcuts stay whole numbers, as those of spikes are.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.highest = 2**bits - 1
        self.log_step = nn.Parameter(torch.zeros(()))
        self.started: Tensor
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._start(x)
        share = (math.prod(x.shape[2:]) * self.highest) ** -0.5
        log_step = self.log_step
        scaled = share * log_step
        level = x / (log_step.detach() + (scaled - scaled.detach())).exp()
        level = level.clamp(0, self.highest)
        return level + (level.round() - level).detach()

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        """Once, from values that are not all zero; without waiting for a device."""
        mean = x.abs().mean()
        first = (2 * mean / math.sqrt(self.highest)).log()
        wait = self.started | (mean == 0)
        self.log_step.copy_(torch.where(wait, self.log_step, first))
        self.started.logical_or_(mean > 0)

    def extra_repr(self) -> str:
        return f"levels 0 to {self.highest}"


ACTIVATIONS: dict[ActivationName, Callable[[NeuronSpec], nn.Module]] = {
    "relu": lambda spec: nn.ReLU(),
    "quantised": lambda spec: Quantiser(bits_of(spec.timesteps)),
}
