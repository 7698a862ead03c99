"""A spiking neuron, told once, and the contract of what computes it.

Per neuron, with potential v, input x and one time step from line to line:

    charge      IF      h = v + x
                LIF     h = v + (x - v) / tau               h = v - v / tau + x
                PLIF    h = v + (x - v) · sigmoid(w)        h = v - v · sigmoid(w) + x
                        (with ``decay_input``)              (without)
    fire        s = 1 where h ≥ threshold, else 0
    reset       hard    v = (1 - s) · h
                soft    v = h - s · threshold

v starts at 0. What stands before x or v in the charge is the *decay*: 1 / tau, or sigmoid(w). The
gradient of s is that of a surrogate in d = h - threshold, with sharpness α:

    sigmoid                 α σ (1 - σ),  σ = 1 / (1 + exp(-α d))
    atan                    α / 2 / (1 + (π α d / 2)²)
    erf                     α / √π · exp(-α² d²)
    piecewise_quadratic     max(0, α - α² |d|)
    soft_sign               1 / (2 α) / (1 / α + |d|)²
    rect                    α where |d| < 1 / (2 α), else 0

and, with ``detach_reset``, s is a constant in the reset. Sources: spikingjelly 2 (IFNode, LIFNode,
ParametricLIFNode, surrogate); PLIF: Fang et al., ICCV 2021 (arXiv 2007.05785); surrogates: Neftci
et al., 2019 (arXiv 1901.09948).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, distributed

from msvit.neuron_kinds import (
    DEFAULT_ALPHA,
    GLIF_HIGHEST_THRESHOLD,
    SURROGATES,
    ActivationName,
    NeuronName,
    SurrogateName,
)

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup

EQUATIONS: tuple[NeuronName, ...] = ("if", "lif", "plif")
"""The kinds of neuron that are told here, and that kernels know."""


@dataclass(frozen=True)
class NeuronSpec:
    """What a neuron layer is made of; names as in :class:`msvit.models.options.SpikingOptions`.

    Attributes:
        kind: a name of :mod:`msvit.neuron_kinds`, which tells which attributes each kind reads.
        tau: membrane time constant in time steps, at least 1 (PLIF: at the start).
        threshold: membrane potential that fires.
        surrogate: gradient of the step function.
        surrogate_alpha: its sharpness; None: spikingjelly's default.
        hard_reset: to 0; else the threshold is subtracted.
        detach_reset: whether the gradient stops at the spike that resets.
        decay_input: whether the leak scales the input as well.
        timesteps: of the neurons that have parameters per step (GLIF, PSN); of a quantiser, the
            time steps whose spikes it has levels for.
    """

    kind: NeuronName | ActivationName = "lif"
    tau: float = 2.0
    threshold: float = 1.0
    surrogate: SurrogateName = "sigmoid"
    surrogate_alpha: float | None = None
    hard_reset: bool = True
    detach_reset: bool = True
    decay_input: bool = True
    timesteps: int = 4

    def __post_init__(self) -> None:
        kinds = (*get_args(NeuronName), *get_args(ActivationName))
        if self.kind not in kinds:
            raise ValueError(f"neuron kind {self.kind!r}: one of {', '.join(kinds)}")
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate {self.surrogate!r}: one of {', '.join(SURROGATES)}")
        if not self.tau >= 1:
            raise ValueError(f"tau {self.tau!r}: at least 1 time step")
        if self.kind == "glif" and self.threshold > GLIF_HIGHEST_THRESHOLD:
            raise ValueError(f"threshold {self.threshold!r}: of a glif {GLIF_HIGHEST_THRESHOLD}")

    def with_(self, **changes: Any) -> NeuronSpec:
        """A copy for one layer."""
        return replace(self, **changes)

    @property
    def fires(self) -> bool:
        """Whether it is a neuron, and not what a twin has in its place."""
        return self.kind in get_args(NeuronName)

    def check_equations(self) -> None:
        """Raises ValueError for a kind that no kernel knows."""
        if self.kind not in EQUATIONS:
            raise ValueError(f"no kernel knows the neuron {self.kind!r}")

    @property
    def alpha(self) -> float:
        """Sharpness of the surrogate."""
        given = self.surrogate_alpha
        return DEFAULT_ALPHA[self.surrogate] if given is None else given

    @property
    def leaks(self) -> bool:
        return self.kind != "if"

    @property
    def divides(self) -> bool:
        """Whether the leak is divided by tau, as spikingjelly does, since 1 / tau is not exact."""
        return self.kind == "lif" and math.frexp(self.tau)[0] != 0.5


class Norm(Protocol):
    """What the units read of a BatchNorm: torch's own, or a module with the same attributes.

    Vectors are ``[C]`` float32 (float64 for float64 activations); ``momentum`` None means the
    cumulative average. A norm that also has ``process_group`` (SyncBatchNorm; None: all) shares its
    batch statistics between workers once ``torch.distributed`` is initialised; with a true
    ``even_parts`` all of them have as many values.
    """

    training: bool
    eps: float
    momentum: float | None
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor


def shared_by(norm: Norm) -> ProcessGroup | None:
    """The process group that shares the statistics of ``norm``, None if there is none."""
    if not (hasattr(norm, "process_group") and norm.training):
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return norm.process_group or distributed.group.WORLD


class FixedNeuron(NamedTuple):
    """A neuron as it is in one forward pass and its gradient, the decay looked up.

    ``decay`` is a float, or a scalar of the backend's device that nobody has waited for.
    """

    spec: NeuronSpec
    decay: Tensor | float


class Batch(NamedTuple):
    """What a norm learns its statistics from: ``y`` of this process, ``size`` values per channel.

    ``moments`` ``[2, C]`` (mean, biased variance) are those of all workers, over the ``size``
    values of all of them; None: those of y, where a time step that y has once may count as several.
    """

    y: Tensor
    moments: Tensor | None
    size: int


class Backend(Protocol):
    """Passes over memory for activations of one dtype, the parts of :mod:`msvit.kernels.autograd`.

    Activations are contiguous ``[t, R, C]``, with ``t`` the time steps T or 1 (every step is the
    same) and ``R`` any number of axes; the passes read memory as it is said to lie and check
    nothing. ``folded`` is ``[4, C]``: mean, 1/std, scale and shift of a norm. ``coefficients``
    ``[3, C]`` are the a, b and d of a·g + b·y + d, the gradient through a norm. Vectors and
    potentials are of dtype ``real``, moments float64. Sums over a batch come in *slots*,
    ``[slots, 2, C]``, of any type, to be added up in float64. The same call gives the same bits,
    and no call waits for a GPU.
    """

    real: torch.dtype
    """Of parameters, potentials and statistics."""

    head_bytes: int
    """A head of token attention is a multiple of so many bytes."""

    def neuron(self, spec: NeuronSpec, plif_w: Tensor | None) -> FixedNeuron:
        """``spec`` with its decay; ``plif_w`` is the w of a PLIF."""

    def moments(self, y: Tensor) -> Tensor:
        """Mean and biased variance ``[2, C]`` over all but the last axis, for other workers."""

    def fold(self, norm: Norm, offset: Tensor | None, batch: Batch | None) -> Tensor:
        """``folded`` of ``norm`` for a batch, which its running statistics and count take in.

        From the running statistics where ``batch`` is None. ``offset`` ``[C]`` is what the layer in
        front has not added to y.
        """

    def fold_gradients(
        self,
        folded: Tensor,
        *,
        own: Tensor | None,
        total: Tensor | None,
        count: int,
        repeats: float,
    ) -> tuple[Tensor | None, Tensor]:
        """Gradients of (weight, bias) ``[2, C]``, and ``coefficients``.

        ``own`` are the sums over g and g·(y - mean) of this process (None: no gradients wanted),
        ``total`` those of all, over ``count`` values; 0: the statistics are constants. Each row of
        y stands for ``repeats`` time steps.
        """

    def forward(
        self,
        y: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron,
        shortcut: Tensor | None,
    ) -> Tensor:
        """Norm (``folded`` None: none) → neuron → + ``shortcut`` (or None), ``[T, R, C]``."""

    def backward(
        self,
        y: Tensor,
        grad: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron,
        coefficients: Tensor | None,
        write: bool,
        sums: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradient of the neuron's input, through the norm where ``coefficients`` are given.

        Returns it (None unless ``write``; summed over time where ``y`` has one step), the sums
        over g and g·(y - mean) in slots (None unless ``sums``) and the gradient of a PLIF's w, a
        scalar (None for other neurons).
        """

    def affine(
        self,
        u: Tensor,
        a: Tensor,
        v: Tensor | None,
        b: Tensor | None,
        d: Tensor,
        out: Tensor,
    ) -> Tensor:
        """``out = a·u + b·v + d`` per channel; ``b`` None: 1, ``v`` None: 0; ``out`` may be u."""

    def gradient_sums(self, grad: Tensor, y: Tensor, mean: Tensor) -> Tensor:
        """Sums over g and g·(y - mean), in slots."""

    def max_pool(
        self,
        y: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron | None,
        shortcut: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Norm → max pool of ``[t, B, H, W, C]`` → neuron (→ + shortcut), ``[T, B, H', W', C]``.

        ``folded``, ``neuron`` and ``shortcut`` may be None. With ``keep``, y at the maxima and
        codes of where they are follow (for :meth:`max_pool_backward`), else None and None.
        """

    def max_pool_backward(
        self,
        grad: Tensor,
        codes: Tensor,
        *,
        size: Sequence[int],
        y: Tensor | None,
        coefficients: Tensor | None,
    ) -> Tensor:
        """Gradient of what was pooled, ``[t, B, *size, C]``: g, or a·g + b·y + d."""

    def token_attention(
        self,
        joined: Tensor,
        wide: Sequence[Tensor],
        *,
        parts: int,
        neuron: FixedNeuron,
        heads: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """See :func:`msvit.kernels.token_attention`: masked keys and mask.

        With ``keep``, scores and keys as bytes follow (for the gradient), else None and None.
        """

    def token_attention_backward(
        self,
        grad: Tensor,
        scores: Tensor,
        keys: Tensor,
        *,
        parts: int,
        wide: bool,
        neuron: FixedNeuron,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of ``joined``, of each wide vote (None unless ``wide``) and of a PLIF's w."""
