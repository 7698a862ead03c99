"""Rows of operations as energy models read them: which there are, and what each of them is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msvit.records.schema import Operations

Rows = Sequence[Operations]
MILLIJOULE = 1e-9
"""In one picojoule."""


def layers_of(operations: Rows) -> list[Operations] | None:
    """The rows of layers; None where an earlier version has counted them, which knew less."""
    layers = [row for row in operations if row["kind"] != "neuron"]
    return layers if all("synapses" in row for row in layers) else None


def deployed(operations: Rows) -> list[Operations] | None:
    """The same without factors for which the row of the first one stands."""
    layers = layers_of(operations)
    if layers is None:
        return None
    return [row for row in layers if "folded_into" not in row or row["weights"]]


def neurons_of(operations: Iterable[Operations]) -> list[Operations]:
    """The rows of neurons, or of what a twin has in their place."""
    return [row for row in operations if row["kind"] == "neuron"]


def multiplies(row: Operations) -> bool:
    """Whether its input is neither spikes nor sums of them: every synapse is a MAC."""
    return row["input"] in ("analog", "levels")


def is_classifier(row: Operations) -> bool:
    """Whether it is given a mean over the image plane."""
    return "averaged" in row


def dense_macs(row: Operations) -> float:
    """Dense MACs of the folded network; on a classifier's mean."""
    return row["synapses"] if "folded_into" in row else row["dense_macs"]


def bias_reads(row: Operations) -> float:
    """Biases that are added; of rows of an earlier version, one an output where it has any."""
    return row.get("bias_additions", row["outputs"] if row["biases"] else 0.0)


def accumulates(bits: int, mac: float, ac: float) -> int:
    """How many accumulates a MAC on levels of ``bits`` is, bit by bit; 0 if a whole MAC costs less.

    Our reading: the paper on quantised twins does not state it.
    """
    return bits if ac * bits < mac else 0


def cost_on_levels(bits: int, mac: float, ac: float) -> float:
    """The same in the unit of ``mac`` and ``ac``."""
    return min(mac, ac * bits)


def picojoule_by_synapse(layers: Rows, mac: float, ac: float) -> float:
    """Of spikes that meet a synapse, and of MACs; those on levels of a twin by their bits."""
    synops = sum(row["synops"] or 0.0 for row in layers)
    macs = sum(row["synapses"] for row in layers if row["input"] == "analog")
    on_levels = sum(
        row["synapses"] * cost_on_levels(row["input_bits"], mac, ac)
        for row in layers
        if row["input"] == "levels"
    )
    return mac * macs + ac * synops + on_levels
