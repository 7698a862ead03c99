"""Energy by Lemaire et al. (arXiv 2210.13107): int32, addressing, accesses to SRAM by its size."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

from msvit.neuron_kinds import ActivationName
from msvit.records.energy_constants import CONSTANTS
from msvit.records.operation_rows import (
    MILLIJOULE,
    Rows,
    bias_reads,
    dense_macs,
    deployed,
    is_classifier,
    neurons_of,
)
from msvit.records.schema import Operations


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
    layers = deployed(operations)
    if layers is None:
        return None
    bill = _Lemaire()
    for row in layers:
        if row["kind"] == "mask":
            continue
        if row["input"] == "spikes" and not is_classifier(row):
            bill.charge_spikes(row)
        else:
            bill.charge_dense(row)
    for row in neurons_of(operations):
        bill.charge_neurons(row)
    return bill.picojoule * MILLIJOULE


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
        biases = bias_reads(row)
        potentials = row["outputs"] / row["steps"]
        self.add(reached + biases + touched)  # accumulates, and addresses
        self.multiply(2 * row["active_inputs"] if "kernel" in row else 0.0)
        self.access(row["active_inputs"], self.fifo)
        self.access(touched + biases, stored)
        self.access(2 * touched, potentials)

    def charge_dense(self, row: Operations) -> None:
        """Eq. (2) to (5) without the erratum: a layer whose input is no spikes."""
        dense, steps = dense_macs(row), row["steps"]
        inputs = row["inputs"] / row.get("averaged", 1)
        height, width = row.get("kernel", [1, 1])
        biases = bias_reads(row)
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
