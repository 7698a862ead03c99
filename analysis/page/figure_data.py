"""The numbers behind each figure of a study, as CSV that a reader copies out of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from analysis.canvas import slug
from analysis.collect import StudyResults
from analysis.layer_figures import energies_by_layer
from analysis.layers import layers
from analysis.statistics import summarize
from analysis.tables import Table, energy_measures
from analysis.view import View
from msvit.records.measures import all_energies


def accuracy_energy(study: StudyResults, view: View) -> pd.DataFrame:
    """Mean and standard deviation of both axes: accuracy (share), energy (mJ/image)."""
    accuracy, energy = (
        summarize(study, name)[["mean", "std"]].add_prefix(f"{name}_")
        for name in ("test_accuracy", energy_measures(study, view)[0])
    )
    return accuracy.join(energy).assign(seeds=summarize(study, "test_accuracy")["n"]).reset_index()


def over_axes(study: StudyResults, name: str) -> pd.DataFrame:
    """Values of all axes, and mean and interval of one measure in the unit of its name."""
    axes = [axis.removesuffix(".name") for axis in study.axes]
    first = study.finished.drop_duplicates("group").set_index("group")
    chosen = first.reindex(columns=["model", *(axis for axis in axes if axis != "model")])
    found = summarize(study, name)[["mean", "low", "high", "n"]]
    return chosen.join(found).rename_axis("group").reset_index()


def energy_models(study: StudyResults, view: View) -> pd.DataFrame:
    """Mean energy (mJ/image) by each model that tells of the study."""
    means = pd.DataFrame({name: summarize(study, name)["mean"] for name in all_energies()})
    return means.dropna(how="all", axis="columns").reset_index()


def learning(study: StudyResults, view: View) -> pd.DataFrame:
    """Validation accuracy (share) by epoch: mean over seeds, lowest and highest."""
    by_epoch = study.history.groupby(["group", "epoch"], sort=False)["val_accuracy"]
    return by_epoch.agg(["mean", "min", "max"]).reset_index()


def layer_energy(study: StudyResults, view: View) -> pd.DataFrame:
    """Energy (mJ/image) of every layer, and its share of the configuration's."""
    energies = energies_by_layer(study, view)
    return layers(study, energies)[["group", "layer", "whole", *energies, "share"]]


def firing(study: StudyResults, view: View) -> pd.DataFrame:
    """Spikes per neuron by layer and time step, mean over seeds."""
    keys = ["group", "position", "layer", "timestep"]
    return study.firing.groupby(keys, sort=False)["rate"].mean().reset_index()


DATA: dict[str, Callable[[StudyResults, View], pd.DataFrame]] = {
    "accuracy_energy": accuracy_energy,
    "accuracy": lambda study, view: over_axes(study, "test_accuracy"),
    "energy": lambda study, view: over_axes(study, energy_measures(study, view)[0]),
    "models": energy_models,
    "learning": learning,
    "layers": layer_energy,
    "firing": firing,
}
"""By the names of :data:`analysis.figures.FIGURES`; without an entry, nothing can be copied."""
_OF_TABLES = ("effects", "differences")  # drawn from what the table of that name shows


def data_of_figures(
    study: StudyResults, view: View, names: Iterable[str], tables: Mapping[str, Table]
) -> dict[str, str]:
    """CSV by the names of figures, of those that have data here."""
    frames = {name: tables[name].numbers for name in _OF_TABLES if name in tables}
    found: dict[str, str] = {}
    for name in names:
        family = max((key for key in (*DATA, *frames) if _is_of(name, key)), key=len, default="")
        if family in DATA and family not in frames:
            frames[family] = DATA[family](study, view)
        if family:
            found[name] = csv_of(_of_its_group(frames[family], name.removeprefix(family)))
    return found


def _is_of(name: str, family: str) -> bool:
    return name == family or name.startswith(f"{family}_")


def _of_its_group(frame: pd.DataFrame, end: str) -> pd.DataFrame:
    """Of a figure of one configuration, such as ``_02_spikformer``, the rows of that one."""
    if "group" not in frame:
        return frame
    named = frame["group"].map(lambda group: end[1:].partition("_")[2] == slug(group))
    return frame[named] if named.any() else frame


def csv_of(frame: pd.DataFrame) -> str:
    """A frame as text to copy, six digits of every number."""
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
