"""Neurons and surrogates by name, and which options each kind of neuron reads. Torch-free.

The names are spikingjelly's. A surrogate's place in ``SURROGATES`` is its number in compiled code.
What stands in place of neurons in a twin, which does not spike, is named here as well.
"""

from __future__ import annotations

from typing import Literal, get_args

NeuronName = Literal["lif", "if", "plif", "klif", "glif", "clif", "ilif", "psn"]
ActivationName = Literal["relu", "quantised"]
"""In place of a neuron (:mod:`msvit.activations`); it has no potential and reads no option."""

TwinName = Literal["none", "ann", "quantised"]
TWINS: dict[TwinName, ActivationName] = {"ann": "relu", "quantised": "quantised"}
"""What is in place of the neurons of each twin."""

SurrogateName = Literal["sigmoid", "atan", "erf", "piecewise_quadratic", "soft_sign", "rect"]

SURROGATES: tuple[SurrogateName, ...] = get_args(SurrogateName)

DEFAULT_ALPHA: dict[SurrogateName, float] = {
    "sigmoid": 4.0,
    "atan": 2.0,
    "erf": 2.0,
    "piecewise_quadratic": 1.0,
    "soft_sign": 2.0,
    "rect": 1.0,
}
"""The sharpness of a surrogate where none is asked for: spikingjelly's."""

_SURROGATE = ("surrogate", "surrogate_alpha")

OPTIONS_READ: dict[NeuronName, tuple[str, ...]] = {
    "if": ("threshold", *_SURROGATE, "hard_reset", "detach_reset"),
    "lif": ("tau", "threshold", *_SURROGATE, "hard_reset", "detach_reset"),
    "plif": ("tau", "threshold", *_SURROGATE, "hard_reset", "detach_reset"),
    "klif": ("tau", "threshold", *_SURROGATE, "hard_reset", "detach_reset"),
    "glif": ("tau", "threshold", *_SURROGATE),
    "clif": ("tau", "threshold", *_SURROGATE),
    "ilif": ("tau", "threshold", "detach_reset"),
    "psn": _SURROGATE,
}
"""What a kind of neuron reads of the options in :class:`msvit.models.options.SpikingOptions`.

An attention's threshold counts as ``threshold``.
"""

_LEAK_ON_WAY: tuple[NeuronName, ...] = ("glif", "clif", "ilif")
"""The kinds whose leak takes from the potential only, and not from what comes in."""


def across_steps(kind: NeuronName) -> tuple[str, ...]:
    """Options that change nothing before a second time step: what a reset and such a leak leave."""
    return ("hard_reset", "detach_reset", *(("tau",) if kind in _LEAK_ON_WAY else ()))


PER_TIMESTEP: tuple[NeuronName, ...] = ("glif", "psn")
"""The kinds with parameters for every time step, which take sequences of that length only."""

GLIF_HIGHEST_THRESHOLD = 1.9
"""GLIF keeps its threshold inside (0, 1): half of what is asked for."""


def bits_of(timesteps: int) -> int:
    """⌈log₂(T + 1)⌉: the bits that count the spikes of T time steps."""
    return timesteps.bit_length()
