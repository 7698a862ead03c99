"""What each operation row of a network adds to its energy, under any model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msvit.records.energy import ENERGY_MODELS, EnergyModel
from msvit.records.schema import Operations

_KEPT = {
    *("steps", "stride", "fan_out", "averaged", "input_rate", "other_rate", "spikes"),
    *("input_bits", "other_bits"),
}


def energy_by_row(operations: Sequence[Operations], model: str) -> list[float | None]:
    """Millijoule of each row: what is missing of all where its counts are zero."""
    energy = ENERGY_MODELS[model]
    whole = energy(operations)
    if whole is None:
        return [None] * len(operations)
    if (alone := _each_alone(operations, energy)) and math.isclose(sum(alone), whole):
        return [*alone]  # a hundred times as fast: under most models rows do not touch each other
    found: list[float | None] = []
    for i, row in enumerate(operations):
        without = energy([*operations[:i], _emptied(row), *operations[i + 1 :]])
        found.append(None if without is None else whole - without)
    return found


def _each_alone(operations: Sequence[Operations], energy: EnergyModel) -> list[float] | None:
    """Millijoule of networks of one row each; None where the model defines no such network."""
    found = []
    for row in operations:
        if (value := energy([row])) is None:
            return None
        found.append(value)
    return found


def _emptied(row: Operations) -> Operations:
    counts = {
        key: 0 for key, value in row.items() if isinstance(value, int | float) and key not in _KEPT
    }
    return {**row, **counts}  # type: ignore[typeddict-item]
