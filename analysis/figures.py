"""The figures of a study, as functions of its data frames.

:data:`FIGURES` lists them and :func:`save_figures` writes them all; a new one is a function here
(or anywhere) and its entry. A figure that could mislead (one seed, cells missing, nothing finished)
says so in its title.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.canvas import canvas, say, slug, style, write_figures
from analysis.collect import StudyResults
from analysis.curves import learning_curves
from analysis.forests import difference_forest, effect_forest
from analysis.heatmaps import firing_maps
from analysis.label_placement import Mark, label_marks, label_right
from analysis.layer_figures import energy_by_layer
from analysis.published import published_on, read_published
from analysis.series import axis_series
from analysis.statistics import CONFIDENCE, summarize
from msvit.records.measures import MEASURES

_OTHERS = "0.45"  # what was not measured here
MARKERS = "osD^vPX*"
DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def save_figures(study: StudyResults, folder: Path, baseline: str | None = None) -> list[Path]:
    """Draw all figures of a study, with differences to ``baseline``, and write each as PNG and PDF.

    Returns:
        The PNG files, in reading order; the PDF files stand beside them. Other PNG and PDF files,
        those of earlier calls, are removed from ``folder``.
    """
    return write_figures(draw_figures(study, baseline), folder)


def draw_figures(study: StudyResults, baseline: str | None = None) -> dict[str, Figure]:
    """All figures of a study, with differences to ``baseline``, by the names of their files."""
    drawn: dict[str, Figure] = {}
    for name, draw in FIGURES.items():
        figures = draw(study)
        if isinstance(figures, Mapping):
            drawn |= {f"{name}_{part}": figure for part, figure in figures.items()}
        elif figures is not None:
            drawn[name] = figures
    if baseline is not None and (forest := difference_forest(study, baseline)) is not None:
        drawn["differences"] = forest
    return drawn


def accuracy_energy(study: StudyResults) -> Figure:
    """Mean test accuracy (%) against energy per image, one point per configuration.

    Error bars are standard deviations over seeds on both axes; a hollow point has one seed and
    no bars. The dashed steps are the Pareto front of the means. What others published on the same
    data, with its energy, stands grey beside it, marked †.
    """
    accuracy = 100 * summarize(study, "test_accuracy")[["mean", "std"]].dropna(how="all")
    energy = summarize(study, "energy_mj")[["mean", "std"]].loc[accuracy.index]
    cost, value = MEASURES["energy_mj"], MEASURES["test_accuracy"]
    unit = cost.unit(energy["mean"])
    energy *= cost.units[unit]
    with style():
        figure, axes = canvas()
        axes.set_xlabel(cost.axis(unit))
        axes.set_ylabel(value.axis("%"))
        looks, marks = _looks(study), []
        for group in accuracy.index:
            (x, xerr), (y, yerr) = energy.loc[group], accuracy.loc[group]
            _point(axes, x, y, xerr, _within(y, yerr, yerr), looks[group])
            bars: tuple[float, float] = (0.0, 0.0) if math.isnan(yerr) else (xerr, yerr)
            marks.append(Mark(group, x, y, *bars, color=looks[group]["color"]))
        for name, x, y in _published(study, cost.units[unit]):
            axes.plot(x, y, marker="x", color=_OTHERS, ls="none", ms=4)
            marks.append(Mark(name, x, y, color=_OTHERS))
        axes.margins(0.22, 0.18)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        _keep_to_possible(axes)
        remarks = ["mean ± std"] + (["†: published"] if len(marks) > len(accuracy) else [])
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
    measure = MEASURES[name]
    found = summarize(study, name)[["mean", "low", "high"]]
    unit = measure.unit(found["mean"])
    found *= measure.units[unit]
    most = math.inf if measure.most is None else measure.most * measure.units[unit]
    series, baselines = axis_series(study, axis)
    option = axis.removesuffix(".name").split(".", 1)[-1].replace("_", " ")
    values = list(dict.fromkeys(value for line in series for value in line.values))
    counted = _counted(values)
    option = f"number of {option}" if counted else option
    with style():
        figure, axes = canvas()
        axes.set_xlabel(option)
        axes.set_ylabel(measure.axis(unit))
        places, span = _ticks(axes, values, counted)
        looks, marks = iter(_cycle()), []
        for number, (line, look) in enumerate(zip(series, looks, strict=False)):
            ordered = sorted(zip(line.values, line.groups, strict=True), key=lambda p: places[p[0]])
            # Beside each other, so that no error bar hides another.
            shift = 0.015 * span * (number - (len(series) - 1) / 2)
            xs = [places[value] + shift for value, _ in ordered]
            rows = found.loc[[group for _, group in ordered]]
            if counted or _numeric(values):
                axes.plot(xs, rows["mean"], color=look["color"])
            for x, (mean, low, high) in zip(xs, rows.to_numpy(), strict=True):
                _point(axes, x, mean, math.nan, _within(mean, mean - low, high - mean, most), look)
            marks.append(Mark(line.label, 1, rows["mean"].iloc[-1], color=look["color"]))
        for dash, group, look in zip(itertools.cycle(DASHES), baselines, looks, strict=False):
            row = found.loc[group]
            axes.axhline(row["mean"], color=look["color"], ls=dash, lw=1)
            if not math.isnan(row["low"]):
                axes.axhspan(row["low"], row["high"], color=look["color"], alpha=0.1, lw=0)
            marks.append(Mark(group, 1, row["mean"], color=look["color"]))
        _keep_to_possible(axes, most)
        say(
            axes,
            study,
            f"{measure.label.removeprefix('test ')} over {option}",
            f"mean with {CONFIDENCE:.0%} t interval",
        )
        label_right(axes, marks)
    return figure


def over_axes(study: StudyResults, name: str) -> dict[str, Figure]:
    """:func:`over_axis` for every axis of the grid, by the option's name."""
    options = {slug(axis.split(".", 1)[-1]): axis for axis in study.axes}
    return {option: over_axis(study, axis, name) for option, axis in options.items()}


