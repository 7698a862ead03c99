"""Energy per image from operation counts, under named models.

An energy model is a function of the operation rows of a record and of the constants in force
(:mod:`msvit.records.energy_constants`), and of nothing else. It is evaluated when a record is read,
so that a new one shows on old records; None is what it makes of rows of an earlier version that
lack what it needs, and of networks that it does not define. To add one, write it here and name it
in :data:`ENERGY_MODELS`.

======================  ============================================================================
``sop_spikformer``      the formula of the papers' tables: rate × dense MACs; the default
``spikingformer_code``  the calculator that was released with Spikingformer
``sdt``                 Spike-driven Transformer, whose attention it alone defines
``exact_synops``        every synaptic operation to the synapse, and MACs on analog input
``sj_simple``           spikingjelly's simple estimate: with reads of weights, and potentials
``lemaire``             Lemaire et al.: int32, addressing, and every access to SRAM by its size
``memory_aware``        compute and traffic in bits, at fp32, fp16 or int8; of this project
``quantised_twin``      not this network but its twin without spikes, of as many levels
======================  ============================================================================

None of them is measured on hardware; docs/energy.md tells where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

from msvit.neuron_kinds import ActivationName, bits_of
from msvit.records.energy_constants import CONSTANTS
from msvit.records.schema import Operations

_MILLIJOULE = 1e-9  # in one picojoule

Rows = Sequence[Operations]


def sop_spikformer(operations: Rows) -> float:
    """Millijoule per image as the papers' tables are made: 4.6 pJ a MAC, 0.9 pJ an AC.

    E = 4.6·FLOP_conv1 + 0.9·(ΣSOP_conv + ΣSOP_fc + ΣSOP_attention), where SOP is input rate
    × time steps × FLOP (Spikformer, arXiv 2209.15425, appendix; the same in Spikingformer,
    QKFormer and MSVIT). Every layer with analog input is charged as MAC, as the first
    convolution is. Memory traffic, neurons and normalisation are free.
    """
    constants = CONSTANTS["sop_spikformer"]
    macs = sum(row["macs"] for row in operations)
    acs = sum(row["acs"] for row in operations)
    return (constants["mac"] * macs + constants["ac"] * acs) * _MILLIJOULE


def spikingformer_code(operations: Rows) -> float | None:
    """Millijoule per image as ``energy_consumption_calculation`` of Spikingformer counts.

    It differs from the formula in three things: the convolution of a static image is charged in
    every time step, the classifier is a MAC on the mean over pixels and time, with its bias, and
    whole numbers that are no spikes are MACs (constant ``integers``; ``ac`` charges them as that
    many accumulates). Biases of convolutions, which it adds where a checkpoint has them, are left
    out: records do not tell them from folded norms.
    """
    layers = _layers(operations)
    if layers is None:
        return None
    constants = CONSTANTS["spikingformer_code"]
    timesteps = max((row["steps"] for row in layers), default=1)
    macs = acs = 0.0
    for row in layers:
        dense = row["dense_macs"] / row["steps"]
        if row["kind"] == "linear" and _is_classifier(row):
            macs += dense + row["biases"]
        elif _multiplies(row) or (
            row["input"] == "integer"
            and row["kind"] != "product"
            and constants["integers"] == "mac"
        ):
            macs += dense * timesteps
        else:
            acs += row["acs"]
    return (constants["mac"] * macs + constants["ac"] * acs) * _MILLIJOULE


def sdt(operations: Rows) -> float | None:
    """Millijoule per image of a Spike-driven Transformer (arXiv 2307.01694, table 1 and S1, S2).

    Convolutions and MLPs are charged as by ``sop_spikformer``; Q, K and V by the mean of their own
    rates, 0.9·T·R̄·3ND², and attention 0.9·T·R̂·ND, R̂ being the rates of q and k together. Which
    rates R̄ and R̂ are is told by its repository's issue 24, not by the paper's main text. Of other
    attentions it says nothing.
    """
    layers = _layers(operations)
    if layers is None:
        return None
    by_name = {row["layer"]: row for row in operations}
    gathers = [row for row in layers if row["kind"] == "mask" and row["layer"].endswith(".gather")]
    if not gathers:
        return None
    constants = CONSTANTS["sdt"]
    macs = sum(row["macs"] for row in layers)
    acs = sum(row["acs"] for row in layers)
    for row in gathers:
        block = row["layer"].removesuffix(".gather")
        projection, fired = by_name[f"{block}.qkv"], by_name[f"{block}.qkv.neuron"]
        own = fired["spikes"] / projection["outputs"] if projection["outputs"] else 0.0
        acs += own * projection["dense_macs"] - projection["acs"]
        rates = (row["input_rate"] or 0.0) + (by_name[f"{block}.mask"]["other_rate"] or 0.0)
        acs += rates * row["outputs"]
    return (constants["mac"] * macs + constants["ac"] * acs) * _MILLIJOULE


def exact_synops(operations: Rows) -> float | None:
    """Millijoule per image to the synapse: 0.9 pJ a synaptic operation, 4.6 a MAC.

    As the code of SpikingResformer (arXiv 2403.14302) counts, which leaves out the first layer and
    the classifier; here both are charged: MACs where input is analog. The network is folded. MACs
    on the levels of a quantised twin are charged as by :func:`quantised_twin`.
    """
    layers = _deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["exact_synops"]
    return _by_synapse(layers, constants["mac"], constants["ac"]) * _MILLIJOULE


def _by_synapse(layers: Rows, mac: float, ac: float) -> float:
    """Picojoule of spikes and MACs that meet a synapse."""
    synops = sum(row["synops"] or 0.0 for row in layers)
    macs = sum(row["synapses"] for row in layers if row["input"] == "analog")
    on_levels = sum(
        row["synapses"] * (ac * _accumulates(row, mac, ac) or mac)
        for row in layers
        if row["input"] == "levels"
    )
    return mac * macs + ac * synops + on_levels


def sj_simple(operations: Rows) -> float | None:
    """Millijoule per image as spikingjelly's ``estimate_simple_energy``, of the folded network.

    4.6 pJ a MAC, 0.9 an AC, and 24.96 a byte of the weights and biases that are read, and of
    potentials, read and written in every step. Only binary input is spikes: whole numbers are MACs,
    and so is a classifier's mean; a product of two binary operands counts where both are 1. What
    spikingjelly counts inside of neurons and norms, and at shortcuts, is left out.
    """
    layers = _deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["sj_simple"]
    macs = acs = words = 0.0
    for row in layers:
        if row["kind"] == "mask":
            continue
        binary = row["input"] == "spikes" and not _is_classifier(row)
        used = (row["synops"] or 0.0) if binary else _dense(row)
        if row["kind"] != "product":
            words += used + (row["outputs"] if row["biases"] else 0.0)
        elif binary and row["other_input"] == "spikes":
            used = row["joint_synops"]
        macs, acs = (macs, acs + used) if binary else (macs + used, acs)
    words += sum(2 * row["states"] * row["steps"] for row in _neurons(operations))
    memory = constants["memory_per_byte"] * 4 * words
    return (constants["mac"] * macs + constants["ac"] * acs + memory) * _MILLIJOULE


def lemaire(operations: Rows) -> float | None:
    """Millijoule per image by Lemaire et al. (arXiv 2210.13107), as spikingjelly has it.

    32-bit integers: accumulates, their addressing, and an access to SRAM, whose cost grows with its
    size, for every spike, weight, potential and output. A spike reaches ⌈k / stride⌉² outputs; its
    weights and potentials are accessed k² times. Equation (2) of the paper multiplies the fan-out
    by the number of inputs once too often; (8), (10), (15) and (17), and spikingjelly, do not. It
    defines convolutions, fully connected layers and neurons. Our reading: a product of two
    activations is a fully connected layer whose weights are the other operand, and a buffer for
    dense input holds one time step.
    """
    layers = _deployed(operations)
    if layers is None:
        return None
    bill = _Lemaire()
    for row in layers:
        if row["kind"] == "mask":
            continue
        if row["input"] == "spikes" and not _is_classifier(row):
            bill.charge_spikes(row)
        else:
            bill.charge_dense(row)
    for row in _neurons(operations):
        bill.charge_neurons(row)
    return bill.picojoule * _MILLIJOULE


class _Lemaire:
    """Adds up a bill by the equations of Lemaire et al."""

    def __init__(self) -> None:
        self.constants = CONSTANTS["lemaire"]
        self.fifo = self.constants["fifo"]
        self.picojoule = 0.0

    def charge_spikes(self, row: Operations) -> None:
        """Eq. (7) to (12): a layer that is event-driven."""
        height, width = row.get("kernel", [1, 1])
        stride = row.get("stride", 1)
        if row["kind"] == "product":
            reached = touched = row["synops"] or 0.0
            stored = row["other_inputs"] / row["steps"]
        else:
            spikes = row["active_inputs"] * row["fan_out"]
            reached = spikes * math.ceil(height / stride) * math.ceil(width / stride)
            touched = spikes * height * width
            stored = row["weights"] + row["biases"]
        biases = row["outputs"] if row["biases"] else 0.0
        potentials = row["outputs"] / row["steps"]
        self.add(reached + biases + touched)  # accumulates, and addresses
        self.multiply(2 * row["active_inputs"] if "kernel" in row else 0.0)
        self.access(row["active_inputs"], self.fifo)
        self.access(touched + biases, stored)
        self.access(2 * touched, potentials)

    def charge_dense(self, row: Operations) -> None:
        """Eq. (2) to (5) without the erratum: a layer whose input is no spikes."""
        dense, steps = _dense(row), row["steps"]
        inputs = row["inputs"] / row.get("averaged", 1)
        height, width = row.get("kernel", [1, 1])
        biases = row["outputs"] if row["biases"] else 0.0
        kernels = height * width * row["biases"] if "kernel" in row else 0.0
        stored = row["weights"] + row["biases"] or row.get("other_inputs", 0.0) / steps
        self.multiply(dense)
        self.add(biases + inputs + row["outputs"] + kernels)
        self.access(dense if "kernel" in row else inputs, inputs / steps)
        self.access(dense + biases, stored)

    def charge_neurons(self, row: Operations) -> None:
        """Eq. (13) to (17): potentials, resets and output spikes; of a twin, outputs."""
        if row["neuron"] in get_args(ActivationName):
            self.access(row["outputs"], row["outputs"])
            return
        potentials = row["outputs"] / row["steps"]
        self.access(2 * row["updates"], potentials)
        self.add(row["active_outputs"])
        self.multiply(row["updates"] if row["multiplies"] else 0.0)
        self.access(row["active_outputs"], self.fifo)

    def add(self, times: float) -> None:
        self.picojoule += times * self.constants["add"]

    def multiply(self, times: float) -> None:
        """And add: a MAC."""
        self.picojoule += times * (self.constants["add"] + self.constants["multiply"])

    def access(self, times: float, words: float) -> None:
        """``times`` a word of a memory that holds so many."""
        size = words * self.constants["word_bytes"]
        sizes, costs = self.constants["sram_bytes"], self.constants["sram_access"]
        size = min(max(size, sizes[0]), sizes[-1])
        pairs = zip(pairwise(sizes), pairwise(costs), strict=True)
        (low, high), (cheap, dear) = next(pair for pair in pairs if size <= pair[0][1])
        self.picojoule += times * (cheap + (dear - cheap) * (size - low) / (high - low))


def memory_aware(operations: Rows) -> float | None:
    """Millijoule per image with every bit that moves, at one precision; a model of this project.

    Compute: accumulates and MACs to the synapse, biases, updates of potentials. Traffic, without
    any reuse: a weight for every operation, from 1 MB; for every operation of a product the value
    that it adds; every input once, in the bits that its largest value needs; every potential read
    and written in every step, and every output of a neuron written, in 32 KB. Currents between a
    layer and its neuron are not stored. A MAC on the b bits of a quantised twin is charged as by
    :func:`quantised_twin`. The constants of ``precision`` (fp32, fp16, int8) are Horowitz's.
    """
    layers = _deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["memory_aware"]
    at = constants[constants["precision"]]
    potential_bits = at["potential_bits"]
    adds = multiplies = weight_bits = activation_bits = 0.0

    def bits(peak: float | None) -> int:
        return at["weight_bits"] if peak is None else max(1, int(peak)).bit_length()

    for row in layers:
        used = row["synapses"] if _multiplies(row) else (row["synops"] or 0.0)
        serial = _accumulates(row, at["add"] + at["multiply"], at["add"])
        adds += used * (serial or 1) + row["additions"]
        multiplies += used if _multiplies(row) and not serial else 0.0
        if row["kind"] == "product":
            binary = row["other_input"] == "spikes"
            activation_bits += used * (1 if binary else row.get("other_bits", potential_bits))
        else:
            weight_bits += (used + (row["additions"] if row["biases"] else 0)) * at["weight_bits"]
        activation_bits += row["inputs"] * (row.get("input_bits") or bits(row["input_peak"]))
    for row in _neurons(operations):
        adds += row["additions"]
        multiplies += row["multiplies"]
        activation_bits += 2 * row["states"] * row["steps"] * potential_bits
        activation_bits += row["outputs"] * bits(row.get("output_peak"))
    return (
        at["add"] * adds
        + at["multiply"] * multiplies
        + constants["weights_per_bit"] * weight_bits
        + constants["activations_per_bit"] * activation_bits
    ) * _MILLIJOULE


def quantised_twin(operations: Rows) -> float | None:
    """Millijoule per image of the same network without spikes: T = 1, activations of b bits.

    A spike train of T steps has T + 1 levels, which take b = ⌈log₂(T + 1)⌉ bits: the twin that
    arXiv 2409.08290 asks to be compared with. Our reading, which the paper does not state: a MAC on
    b bits is charged as b accumulates, bit by bit, and never more than a MAC; no zero is skipped.
    Layers with analog input are MACs as here. Memory is in this number no more than in those that
    it stands beside. A network that is such a twin itself is charged by the same rule on the bits
    that its own rows tell, more than b behind shortcuts and masks.
    """
    layers = _deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["quantised_twin"]
    mac, ac = constants["mac"], constants["ac"]
    if any(row["input"] == "levels" for row in layers):
        return _by_synapse(layers, mac, ac) * _MILLIJOULE
    found = twin(operations)
    assert found is not None
    return (mac * found.macs + min(mac, ac * found.bits) * found.synapses) * _MILLIJOULE


@dataclass(frozen=True)
class Twin:
    """The network without spikes that has as many levels, beside the one that spikes.

    Attributes:
        timesteps, bits: T, and ⌈log₂(T + 1)⌉ of an activation.
        synapses: of layers that are given spikes, once.
        macs: on analog input, once.
        spikes: that meet a synapse, all time steps together: T · rate.
    """

    timesteps: int
    bits: int
    synapses: float
    macs: float
    spikes: float

    def break_even(self, ratio: float | None = None) -> tuple[float, float]:
        """T · rate below which spikes cost less: the least and the most that it can be.

        k · (1 - γ), k being the cost of a MAC of the twin in accumulates (``ratio``; by default its
        bits, as in :func:`quantised_twin`) and γ its share of zeros, of which only the bounds are
        known: (1 - γ) / T ≤ rate ≤ 1 - γ (arXiv 2409.08290).
        """
        k = self.bits if ratio is None else ratio
        return k * self.spikes / self.timesteps, k * min(1.0, self.spikes)


def twin(operations: Rows) -> Twin | None:
    """What the twin of a network has, by its rows; None where they do not tell.

    A network that is one itself has none.
    """
    layers = _deployed(operations)
    if layers is None or any(row["input"] == "levels" for row in layers):
        return None
    timesteps = max((row["steps"] for row in layers), default=1)
    synapses = macs = synops = 0.0
    for row in layers:
        once = (row["dense_macs"] if _is_classifier(row) else row["synapses"]) / row["steps"]
        if row["input"] == "analog":
            macs += once
        else:
            synapses += once
            synops += (row["synops"] or 0.0) / row.get("averaged", 1)
    return Twin(
        timesteps, bits_of(timesteps), synapses, macs, synops / synapses if synapses else 0.0
    )


def neurobench(operations: Rows) -> dict[str, float] | None:
    """NeuroBench's numbers (arXiv 2304.04640), which are no joules, of the folded network.

    ``effective_macs`` and ``effective_acs``: operations of which neither side is zero, accumulates
    where input is 0 and 1; ``dense``: all of them. Products of activations, which its hooks do not
    see, are told apart: ``product_acs`` and ``product_macs``. ``footprint_bytes``: weights and
    biases in 32 bits. ``connection_sparsity`` and ``activation_sparsity``: shares of zeros among
    weights and outputs of neurons. ``membrane_updates``: all neurons in all steps; NeuroBench
    counts those whose potential has changed.
    """
    layers = _deployed(operations)
    if layers is None:
        return None
    found = dict.fromkeys(
        ("effective_macs", "effective_acs", "dense", "product_macs", "product_acs"), 0.0
    )
    for row in layers:
        if row["kind"] == "mask":
            continue
        which = "acs" if row["input"] == "spikes" else "macs"
        if row["kind"] == "product":
            found[f"product_{which}"] += row["joint_synops"]
            continue
        found[f"effective_{which}"] += row["active_synops"]
        found["dense"] += row["synapses"]
    neurons = _neurons(operations)
    weights = sum(row["weights"] for row in layers)
    outputs = sum(row["outputs"] for row in neurons)
    zeros = sum(row["zero_weights"] for row in layers)
    return found | {
        "footprint_bytes": 4.0 * (weights + sum(row["biases"] for row in layers)),
        "connection_sparsity": zeros / weights if weights else 0.0,
        "activation_sparsity": (
            1 - sum(row["active_outputs"] for row in neurons) / outputs if outputs else 0.0
        ),
        "membrane_updates": sum(row["updates"] for row in neurons),
    }


def _layers(operations: Rows) -> list[Operations] | None:
    """The rows of layers; None where an earlier version has counted them, which knew less."""
    layers = [row for row in operations if row["kind"] != "neuron"]
    return layers if all("synapses" in row for row in layers) else None


def _deployed(operations: Rows) -> list[Operations] | None:
    """The same without factors for which the row of the first one stands."""
    layers = _layers(operations)
    if layers is None:
        return None
    return [row for row in layers if "folded_into" not in row or row["weights"]]


def _neurons(operations: Iterable[Operations]) -> list[Operations]:
    return [row for row in operations if row["kind"] == "neuron"]


def _multiplies(row: Operations) -> bool:
    """Whether its input is neither spikes nor sums of them: every synapse is a MAC."""
    return row["input"] in ("analog", "levels")


def _accumulates(row: Operations, mac: float, ac: float) -> int:
    """How many accumulates a MAC on the levels of a twin is; 0 where a whole MAC costs less."""
    bits = row["input_bits"] if row["input"] == "levels" else 0
    return bits if ac * bits < mac else 0


def _is_classifier(row: Operations) -> bool:
    """Whether it is given a mean over the image plane."""
    return "averaged" in row


def _dense(row: Operations) -> float:
    """Dense MACs of the folded network; on a classifier's mean."""
    return row["synapses"] if "folded_into" in row else row["dense_macs"]


EnergyModel = Callable[[Rows], float | None]
"""From operation rows, per image and summed over time steps, to millijoule per image."""

ENERGY_MODELS: dict[str, EnergyModel] = {
    "sop_spikformer": sop_spikformer,
    "spikingformer_code": spikingformer_code,
    "sdt": sdt,
    "exact_synops": exact_synops,
    "sj_simple": sj_simple,
    "lemaire": lemaire,
    "memory_aware": memory_aware,
    "quantised_twin": quantised_twin,
}
DEFAULT_ENERGY_MODEL = "sop_spikformer"
"""The one that is meant where none is named."""


def energies(operations: Rows) -> dict[str, float]:
    """Millijoule per image under each model that can tell."""
    found = {name: energy(operations) for name, energy in ENERGY_MODELS.items()}
    return {name: value for name, value in found.items() if value is not None}
