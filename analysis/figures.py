"""The figures of a study, as functions of its data frames.

:data:`FIGURES` lists them and :func:`save_figures` writes them all; a new one is a function here
(or anywhere) and its entry. A figure that could mislead (one seed, cells missing, nothing finished)
says so in its title.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.canvas import DASHES, canvas, keep_to_possible, looks, say, slug, style, write_figures
from analysis.collect import StudyResults
from analysis.curves import learning_curves
from analysis.energy_figures import energy_by_model
from analysis.forests import difference_forest, effect_forest
from analysis.heatmaps import firing_maps
from analysis.label_placement import Mark, label_marks, label_right
from analysis.layer_figures import energy_by_layer
from analysis.published import published_on, read_published
from analysis.series import axis_series, counted, numeric
from analysis.statistics import CONFIDENCE, summarize
from analysis.tables import energy_measures
from analysis.view import USUAL, View
from msvit.records.measures import MEASURES, all_measures

_OTHERS = "0.45"  # what was not measured here


def save_figures(study: StudyResults, folder: Path, view: View = USUAL) -> list[Path]:
    """Draw all figures of a study and write each as PNG and PDF.

    Returns:
        The PNG files, in reading order; the PDF files stand beside them. Other PNG and PDF files,
        those of earlier calls, are removed from ``folder``.
    """
    return write_figures(draw_figures(study, view), folder)


def draw_figures(study: StudyResults, view: View = USUAL) -> dict[str, Figure]:
    """All figures of a study, by the names of their files.

    Energy is by the first of the view's models, where not all are shown. Before a cell has finished
    there is none.

    Raises:
        RecordError: if the view's baseline is no configuration of the study.
    """
    drawn: dict[str, Figure] = {}
    if study.finished.empty:
        return drawn
    for name, draw in FIGURES.items():
        figures = draw(study, view)
        if isinstance(figures, Mapping):
            drawn |= {f"{name}_{part}": figure for part, figure in figures.items()}
        elif figures is not None:
            drawn[name] = figures
    return drawn


def accuracy_energy(study: StudyResults, view: View = USUAL) -> Figure:
    """Mean test accuracy (%) against energy per image, one point per configuration.

    Error bars are standard deviations over seeds on both axes; a hollow point has one seed and
    no bars. The dashed steps are the Pareto front of the means. What others published on the same
    data stands grey beside it, marked †, where energy is by the formula of the papers.
    """
    accuracy = 100 * summarize(study, "test_accuracy")[["mean", "std"]].dropna(how="all")
    name = energy_measures(study, view)[0]
    energy = summarize(study, name)[["mean", "std"]].loc[accuracy.index]
    cost, value = all_measures()[name], MEASURES["test_accuracy"]
    unit = cost.unit(energy["mean"])
    energy *= cost.units[unit]
    with style():
        figure, axes = canvas()
        axes.set_xlabel(cost.axis(unit))
        axes.set_ylabel(value.axis("%"))
        of_group, marks = _looks(study), []
        for group in accuracy.index:
            (x, xerr), (y, yerr) = energy.loc[group], accuracy.loc[group]
            _point(axes, x, y, xerr, _within(y, yerr, yerr), of_group[group])
            bars: tuple[float, float] = (0.0, 0.0) if math.isnan(yerr) else (xerr, yerr)
            marks.append(Mark(group, x, y, *bars, color=of_group[group]["color"]))
        others = _published(study, cost.units[unit]) if name == "energy_mj" else []
        for label, x, y in others:
            axes.plot(x, y, marker="x", color=_OTHERS, ls="none", ms=4)
            marks.append(Mark(label, x, y, color=_OTHERS))
        axes.margins(0.22, 0.18)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        keep_to_possible(axes)
        remarks = ["mean ± std"] + (["†: published"] if others else [])
        corners: list[tuple[float, float]] = []
        for group in pareto_front(energy["mean"], accuracy["mean"]):
            x, y = energy["mean"][group], accuracy["mean"][group]
            corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
        if len(corners) > 1:
            axes.plot(*zip(*corners, strict=True), color="0.6", ls="--", lw=0.9, zorder=1)
            remarks.append("dashed: Pareto front")
        say(axes, study, "accuracy against energy", *remarks)
        if marks:
            label_marks(axes, marks, corners)
    return figure


def _published(study: StudyResults, factor: float) -> list[tuple[str, float, float]]:
    """Names, energies (millijoule times ``factor``) and top-1 (%) published on the study's data."""
    published = read_published()
    tables = [published_on(data, published) for data in study.finished["data"].unique()]
    rows = pd.concat([*tables, published.iloc[:0]]).dropna(subset=["energy_mj", "top1"])
    rows = rows[~rows["source"].str.contains("not spiking")]
    return [(f"{r.model}†", r.energy_mj * factor, r.top1) for r in rows.itertuples()]


def pareto_front(cost: pd.Series, value: pd.Series) -> list[str]:
    """The labels that no other one beats (cheaper and at least as good), by rising cost."""
    front: list[str] = []
    order = pd.DataFrame({"cost": cost, "value": -value}).sort_values(["cost", "value"]).index
    for label in order:
        if not front or value[label] > value[front[-1]]:
            front.append(label)
    return front


def accuracy_over_axis(study: StudyResults, axis: str) -> Figure:
    """:func:`over_axis` of the test accuracy."""
    return over_axis(study, axis, "test_accuracy")


