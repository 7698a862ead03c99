"""The twin of a spiking network: the same without spikes, of as many levels.

Yan et al., arXiv 2409.08290, ask that a network of T time steps be compared with a quantised one of
⌈log₂(T + 1)⌉ bits. Here it is made of the rows of the spiking one; one that is trained has rows of
its own (:mod:`msvit.activations`).
"""

from __future__ import annotations

from dataclasses import dataclass

from msvit.neuron_kinds import bits_of
from msvit.records.energy_constants import CONSTANTS
from msvit.records.operation_rows import (
    MILLIJOULE,
    Rows,
    cost_on_levels,
    deployed,
    is_classifier,
    multiplies,
    picojoule_by_synapse,
)
from msvit.records.schema import Operations


def quantised_twin(operations: Rows) -> float | None:
    """Millijoule per image of the same network without spikes: T = 1, activations of b bits.

    T steps of values up to p, which is 1 of spikes and more behind shortcuts and integer neurons,
    add up to T · p + 1 levels, which take b = ⌈log₂(T · p + 1)⌉ bits, layer by layer; p is the
    largest value that was seen. Our reading, which the paper does not state: a MAC on b bits is
    charged as b accumulates, bit by bit, and never more than a MAC; no zero is skipped. Layers with
    analog input, a classifier's mean among them, are MACs. Memory is in this number no more than in
    those that it stands beside, and masks are free. A network that is such a twin itself is charged
    by the same rule on the bits that its own rows tell. Of one that neither spikes nor is quantised
    it says nothing.
    """
    layers = deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["quantised_twin"]
    if any(row["input"] == "levels" for row in layers):
        return picojoule_by_synapse(layers, constants["mac"], constants["ac"]) * MILLIJOULE
    found = twin(operations)
    if found is None:
        return None
    return (constants["mac"] * found.macs + found.picojoule) * MILLIJOULE


@dataclass(frozen=True)
class Twin:
    """The network without spikes that has as many levels, beside the one that spikes.

    Attributes:
        timesteps: T of the spiking one.
        bits: of the activations, layer by layer: the fewest and the most.
        synapses: of layers that are given spikes, once.
        picojoule: of a MAC at each of them, on its bits: the twin where it skips nothing.
        ratio: k = E_MAC / E_ACC, such a MAC in accumulates of the spiking one, mean over synapses.
        macs: on analog input, once.
        spikes: that meet a synapse, all time steps together: T · rate.
        zeros: the fewest and the most that a twin with the same activity can have, as a share of
            ``picojoule``: what it saves where it skips them.
    """

    timesteps: int
    bits: tuple[int, int]
    synapses: float
    picojoule: float
    ratio: float
    macs: float
    spikes: float
    zeros: tuple[float, float]

    def zeros_at_break_even(self, ratio: float | None = None) -> float:
        """The share γ of zeros among the twin's activations at which both cost the same.

        Spikes cost less while T · rate ≤ k · (1 - γ) (arXiv 2409.08290): with fewer zeros than
        1 - T · rate / k. Below 0 they cost more whatever the zeros are. Compute alone, of a twin
        that skips its zeros; k is ``ratio``, by default the twin's own. With other bits in other
        layers a zero weighs what its MACs cost, as in ``zeros``.
        """
        k = self.ratio if ratio is None else ratio
        return 1 - self.spikes / k

    def crossover(self, zeros: float = 0.0) -> float:
        """The rate, spikes per value and time step, below which spikes cost less: k (1 - γ) / T."""
        return self.ratio * (1 - zeros) / self.timesteps

    @property
    def rate(self) -> float:
        """Where the spiking network stands."""
        return self.spikes / self.timesteps


def twin(operations: Rows) -> Twin | None:
    """What the twin of a network has, by its rows; None where they do not tell.

    A network that is one itself has none, and neither has one that no spikes are given to.
    """
    layers = deployed(operations)
    if layers is None or any(row["input"] == "levels" for row in layers):
        return None
    spiking = [row for row in layers if not multiplies(row) and row["synapses"]]
    spiking = [row for row in spiking if not is_classifier(row)]
    if not spiking:
        return None
    constants = CONSTANTS["quantised_twin"]
    mac, ac = constants["mac"], constants["ac"]
    synapses = spikes = picojoule = fewest = most = 0.0
    for row in spiking:
        once = row["synapses"] / row["steps"]
        cost = once * cost_on_levels(_bits(row), mac, ac)
        active = _active(row)
        synapses += once
        spikes += row["synops"] or 0.0
        picojoule += cost
        # A value of the twin is zero where all T of the train are: of values of which a share `a`
        # is active in a step, between a and T · a are not.
        fewest += cost * max(0.0, 1 - row["steps"] * active)
        most += cost * (1 - active)
    bits = [_bits(row) for row in spiking]
    return Twin(
        timesteps=max(row["steps"] for row in layers),
        bits=(min(bits), max(bits)),
        synapses=synapses,
        picojoule=picojoule,
        ratio=picojoule / (ac * synapses),
        macs=sum(
            (row["dense_macs"] if is_classifier(row) else row["synapses"]) / row["steps"]
            for row in layers
            if multiplies(row) or is_classifier(row)
        ),
        spikes=spikes / synapses,
        zeros=(fewest / picojoule, most / picojoule),
    )


def _active(row: Operations) -> float:
    """The share of what comes to a synapse in a time step that is not zero.

    Of whole numbers above 1, the share among the values of the layer's input.
    """
    if (row["input_peak"] or 0.0) <= 1:
        return (row["synops"] or 0.0) / row["synapses"]
    return row["active_inputs"] / row["inputs"]


def _bits(row: Operations) -> int:
    """Of the levels that the train of a layer's input adds up to."""
    return bits_of(row["steps"] * max(1, int(row["input_peak"] or 0)))
