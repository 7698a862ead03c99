"""Spiking configurations beside their twins: the same structure without spikes, and transformers.

A configuration is a twin of a spiking one where it has the option ``twin`` and every other option
of its model and data says the same; a quantised one has to be of as many time steps. A vision
transformer stands beside all of them. Both may be trained in another way; of several that differ in
nothing else, the one that is trained most alike is the twin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.collect import StudyResults
from analysis.comparisons import differences_to, resolution
from analysis.statistics import by_seed, t_interval
from analysis.view import View
from msvit.models.options import TwinOptions
from msvit.records.measures import energy_measure

TWIN_MODELS = ("exact_synops", "memory_aware", "lemaire")
"""Shown of twins beside what was asked for: no single model tells what a network costs."""

_APART = ("model.twin", "model.twin_of_timesteps", "model.timesteps", "data.frames_number")
"""What a twin has of its own."""

_Options = Mapping[str, Any]
"""A configuration by the names of its columns."""


def pairs(study: StudyResults) -> list[tuple[str, str]]:
    """Spiking configurations and twins of theirs that have finished cells."""
    finished = study.finished
    if "model.twin" not in finished:
        return []
    first = finished.drop_duplicates("group").set_index("group").to_dict("index")
    others = {name: row for name, row in first.items() if pd.isna(row["firing_rate"])}
    found = []
    for group, row in first.items():
        if group not in others:
            twins = {name: other for name, other in others.items() if _is_twin(other, row)}
            found += [(group, name) for name in _trained_alike(twins, row)]
    return found


def _is_twin(twin: _Options, spiking: _Options) -> bool:
    if not _agree(twin, spiking, [key for key in twin if key.partition(".")[0] == "data"]):
        return False
    if not _has(twin["model.twin"]):  # another architecture
        return twin["model"] != spiking["model"]
    if twin["model.twin"] == "quantised":
        of = twin.get("model.twin_of_timesteps")
        usual = TwinOptions.model_fields["twin_of_timesteps"].default
        if spiking["model.timesteps"] != (of if _has(of) else usual):
            return False
    known = (key for key in twin if key.partition(".")[0] == "model" and _has(twin[key]))
    return _agree(twin, spiking, known)


def _trained_alike(twins: Mapping[str, _Options], spiking: _Options) -> list[str]:
    """Those of ``twins`` that differ from ``spiking`` in the fewest settings of training.

    Each of them is compared with those that are the same network on the same data.
    """
    apart = {
        name: sum(not _agree(twin, spiking, [key]) for key in twin if key.startswith("training."))
        for name, twin in twins.items()
    }

    def same(one: _Options, other: _Options) -> bool:
        options = [key for key in one if key.partition(".")[0] == "model"]
        return _agree(one, other, options, apart=())

    return [
        name
        for name, twin in twins.items()
        if apart[name] == min(apart[other] for other in twins if same(twin, twins[other]))
    ]


def _agree(
    one: _Options, other: _Options, options: Iterable[str], apart: Iterable[str] = _APART
) -> bool:
    """Whether both say the same of all ``options`` that are not kept ``apart``."""
    return all(
        one[key] == other[key] or not (_has(one[key]) or _has(other[key]))
        for key in options
        if key not in apart
    )


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
    named = {model: energy_measure(model) for model in asked}
    named.pop("quantised_twin", None)
    return {model: name for model, name in named.items() if study.finished[name].notna().all()}
