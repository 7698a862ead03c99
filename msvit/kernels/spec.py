"""What a spiking neuron layer computes: the options that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

Surrogate = Literal["sigmoid", "atan", "erf", "piecewise_quadratic", "soft_sign", "rect"]
SURROGATES: tuple[str, ...] = get_args(Surrogate)


class Norm(Protocol):
    """What the units read of a BatchNorm: torch's own, or a module with the same attributes.

    Vectors are ``[C]`` float32 (float64 for float64 activations); ``momentum`` None means the
    cumulative average; ``weight``, ``bias`` and the running statistics may be None. A norm that
    also has ``process_group`` (SyncBatchNorm; None: all) shares its batch statistics between
    workers once ``torch.distributed`` is initialised.
    """

    training: bool
    eps: float
    momentum: float | None
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any


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
        surrogate: gradient of the step function, in spikingjelly's definition.
        alpha: its sharpness.
        detach_reset: whether the gradient stops at the spike that resets.
    """

    kind: Literal["if", "lif", "plif"] = "lif"
    tau: float = 2.0
    decay_input: bool = True
    threshold: float = 1.0
    v_reset: float | None = 0.0
    surrogate: Surrogate = "sigmoid"
    alpha: float = 4.0
    detach_reset: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("if", "lif", "plif"):
            raise ValueError(f"neuron kind {self.kind!r}: one of 'if', 'lif', 'plif'")
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate {self.surrogate!r}: one of {', '.join(SURROGATES)}")
        if not self.tau >= 1:
            raise ValueError(f"tau {self.tau!r}: at least 1 time step")