Drawing = Callable[[StudyResults], "Figure | Mapping[str, Figure] | None"]
"""Draws one figure, several by the ends of their names, or none where there is nothing to show."""

FIGURES: dict[str, Drawing] = {
    "accuracy_energy": accuracy_energy,
    "accuracy": partial(over_axes, name="test_accuracy"),
    "energy": partial(over_axes, name="energy_mj"),
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


def _keep_to_possible(axes: Axes, most: float = 100) -> None:
    """Nothing on the y axis that cannot be, such as a percentage above 100."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, most))


def _cycle() -> list[dict[str, Any]]:
    """Colour and marker for one thing after another."""
    colors = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    pairs = zip(colors * len(MARKERS), MARKERS * len(colors), strict=True)
    return [{"color": color, "marker": marker} for color, marker in pairs]


def _looks(study: StudyResults) -> dict[str, dict[str, Any]]:
    """Colour and marker of each configuration: one of both per model, in grid order."""
    models = study.cells.dropna(subset="model").drop_duplicates("group").set_index("group")["model"]
    looks = dict(zip(dict.fromkeys(models), _cycle(), strict=False))
    return {group: looks[model] for group, model in models.items()}


def _counted(values: Sequence[Any]) -> bool:
    """Whether the values are tuples of different lengths, so that the length says it all."""
    return (
        bool(values)
        and all(isinstance(value, tuple) for value in values)
        and len({len(value) for value in values}) == len(values)
    )


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _ticks(axes: Axes, values: Sequence[Any], counted: bool) -> tuple[dict[Any, float], float]:
    """Place of each value on the x axis, and the width of all; the ticks are set.

    A place is a count, the number itself, or for anything else its turn.
    """
    numeric = _numeric(values)
    if counted:
        places = {value: float(len(value)) for value in values}
        names = [f"{len(value)}\n{value}".replace(",)", ")") for value in values]
    else:
        places = {v: float(v) if numeric else float(i) for i, v in enumerate(values)}
        names = [f"{v:g}" if numeric else str(v) for v in values]
    axes.set_xticks(list(places.values()), names)
    if not places:
        return places, 1.0
    first, last = min(places.values()), max(places.values())
    span = last - first or 1.0
    axes.set_xlim(first - 0.12 * span, last + 0.12 * span)
    return places, span
