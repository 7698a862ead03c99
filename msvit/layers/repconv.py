"""Re-parameterisable convolution: a 3×3 convolution in four factors and two norms.

Source: Spike-driven Transformer V2 (arXiv 2404.03663), section 3.2, and its code.
"""

from __future__ import annotations

from torch import Tensor, nn

from msvit.layers.norm import BatchNorm
from msvit.layers.synapses import Conv
from msvit.layers.units import ConvNorm


class RepConv(nn.Module):
    """1×1 → BN → depthwise 3×3 → 1×1 → BN, ``[T, B, H, W, C]`` → ``[T, B, H, W, parts · C]``.

    No neuron stands between the factors: with fixed statistics they are one 3×3 convolution.
    For that, the depthwise factor sees outside of the image what the norm in front makes of
    zero, not zero (:func:`pad_by_zero_of`). ``parts`` convolutions of one input, such as q, k
    and v, are computed side by side and lie next to each other on the last axis.
    """

    def __init__(self, dim: int, parts: int = 1) -> None:
        super().__init__()
        wide = parts * dim
        self.point = ConvNorm(dim, wide)
        self.depthwise = Conv(wide, wide, 3, padding=0, groups=wide)
        self.mix = ConvNorm(wide, wide, groups=parts)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_by_zero_of(self.point.norm, self.point(x))
        return self.mix(self.depthwise(padded))


def pad_by_zero_of(norm: BatchNorm, y: Tensor) -> Tensor:
    """Border of 1 around ``y = norm(…)``: ``[T, B, H, W, C]`` → ``[T, B, H + 2, W + 2, C]``.

    Its value is what ``norm`` makes of zero under its running statistics, also while training,
    where ``y`` has those of the batch. It receives no gradient.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    border = (norm.bias - norm.running_mean * scale).detach().to(y.dtype)
    steps, images, height, width, channels = y.shape
    padded = border.expand(steps, images, height + 2, width + 2, channels).clone()
    padded[:, :, 1:-1, 1:-1] = y
    return padded