def over_axis(study: StudyResults, axis: str, name: str) -> Figure:
    """Mean of a measure over one axis of the grid, with intervals of the mean.

    Tuples such as scales are placed at their length. Configurations that do not lie on the
    axis are horizontal lines with a band, named at the right.
    """
    measure = all_measures()[name]
    found = summarize(study, name)[["mean", "low", "high"]]
    unit = measure.unit(found["mean"])
    found *= measure.units[unit]
    most = math.inf if measure.most is None else measure.most * measure.units[unit]
    series, baselines = axis_series(study, axis)
    option = axis.removesuffix(".name").split(".", 1)[-1].replace("_", " ")
    values = list(dict.fromkeys(value for line in series for value in line.values))
    by_count = counted(values)
    option = f"number of {option}" if by_count else option
    with style():
        figure, axes = canvas()
        axes.set_xlabel(option)
        axes.set_ylabel(measure.axis(unit))
        places, span = _ticks(axes, values, by_count)
        each, marks = iter(looks()), []
        for number, (line, look) in enumerate(zip(series, each, strict=False)):
            ordered = sorted(zip(line.values, line.groups, strict=True), key=lambda p: places[p[0]])
            # Beside each other, so that no error bar hides another.
            shift = 0.015 * span * (number - (len(series) - 1) / 2)
            xs = [places[value] + shift for value, _ in ordered]
            rows = found.loc[[group for _, group in ordered]]
            if by_count or numeric(values):
                axes.plot(xs, rows["mean"], color=look["color"])
            for x, (mean, low, high) in zip(xs, rows.to_numpy(), strict=True):
                _point(axes, x, mean, math.nan, _within(mean, mean - low, high - mean, most), look)
            marks.append(Mark(line.label, 1, rows["mean"].iloc[-1], color=look["color"]))
        for dash, group, look in zip(itertools.cycle(DASHES), baselines, each, strict=False):
            row = found.loc[group]
            axes.axhline(row["mean"], color=look["color"], ls=dash, lw=1)
            if not math.isnan(row["low"]):
                axes.axhspan(row["low"], row["high"], color=look["color"], alpha=0.1, lw=0)
            marks.append(Mark(group, 1, row["mean"], color=look["color"]))
        keep_to_possible(axes, most)
        say(
            axes,
            study,
            f"{measure.label.removeprefix('test ')} over {option}",
            f"mean with {CONFIDENCE:.0%} t interval",
        )
        label_right(axes, marks)
    return figure


def over_axes(study: StudyResults, name: str) -> dict[str, Figure]:
    """:func:`over_axis` for every axis of which two values have results, by the option's name."""
    columns = {axis: axis.removesuffix(".name") for axis in study.axes}
    found = study.finished.reindex(columns=list(columns.values())).map(str, na_action="ignore")
    several = [axis for axis, column in columns.items() if found[column].nunique() > 1]
    options = {slug(axis.split(".", 1)[-1]): axis for axis in several}
    return {option: over_axis(study, axis, name) for option, axis in options.items()}


def _first_energy(study: StudyResults, view: View) -> dict[str, Figure]:
    return over_axes(study, energy_measures(study, view)[0])


Drawing = Callable[[StudyResults, View], "Figure | Mapping[str, Figure] | None"]
"""Draws one figure, several by the ends of their names, or none where there is nothing to show."""

FIGURES: dict[str, Drawing] = {
    "accuracy_energy": accuracy_energy,
    "accuracy": lambda study, view: over_axes(study, "test_accuracy"),
    "energy": _first_energy,
    "models": energy_by_model,
    "differences": difference_forest,
    "effects": effect_forest,
    "learning": learning_curves,
    "layers": energy_by_layer,
    "firing": firing_maps,
}
"""The figures of a study by their files' names, in reading order."""


def _point(
    axes: Axes, x: float, y: float, xerr: float, yerr: tuple[float, float], look: dict[str, Any]
) -> None:
    """A point with error bars of these lengths (below, above) where they are known, else hollow."""
    known = not math.isnan(yerr[0])
    axes.errorbar(
        *(x, y, [[yerr[0]], [yerr[1]]] if known else None, None if math.isnan(xerr) else xerr),
        **look,
        mfc=look["color"] if known else "white",
        ls="none",
        elinewidth=0.9,
        clip_on=False,  # a point at 100 % is whole
    )


def _within(y: float, below: float, above: float, most: float = 100) -> tuple[float, float]:
    """Lengths of the error bars of what ends at 0 and ``most``, such as a percentage."""
    return (min(below, y), min(above, most - y)) if not math.isnan(below) else (math.nan, math.nan)


def _looks(study: StudyResults) -> dict[str, dict[str, Any]]:
    """Colour and marker of each configuration: one of both per model, in grid order."""
    models = study.cells.dropna(subset="model").drop_duplicates("group").set_index("group")["model"]
    of_model = dict(zip(dict.fromkeys(models), looks(), strict=False))
    return {group: of_model[model] for group, model in models.items()}


def _ticks(axes: Axes, values: Sequence[Any], by_count: bool) -> tuple[dict[Any, float], float]:
    """Place of each value on the x axis, and the width of all; the ticks are set.

    A place is a count, the number itself, or for anything else its turn.
    """
    numbers = numeric(values)
    if by_count:
        places = {value: float(len(value)) for value in values}
        names = [f"{len(value)}\n{value}".replace(",)", ")") for value in values]
    else:
        places = {v: float(v) if numbers else float(i) for i, v in enumerate(values)}
        names = [f"{v:g}" if numbers else str(v) for v in values]
    axes.set_xticks(list(places.values()), names)
    if not places:
        return places, 1.0
    first, last = min(places.values()), max(places.values())
    span = last - first or 1.0
    axes.set_xlim(first - 0.12 * span, last + 0.12 * span)
    return places, span
