"""What a spiking neuron layer computes: the options that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NeuronSpec:
    """A neuron of spikingjelly 2 (IFNode, LIFNode, ParametricLIFNode) and its surrogate.

    Attributes:
        kind: ``"if"`` integrates, ``"lif"`` leaks with ``tau``, ``"plif"`` leaks with a learnable
            ``sigmoid(w)`` in place of ``1 / tau``.
        tau: membrane time constant in time steps, at least 1; only ``"lif"`` reads it.
        decay_input: whether the leak scales the input as well.
        threshold: membrane potential that fires.
        v_reset: potential after a spike and at the start; None subtracts the threshold instead
            (soft reset) and starts at 0.
        surrogate: gradient of the step function, ``"sigmoid"`` or ``"atan"``.
        alpha: its sharpness.
        detach_reset: whether the gradient stops at the spike that resets.
    """

    kind: Literal["if", "lif", "plif"] = "lif"
    tau: float = 2.0
    decay_input: bool = True
    threshold: float = 1.0
    v_reset: float | None = 0.0
    surrogate: Literal["sigmoid", "atan"] = "sigmoid"
    alpha: float = 4.0
    detach_reset: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("if", "lif", "plif"):
            raise ValueError(f"neuron kind {self.kind!r}: one of 'if', 'lif', 'plif'")
        if self.surrogate not in ("sigmoid", "atan"):
            raise ValueError(f"surrogate {self.surrogate!r}: one of 'sigmoid', 'atan'")
        if not self.tau >= 1:
            raise ValueError(f"tau {self.tau!r}: at least 1 time step")
