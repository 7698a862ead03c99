"""Energy of every layer, from the operation rows of a study's frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pandas as pd

from msvit.records.energy_by_row import energy_by_row
from msvit.records.measures import energy_model
from msvit.records.schema import Operations

_MAY_BE_NONE = ("input_rate", "synops", "input_peak", "other_rate", "other_synops")
"""Fields that a row may have without a value; all others it then has not."""


def layer_energy(operations: pd.DataFrame, measure: str) -> pd.Series:
    """Millijoule per image of each layer of one configuration, mean over its cells.

    ``operations`` are rows of :attr:`analysis.collect.StudyResults.operations`, ``measure`` is a
    name such as ``energy_mj:exact_synops``. NaN where the model has nothing to say of the cells.
    """
    if operations.empty:
        return pd.Series(dtype=float)
    found = []
    for _, rows in operations.groupby("id", sort=False):
        layers = [_row(values) for values in rows.to_dict("records")]
        found.append(pd.Series(energy_by_row(layers, energy_model(measure)), rows["layer"], float))
    return pd.concat(found).groupby(level=0, sort=False).mean()


def _row(values: Mapping[Any, Any]) -> Operations:
    """The row of a record: a frame has a gap for what a row has not, and for None."""
    known = {name: value for name, value in values.items() if not _is_gap(value)}
    if "synapses" in known:  # else of an earlier version
        known = dict.fromkeys(_MAY_BE_NONE) | known
    return cast(Operations, known)


def _is_gap(value: Any) -> bool:
    return value is None or value != value
