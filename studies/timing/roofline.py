"""How fast a step could be on this machine: a lower bound from counted work and measured peaks.

    roofline seconds = product FLOPs / product peak + convolution FLOPs / convolution peak
                       + bytes / bandwidth

It is the bound of *dense* arithmetic, which plain modules cannot pass. A product that adds up the
weights of what fired does less than these FLOPs, so that a share above 1 says how much work the
zeros have saved.

*FLOPs.* Two per multiply-accumulate of every convolution, Linear layer and attention product,
as :mod:`studies.timing.probes` counts them in the forward pass of our model; the image, which
does not change over time, is convolved once. Backward takes twice the forward, except that the
first layer needs no gradient of its input. 1×1 convolutions are matrix products and count as
such. The optimizer and everything elementwise count nothing.

*Bytes.* What a unit convolution → batch norm → neuron cannot avoid if its tensors do not fit
into the caches. Training takes 15 passes over an element (30 bytes in bf16, 60 in fp32):

- 10 over the convolution's output ``y``: written, read for the statistics, read for the
  neuron; in backward read, its gradient written; ``a·g + b·y + d``: both read, one written;
  read for the gradient of the input and read for that of the weights;
- 5 over the spikes: written, read by the next layer; in backward their gradient written by the
  next layer and read by the neuron, the spikes read for the gradient of the next weights.

Inference takes 3: ``y`` written and read, spikes written. A static input has its ``y`` once for
all time steps. Where everything stays in the caches, as at digits size, this overstates the
bytes, and a share above 1 is possible in principle.

The same bound holds for both variants, so that their shares compare.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = {"fp32": 4, "tf32": 4, "bf16": 2}
PASSES = {"train": (10, 5), "infer": (2, 1)}  # over y, over spikes


@dataclass(frozen=True)
class Work:
    """Forward work of one image over all time steps.

    ``*_flops`` of products and convolutions; ``first_flops`` are those of convolutions of the
    image, whose input gets no gradient. ``currents`` and ``spikes`` count elements.
    """

    product_flops: int
    conv_flops: int
    first_flops: int
    currents: int
    spikes: int


@dataclass(frozen=True)
class Peaks:
    """Measured limits in one precision: GFLOP/s of products and convolutions, and GB/s."""

    product: float
    convolution: float
    bandwidth: float


def step_flops(work: Work, batch: int, mode: str) -> tuple[float, float]:
    """FLOPs in (products, convolutions) of a step over ``batch`` images."""
    times = 3 if mode == "train" else 1
    convolution = work.conv_flops * times - (work.first_flops if mode == "train" else 0)
    return batch * work.product_flops * times, batch * convolution


def step_bytes(work: Work, batch: int, precision: str, mode: str) -> float:
    """Bytes that a step over ``batch`` images has to move."""
    over_currents, over_spikes = PASSES[mode]
    elements = over_currents * work.currents + over_spikes * work.spikes
    return batch * BYTES[precision] * elements


def roofline_seconds(work: Work, batch: int, precision: str, mode: str, peaks: Peaks) -> float:
    """The lower bound for a step, in seconds."""
    product, convolution = step_flops(work, batch, mode)
    arithmetic = product / peaks.product + convolution / peaks.convolution
    return (arithmetic + step_bytes(work, batch, precision, mode) / peaks.bandwidth) / 1e9
