"""Spiking neurons by name: spikingjelly's, stateless from one forward to the next.

A neuron maps a current sequence ``[T, B, ..., C]`` to spikes of the same shape. Its
membrane potential starts at rest in every call and nothing is kept afterwards, so that no
output depends on what was computed before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from spikingjelly.activation_based import neuron as sj
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from msvit import kernels
from msvit.kernels import NeuronSpec

SURROGATES: dict[str, Callable[..., nn.Module]] = {
    "sigmoid": sj_surrogate.Sigmoid,
    "atan": sj_surrogate.ATan,
    "erf": sj_surrogate.Erf,
    "piecewise_quadratic": sj_surrogate.PiecewiseQuadratic,
    "soft_sign": sj_surrogate.SoftSign,
    "rect": sj_surrogate.Rect,
}


@dataclass(frozen=True)
class NeuronConfig:
    """What a neuron is made of; ``with_`` gives a copy for one layer.

    ``tau`` is the membrane time constant in steps, ``threshold`` the firing threshold,
    ``hard_reset`` tells a reset to 0 from a subtraction of the threshold. ``timesteps`` is
    needed by the neurons that have parameters per step (GLIF, PSN).
    """

    kind: str = "lif"
    tau: float = 2.0
    threshold: float = 1.0
    surrogate: str = "sigmoid"
    surrogate_alpha: float | None = None
    hard_reset: bool = True
    detach_reset: bool = True
    timesteps: int = 4

    def with_(self, **changes: Any) -> NeuronConfig:
        return replace(self, **changes)

    def spec(self) -> NeuronSpec | None:
        """The neuron as :mod:`msvit.kernels` computes it, None where only spikingjelly does."""
        if self.kind not in ("if", "lif", "plif"):
            return None
        return NeuronSpec(
            kind=self.kind,
            tau=self.tau,
            threshold=self.threshold,
            v_reset=0.0 if self.hard_reset else None,
            surrogate=self.surrogate,
            alpha=self.build_surrogate().alpha,
            detach_reset=self.detach_reset,
        )

    def build_surrogate(self) -> nn.Module:
        make = SURROGATES[self.surrogate]
        return make() if self.surrogate_alpha is None else make(alpha=self.surrogate_alpha)


def _common(c: NeuronConfig) -> dict[str, Any]:
    return {
        "v_threshold": c.threshold,
        "v_reset": 0.0 if c.hard_reset else None,
        "surrogate_function": c.build_surrogate(),
        "detach_reset": c.detach_reset,
        "step_mode": "m",
    }


def _glif(c: NeuronConfig) -> nn.Module:
    # One set of gates per layer. GLIF keeps its threshold inside (0, 1): half of ours, so
    # that the usual threshold 1 becomes its usual 0.5.
    half = min(c.threshold / 2, 0.95)
    node = sj.GatedLIFNode(
        T=c.timesteps,
        init_tau=1 / c.tau,
        init_v_threshold=half,
        surrogate_function=c.build_surrogate(),
    )
    for gate in (node.alpha, node.beta, node.gamma):
        # spikingjelly draws the gates from numpy's global generator; with torch's, equal
        # seeds give equal models.
        nn.init.uniform_(gate, -0.1, 0.1)
    return node


def _clif(c: NeuronConfig) -> nn.Module:
    return sj.ComplementaryLIFNode(
        tau=c.tau, v_threshold=c.threshold, surrogate_function=c.build_surrogate(), step_mode="m"
    )


def _ilif(c: NeuronConfig) -> nn.Module:
    return sj.ILIFNode(
        tau=c.tau, v_threshold=c.threshold, detach_reset=c.detach_reset, step_mode="m"
    )


def _psn(c: NeuronConfig) -> nn.Module:
    return sj.PSN(T=c.timesteps, surrogate_function=c.build_surrogate())


NEURONS: dict[str, Callable[[NeuronConfig], nn.Module]] = {
    "if": lambda c: sj.IFNode(**_common(c)),
    "lif": lambda c: sj.LIFNode(tau=c.tau, **_common(c)),
    "plif": lambda c: sj.ParametricLIFNode(init_tau=c.tau, **_common(c)),
    "klif": lambda c: sj.KLIFNode(tau=c.tau, **_common(c)),
    "glif": _glif,
    "clif": _clif,
    "ilif": _ilif,
    "psn": _psn,
}


class Spikes(nn.Identity):
    """Every spike tensor passes here, whichever code computed it: the place for monitors.

    ``parts`` names equal slices of the last axis where one neuron layer serves several
    purposes, such as ``("q", "k", "v")``; it is empty otherwise.
    """

    def __init__(self, parts: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.parts = parts


def watched(module: nn.Module) -> bool:
    """Whether a monitor wants to see what passes ``module``, so that it must not be skipped."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Neuron(nn.Module):
    """A layer of spiking neurons, ``[T, B, ..., C]`` → spikes ``[T, B, ..., C]``.

    Source: spikingjelly's multi-step neurons; the defaults (tau 2, decaying input,
    threshold 1, hard reset to 0, detached reset, sigmoid surrogate with alpha 4) are those
    of the released Spikformer family.
    """

    def __init__(self, config: NeuronConfig, parts: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.node = NEURONS[config.kind](config)
        self.spec = config.spec()
        self.spikes = Spikes(parts)

    def forward(self, current: Tensor) -> Tensor:
        if self.spec is not None:
            return self.spikes(kernels.neuron(current, self.spec, self.time_constant))
        # bf16 would round the potential itself: 3e-4 of the spikes would differ.
        exact = current if current.dtype == torch.float64 else current.float()
        spikes = self.node(exact).to(current.dtype)
        if hasattr(self.node, "reset"):
            self.node.reset()
        return self.spikes(spikes)

    @property
    def time_constant(self) -> Tensor | None:
        """The learnable scalar of a PLIF, ``1 / tau = sigmoid(w)``."""
        return self.node.w if self.config.kind == "plif" else None

    def extra_repr(self) -> str:
        return f"{self.config.kind}, threshold={self.config.threshold}"


def no_decay(module: nn.Module) -> set[str]:
    """Names of neuron parameters (time constants, gates), which weight decay would distort."""
    return {
        f"{name}.{p}" if name else p
        for name, m in module.named_modules()
        if isinstance(m, sj.base_node.BaseNode | sj.GatedLIFNode | sj.PSN)
        for p, _ in m.named_parameters(recurse=False)
    }
