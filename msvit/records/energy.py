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

from collections.abc import Callable

from msvit.records.energy_constants import CONSTANTS
from msvit.records.lemaire import lemaire
from msvit.records.operation_rows import (
    MILLIJOULE,
    Rows,
    accumulates,
    bias_reads,
    dense_macs,
    deployed,
    is_classifier,
    layers_of,
    multiplies,
    neurons_of,
    picojoule_by_synapse,
)
from msvit.records.twin import quantised_twin


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
    return (constants["mac"] * macs + constants["ac"] * acs) * MILLIJOULE


def spikingformer_code(operations: Rows) -> float | None:
    """Millijoule per image as ``energy_consumption_calculation`` of Spikingformer counts.

    It differs from the formula in three things: the convolution of a static image is charged in
    every time step, the classifier is a MAC on the mean over pixels and time, with its bias, and
    whole numbers that are no spikes are MACs (constant ``integers``; ``ac`` charges them as that
    many accumulates). Biases of convolutions, which it adds where a checkpoint has them, are left
    out: records do not tell them from folded norms.
    """
    layers = layers_of(operations)
    if layers is None:
        return None
    constants = CONSTANTS["spikingformer_code"]
    timesteps = max((row["steps"] for row in layers), default=1)
    macs = acs = 0.0
    for row in layers:
        dense = row["dense_macs"] / row["steps"]
        if row["kind"] == "linear" and is_classifier(row):
            macs += dense + row["biases"]
        elif multiplies(row) or (
            row["input"] == "integer"
            and row["kind"] != "product"
            and constants["integers"] == "mac"
        ):
            macs += dense * timesteps
        else:
            acs += row["acs"]
    return (constants["mac"] * macs + constants["ac"] * acs) * MILLIJOULE


def sdt(operations: Rows) -> float | None:
    """Millijoule per image of a Spike-driven Transformer (arXiv 2307.01694, table 1 and S1, S2).

    Convolutions and MLPs are charged as by ``sop_spikformer``; Q, K and V by the mean of their own
    rates, 0.9·T·R̄·3ND², and attention 0.9·T·R̂·ND, R̂ being the rates of q and k together. Which
    rates R̄ and R̂ are is told by its repository's issue 24, not by the paper's main text. Of other
    attentions it says nothing.
    """
    layers = layers_of(operations)
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
    return (constants["mac"] * macs + constants["ac"] * acs) * MILLIJOULE


def exact_synops(operations: Rows) -> float | None:
    """Millijoule per image to the synapse: 0.9 pJ a synaptic operation, 4.6 a MAC.

    As the code of SpikingResformer (arXiv 2403.14302) counts, which leaves out the first layer and
    the classifier; here both are charged: MACs where input is analog. The network is folded. MACs
    on the levels of a quantised twin are charged as by :func:`quantised_twin`.
    """
    layers = deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["exact_synops"]
    return picojoule_by_synapse(layers, constants["mac"], constants["ac"]) * MILLIJOULE


def sj_simple(operations: Rows) -> float | None:
    """Millijoule per image as spikingjelly's ``estimate_simple_energy``, of the folded network.

    4.6 pJ a MAC, 0.9 an AC, and 24.96 a byte of the weights and biases that are read, and of
    potentials, read and written in every step. Only binary input is spikes: whole numbers are MACs,
    and so is a classifier's mean; a product of two binary operands counts where both are 1. What
    spikingjelly counts inside of neurons and norms, and at shortcuts, is left out.
    """
    layers = deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["sj_simple"]
    macs = acs = words = 0.0
    for row in layers:
        if row["kind"] == "mask":
            continue
        binary = row["input"] == "spikes" and not is_classifier(row)
        used = (row["synops"] or 0.0) if binary else dense_macs(row)
        if row["kind"] != "product":
            words += used + bias_reads(row)
        elif binary and row["other_input"] == "spikes":
            used = row["joint_synops"]
        macs, acs = (macs, acs + used) if binary else (macs + used, acs)
    words += sum(2 * row["states"] * row["steps"] for row in neurons_of(operations))
    memory = constants["memory_per_byte"] * 4 * words
    return (constants["mac"] * macs + constants["ac"] * acs + memory) * MILLIJOULE


def memory_aware(operations: Rows) -> float | None:
    """Millijoule per image with every bit that moves, at one precision; a model of this project.

    Compute: accumulates and MACs to the synapse, biases, updates of potentials. Traffic, without
    any reuse: a weight for every operation and a bias for every addition of one, from 1 MB; for
    every operation of a product the value that it adds; every input once, in the bits that its
    largest value needs, both operands of a mask and the votes for it among them; every potential
    read and written in every step, and every output of a neuron written, in 32 KB. Currents between
    a layer and its neuron are not stored. A MAC on the b bits of a quantised twin is charged as by
    :func:`quantised_twin`. The constants of ``precision`` (fp32, fp16, int8) are Horowitz's.
    """
    layers = deployed(operations)
    if layers is None:
        return None
    constants = CONSTANTS["memory_aware"]
    at = constants[constants["precision"]]
    adds = products = weight_bits = activation_bits = 0.0

    def bits(peak: float | None) -> int:
        return at["weight_bits"] if peak is None else max(1, int(peak)).bit_length()

    for row in layers:
        mac = multiplies(row)
        used = row["synapses"] if mac else (row["synops"] or 0.0)
        serial = accumulates(row.get("input_bits", 0), at["add"] + at["multiply"], at["add"])
        adds += used * (serial or 1) + row["additions"]
        products += used if mac and not serial else 0.0
        activation_bits += row["inputs"] * (row.get("input_bits") or bits(row["input_peak"]))
        if row["kind"] in ("product", "mask"):
            values = used if row["kind"] == "product" else row["other_inputs"]
            binary = row["other_input"] == "spikes"
            width = 1 if binary else row.get("other_bits", at["potential_bits"])
            activation_bits += (values + row.get("votes", 0.0)) * width
        else:
            weight_bits += (used + bias_reads(row)) * at["weight_bits"]
    for row in neurons_of(operations):
        adds += row["additions"]
        products += row["multiplies"]
        activation_bits += 2 * row["states"] * row["steps"] * at["potential_bits"]
        activation_bits += row["outputs"] * bits(row.get("output_peak"))
    return (
        at["add"] * adds
        + at["multiply"] * products
        + constants["weights_per_bit"] * weight_bits
        + constants["activations_per_bit"] * activation_bits
    ) * MILLIJOULE


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
