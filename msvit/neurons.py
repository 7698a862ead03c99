"""Spiking neurons by name: spikingjelly's, stateless from one forward to the next.

A neuron maps a current sequence ``[T, B, ..., C]`` to spikes of the same shape. Its
membrane potential starts at rest in every call and nothing is kept afterwards, so that no
output depends on what was computed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import neuron as sj
from torch import Tensor, nn

from msvit import kernels
from msvit.activations import ACTIVATIONS, Quantiser
from msvit.kernels import NeuronSpec
from msvit.kernels.reference import surrogate_function
from msvit.neuron_kinds import PER_TIMESTEP, NeuronName


def _common(spec: NeuronSpec) -> dict[str, Any]:
    return {
        "v_threshold": spec.threshold,
        "v_reset": 0.0 if spec.hard_reset else None,
        "surrogate_function": surrogate_function(spec),
        "detach_reset": spec.detach_reset,
        "step_mode": "m",
    }


def _leak(spec: NeuronSpec) -> dict[str, Any]:
    return {"decay_input": spec.decay_input, **_common(spec)}


def _glif(spec: NeuronSpec) -> nn.Module:
    # One set of gates per layer. GLIF keeps its threshold inside (0, 1): half of ours, so
    # that the usual threshold 1 becomes its usual 0.5.
    half = spec.threshold / 2
    node = sj.GatedLIFNode(
        T=spec.timesteps,
        init_tau=1 / spec.tau,
        init_v_threshold=half,
        surrogate_function=surrogate_function(spec),
    )
    for gate in (node.alpha, node.beta, node.gamma):
        # spikingjelly draws the gates from numpy's global generator; with torch's, equal
        # seeds give equal models.
        nn.init.uniform_(gate, -0.1, 0.1)
    return node


def _clif(spec: NeuronSpec) -> nn.Module:
    return sj.ComplementaryLIFNode(
        tau=spec.tau,
        v_threshold=spec.threshold,
        surrogate_function=surrogate_function(spec),
        step_mode="m",
    )


def _ilif(spec: NeuronSpec) -> nn.Module:
    return sj.ILIFNode(
        tau=spec.tau, v_threshold=spec.threshold, detach_reset=spec.detach_reset, step_mode="m"
    )


def _psn(spec: NeuronSpec) -> nn.Module:
    return sj.PSN(T=spec.timesteps, surrogate_function=surrogate_function(spec))


NEURONS: dict[NeuronName, Callable[[NeuronSpec], nn.Module]] = {
    "if": lambda spec: sj.IFNode(**_common(spec)),
    "lif": lambda spec: sj.LIFNode(tau=spec.tau, **_leak(spec)),
    "plif": lambda spec: sj.ParametricLIFNode(init_tau=spec.tau, **_leak(spec)),
    "klif": lambda spec: sj.KLIFNode(tau=spec.tau, **_leak(spec)),
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

    In a twin, whose ``spec`` does not fire, it is one of :mod:`msvit.activations`.

    Source: spikingjelly's multi-step neurons; the defaults (tau 2, decaying input,
    threshold 1, hard reset to 0, detached reset, sigmoid surrogate with alpha 4) are those
    of the released Spikformer family.

    Raises:
        ValueError: for another number of time steps than a neuron has parameters for.
    """

    def __init__(self, spec: NeuronSpec, parts: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.spec = spec
        known: dict[Any, Callable[[NeuronSpec], nn.Module]] = {**NEURONS, **ACTIVATIONS}
        self.node: Any = known[spec.kind](spec)  # to torch, what it holds is Tensor or Module
        self.in_kernels = kernels.supports(spec)
        self.spikes = Spikes(parts)

    def forward(self, current: Tensor) -> Tensor:
        if self.spec.kind in PER_TIMESTEP and len(current) != self.spec.timesteps:
            raise ValueError(
                f"a {self.spec.kind!r} neuron of {self.spec.timesteps} time steps has parameters "
                f"for so many and no others, and was given {len(current)}"
            )
        if self.in_kernels:
            return self.spikes(kernels.neuron(current, self.spec, self.time_constant))
        if current.numel() == 0:  # which spikingjelly's ILIF refuses
            return self.spikes(current)
        # bf16 would round the potential itself: 3e-4 of the spikes would differ.
        exact = current if current.dtype == torch.float64 else current.float()
        spikes = self.node(exact).to(current.dtype)
        if hasattr(self.node, "reset"):
            self.node.reset()
        return self.spikes(spikes)

    @property
    def time_constant(self) -> Tensor | None:
        """The learnable scalar of a PLIF, ``1 / tau = sigmoid(w)``."""
        return self.node.w if self.spec.kind == "plif" else None

    def extra_repr(self) -> str:
        return f"{self.spec.kind}, threshold={self.spec.threshold}" if self.spec.fires else ""


def no_decay(module: nn.Module) -> set[str]:
    """Names of neuron parameters (time constants, gates, steps), which decay would distort."""
    return {
        f"{name}.{p}" if name else p
        for name, m in module.named_modules()
        if isinstance(m, sj.base_node.BaseNode | sj.GatedLIFNode | sj.PSN | Quantiser)
        for p, _ in m.named_parameters(recurse=False)
    }
