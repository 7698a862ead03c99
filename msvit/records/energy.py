"""Energy per image from operation counts, under named models.

An energy model is a function of the operation rows of a record and of nothing else. It is
evaluated when a record is read, so that a new one shows on old records: to add one, write it here
and name it in :data:`ENERGY_MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msvit.records.schema import Operations

MAC_PICOJOULE = 4.6
"""A 32-bit floating-point multiply-accumulate in 45 nm (Horowitz, ISSCC 2014)."""
AC_PICOJOULE = 0.9
"""A 32-bit floating-point addition, same source."""

_MILLIJOULE = 1e-9  # in one picojoule


def sop_spikformer(operations: Sequence[Operations]) -> float:
    """Millijoule per image as the papers' tables are made: 4.6 pJ a MAC, 0.9 pJ an AC.

    E = 4.6·FLOP_conv1 + 0.9·(ΣSOP_conv + ΣSOP_fc + ΣSOP_attention), where SOP is input rate
    × time steps × FLOP (Spikformer, arXiv 2209.15425, appendix; the same in Spikingformer,
    QKFormer and MSVIT). Every layer with analog input is charged as MAC, as the first
    convolution is. Memory traffic, neurons and normalisation are free.
    """
    macs = sum(row["macs"] for row in operations)
    acs = sum(row["acs"] for row in operations)
    return (MAC_PICOJOULE * macs + AC_PICOJOULE * acs) * _MILLIJOULE


EnergyModel = Callable[[Sequence[Operations]], float]
"""From operation rows, per image and summed over time steps, to millijoule per image."""

ENERGY_MODELS: dict[str, EnergyModel] = {
    "sop_spikformer": sop_spikformer,
}
DEFAULT_ENERGY_MODEL = "sop_spikformer"
"""The one that is meant where none is named."""
