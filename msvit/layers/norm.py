"""Batch normalisation over everything but the channels, which come last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msvit import kernels


class BatchNorm(nn.Module):
    """BatchNorm of ``[T, B, H, W, C]`` over T, B, H and W (Ioffe & Szegedy, 2015).

    ``offset`` ``[C]`` is the bias of the layer in front. Normalising by batch statistics
    cancels it, so it is never added to the activations: it moves the running mean, exactly
    as in an ordinary convolution with bias followed by BatchNorm, and is subtracted from it
    in eval mode. It receives no gradient; where workers train together, zeros.

    The running variance is unbiased by the number of values, time steps included, also for
    a static input whose statistics are computed on one step.
    """

    weight: Tensor
    bias: Tensor
    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(
        self,
        y: Tensor,
        offset: Tensor | None = None,
        shortcut: Tensor | None = None,
        pool: bool = False,
    ) -> Tensor:
        """Norm (→ 3×3 max pool with stride 2) (→ + shortcut): membrane potential."""
        return kernels.norm_add(y, self, shortcut, offset, pool)
