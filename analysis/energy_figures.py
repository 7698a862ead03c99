"""Energy of each configuration under each energy model: of the same operations, other numbers."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import DASHES, looks, say, style, width_for
from analysis.collect import StudyResults
from analysis.series import joined
from analysis.statistics import summarize
from analysis.tables import energy_measures
from analysis.twins import energy_ratio
from analysis.view import USUAL, View
from msvit.records.measures import all_energies, all_measures, energy_model

_OF_OTHERS = "quantised_twin"  # charges another network than the one that was trained
_LETTERS = 30  # of a line below a panel
_ORDERS = 10  # ratios that differ by more are on a logarithmic axis


def energy_by_model(study: StudyResults, view: View = USUAL) -> Figure | None:
    """Mean energy per image of every configuration (log), a mark per energy model.

    Lines join neighbours along an axis of the grid. Beside it, with a baseline, the ratio to it,
    paired by seed. All models that tell of the study are shown, whatever the view asks for, but
    the twin's. None where fewer than two of them do.
    """
    asked = energy_measures(study, view)
    known = [n for n in all_energies() if n in asked or energy_model(n) != _OF_OTHERS]
    means = pd.DataFrame({name: summarize(study, name)["mean"] for name in known})
    means = means.dropna(how="all").dropna(how="all", axis="columns")
    if len(means.columns) < 2:
        return None
    groups, measure = list(means.index), all_measures()["energy_mj"]
    unit = measure.unit(means.min())
    ratios = _ratios(study, means, view.baseline)
    runs = joined(study, groups)
    with style():
        size = (width_for(groups) + 1.6 * (ratios is not None), 1.9 + 0.24 * len(groups))
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        columns = 1 if ratios is None else 2
        panels: list[Axes] = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
        _marks(panels[0], means * measure.units[unit], runs)
        _to_log(panels[0])
        panels[0].set_xlabel(f"energy per image\n({unit}, computed)")
        if ratios is not None:
            _marks(panels[1], ratios, runs)
            if ratios.max().max() > _ORDERS * ratios.min().min():
                _to_log(panels[1])
            panels[1].axvline(1, color="0.3", lw=0.8, zorder=1)
            panels[1].set_xlabel(textwrap.fill(f"ratio to {view.baseline}", _LETTERS))
        panels[0].set_yticks(range(len(groups)), groups)
        panels[0].set_ylim(len(groups) - 0.5, -0.5)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
        lines, names = panels[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=3, handlelength=3)
        say(
            figure,
            study,
            "energy under each energy model",
            "mean",
            "no model is measured on hardware",
        )
    return figure


def _ratios(study: StudyResults, means: pd.DataFrame, baseline: str | None) -> pd.DataFrame | None:
    """Energy over that of the baseline by each model, as ``means`` has them; None without one."""
    if baseline is None or baseline not in means.index:
        return None
    others = [group for group in means.index if group != baseline]
    found = {
        name: {group: energy_ratio(study, name, group, baseline)["ratio"] for group in others}
        for name in means
    }
    ratios = pd.DataFrame(found).reindex(means.index)
    ratios.loc[baseline] = 1.0
    return ratios


def _to_log(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def _marks(axes: Axes, values: pd.DataFrame, runs: Sequence[Sequence[str]]) -> None:
    """A mark for each configuration and column, the name of a measure of energy; lines of runs."""
    places = dict(zip(values.index, range(len(values)), strict=True))
    joins = any(len(run) > 1 for run in runs)
    for name, look, dash in zip(values, looks(), itertools.cycle(("-", *DASHES)), strict=False):
        line = {"ls": dash if joins else "none", "lw": 0.9, "ms": 4, **look}
        for number, run in enumerate(runs):
            label = energy_model(str(name)) if number == 0 else "_"
            axes.plot(values[name][run], [places[group] for group in run], label=label, **line)
