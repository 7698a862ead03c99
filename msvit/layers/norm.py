"""Batch normalisation over everything but the channels, which come last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msvit.layers.synapses import is_static


class BatchNorm(nn.Module):
    """BatchNorm of ``[T, B, H, W, C]`` over T, B, H and W (Ioffe & Szegedy, 2015).

    ``offset`` ``[C]`` is the bias of the layer in front. Normalising by batch statistics
    cancels it, so it is never added to the activations: it moves the running mean, exactly
    as in an ordinary convolution with bias followed by BatchNorm, and is subtracted from it
    in eval mode. It receives no gradient.

    The running variance is unbiased by the number of values, time steps included, also for
    a static input whose statistics are computed on one step.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        steps = y.shape[0]
        if is_static(y):
            return self._normalise(y[:1], steps, offset).expand(steps, *(-1,) * (y.ndim - 1))
        return self._normalise(y, 1, offset)

    def _normalise(self, y: Tensor, copies: int, offset: Tensor | None) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        if not self.training:
            mean = self.running_mean if offset is None else self.running_mean - offset.detach()
            out = F.batch_norm(
                rows, mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
            return out.view(y.shape)
        if len(rows) * copies == 1:
            raise ValueError("batch statistics need more than one value per channel")
        out, mean, inverse_std = torch.native_batch_norm(
            rows, self.weight, self.bias, None, None, True, 0.0, self.eps
        )
        self.track(mean.detach(), inverse_std.detach(), len(rows) * copies, offset)
        return out.view(y.shape)

    @torch.no_grad()
    def track(self, mean: Tensor, inverse_std: Tensor, count: int, offset: Tensor | None) -> None:
        """Move the running statistics towards those of a batch of ``count`` values."""
        self.num_batches_tracked += 1
        variance = inverse_std.pow(-2).sub_(self.eps).mul_(count / (count - 1))
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        mean = mean if offset is None else mean + offset
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
