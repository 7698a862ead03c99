"""What neurons cost beside the synapses: updates of their potentials, in arithmetic.

Per neuron and time step, with constant factors of the input folded into the weights in front of it
(a LIF's 1/τ) and those of the output into the threshold:

======  ========  ===========  ======  ==========================================================
kind    additions  multiplies  states  equation (spikingjelly's)
======  ========  ===========  ======  ==========================================================
if      1          0           1       v + x
lif     1          1           1       v · (1 - 1/τ) + x; PLIF and I-LIF alike
klif    1          2           1       the same, times k
glif    2          2           1       leak · v - decay + c_t · x; a spike 1 multiply, 2 additions
clif    2          2           2       a LIF, and m · σ(v/τ) + s; a spike 2 additions; its two
                                       sigmoids are in no count
psn     T          T           0       W x + b over all time steps
======  ========  ===========  ======  ==========================================================

Every update is compared with the threshold. A hard reset writes a zero; a soft one subtracts, an
addition a spike. All neurons are updated in every step, whether they receive a spike or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from msvit.kernels import NeuronSpec


@dataclass(frozen=True)
class Update:
    """Operations per neuron and time step, those per spike more, and values that are kept."""

    additions: int
    multiplies: int
    spike_additions: int
    spike_multiplies: int
    states: int


_UPDATES: dict[str, Update] = {
    "if": Update(1, 0, 0, 0, 1),
    "lif": Update(1, 1, 0, 0, 1),
    "plif": Update(1, 1, 0, 0, 1),
    "klif": Update(1, 2, 0, 0, 1),
    "glif": Update(2, 2, 2, 1, 1),
    "clif": Update(2, 2, 2, 0, 2),
    "ilif": Update(1, 1, 1, 0, 1),
}


def usual_update(kind: str, steps: int) -> Update:
    """What a neuron of this kind, with a hard reset, does in each of ``steps`` time steps."""
    return Update(steps, steps, 0, 0, 0) if kind == "psn" else _UPDATES[kind]


def update_of(spec: NeuronSpec, steps: int) -> Update:
    """What a neuron does in each of ``steps`` time steps."""
    found = usual_update(spec.kind, steps)
    resets = spec.kind in ("if", "lif", "plif", "klif")
    if resets and not spec.hard_reset:
        return Update(found.additions, found.multiplies, 1, 0, found.states)
    return found
