"""Spiking configurations beside their twins: the same structure without spikes, and transformers.

A configuration is a twin of a spiking one where it has the option ``twin`` and every other option
of its model says the same; a quantised one has to be of as many time steps. A vision transformer
stands beside all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.collect import StudyResults
from analysis.comparisons import differences_to, resolution
from analysis.statistics import by_seed, t_interval
from analysis.view import View
from msvit.models.options import TwinOptions
from msvit.records.energy import DEFAULT_ENERGY_MODEL

TWIN_MODELS = ("exact_synops", "memory_aware", "lemaire")
"""Shown of twins beside what was asked for: no single model tells what a network costs."""

_APART = ("model.twin", "model.twin_of_timesteps", "model.timesteps")
"""What a twin has of its own."""


def pairs(study: StudyResults) -> list[tuple[str, str]]:
    """Spiking configurations and twins of theirs that have finished cells."""
    finished = study.finished
    if "model.twin" not in finished:
        return []
    first = finished.drop_duplicates("group").set_index("group")
    spiking = [group for group in first.index if not pd.isna(first.loc[group, "firing_rate"])]
    others = [group for group in first.index if group not in spiking]
    return [
        (group, other)
        for group in spiking
        for other in others
        if _is_twin(first.loc[other].to_dict(), first.loc[group].to_dict())
    ]


def _is_twin(twin: dict[str, Any], spiking: dict[str, Any]) -> bool:
    if twin["data"] != spiking["data"]:
        return False
    if not _has(twin["model.twin"]):  # another architecture
        return twin["model"] != spiking["model"]
    if twin["model.twin"] == "quantised":
        of = twin.get("model.twin_of_timesteps")
        usual = TwinOptions.model_fields["twin_of_timesteps"].default
        if spiking["model.timesteps"] != (of if _has(of) else usual):
            return False
    options = (key for key in twin if key.startswith("model.") and key not in _APART)
    same = all(twin[key] == spiking[key] for key in options if _has(twin[key]))
    return same and twin["model"] == spiking["model"]


def _has(value: Any) -> bool:
    """Whether a configuration has an option of this value: what it lacks is a gap in its column."""
    return value is not None and value == value


def accuracy_lost(study: StudyResults, group: str, twins: list[str]) -> pd.DataFrame:
    """Test accuracy of ``group`` minus that of each of its ``twins``, paired by seed (shares).

    Returns:
        A row per twin with difference, low and high; intervals hold for all of them together.
    """
    values = by_seed(study, "test_accuracy")[[group, *twins]]
    found = differences_to(values, group, resolution(study, "test_accuracy")).reindex(twins)
    turned = {"difference": -found["difference"], "low": -found["high"], "high": -found["low"]}
    return pd.DataFrame(turned)


def energy_ratio(study: StudyResults, measure: str, group: str, twin: str) -> dict[str, float]:
    """Energy of ``group`` over that of ``twin``: the geometric mean of what their seeds say.

    Returns:
        ``energy`` and ``twin_energy``, means over all seeds of each in the unit of ``measure``;
        ``ratio``, ``low`` and ``high``: a t interval of the logarithm, paired by seed; ``seeds``
        that both have finished. NaN where there is none, or no interval.
    """
    values = by_seed(study, measure)[[group, twin]]
    both = np.log(values.dropna())
    logs = both[group] - both[twin]
    low, high = t_interval(logs)
    return {
        "energy": float(values[group].mean()),
        "twin_energy": float(values[twin].mean()),
        "ratio": float(np.exp(logs.mean())),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
        "seeds": len(logs),
    }


def twin_measures(study: StudyResults, view: View) -> dict[str, str]:
    """Names of energy models and of their measures, without what is no cost of spikes itself."""
    asked = dict.fromkeys((*view.energy.models, *TWIN_MODELS))
    named = {m: "energy_mj" if m == DEFAULT_ENERGY_MODEL else f"energy_mj:{m}" for m in asked}
    named.pop("quantised_twin", None)
    return {model: name for model, name in named.items() if study.finished[name].notna().all()}
