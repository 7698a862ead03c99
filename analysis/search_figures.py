"""The figures of a search, as functions of its data frames (:mod:`analysis.search`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from analysis.canvas import canvas, style
from analysis.published import read_published
from analysis.search import Search
from msvit.records.measures import all_measures

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.65"
_LEAST = 10  # complete trials below which importance says nothing


def draw_search_figures(search: Search) -> dict[str, Figure]:
    """All figures of a search by the names of their files, in reading order."""
    drawn = {name: draw(search) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def pareto(search: Search) -> Figure | None:
    """The first objective over the second, a point per complete trial, the front as steps.

    None for a search with one objective.

    Published results on the same data (†) are marked where they state what the axes show; they
    are test accuracies of full trainings, ours are validation accuracies.
    """
    if len(search.objectives) < 2:
        return None
    y, x = list(search.objectives)[:2]
    trials = search.complete
    scale_x, label_x = _scale(trials, x)
    scale_y, label_y = _scale(trials, y)
    with style():
        figure, axes = canvas()
        axes.set_xlabel(label_x)
        axes.set_ylabel(label_y)
        fair, given = trials["feasible"].astype(bool), trials["given"].astype(bool)
        for rows, look in (
            (trials[fair & ~given], {"marker": "o", "color": _BLUE}),
            (trials[fair & given], {"marker": "*", "color": _ORANGE, "ms": 9}),
            (trials[~fair], {"marker": "x", "color": _GREY}),
        ):
            axes.plot(rows[x] * scale_x, rows[y] * scale_y, ls="none", **look)
        front = search.front.sort_values(x, ascending=search.objectives[x] == "minimize")
        xs, ys = list(front[x] * scale_x), list(front[y] * scale_y)
        if len(search.objectives) == 2 and xs:
            cheap_first = search.objectives[x] == "minimize"
            order = np.argsort(xs)
            steps = (np.array(xs)[order], np.array(ys)[order])
            where: Literal["post", "pre"] = "post" if cheap_first else "pre"
            axes.step(*steps, where=where, color="0.5", ls="--", lw=0.9, zorder=1)
        for number, px, py in zip(front["number"], xs, ys, strict=True):
            _name_point(axes, str(number), px, py)
        remarks = [f"{len(trials)} complete trials, numbers: trials of the front"]
        if given.any():
            remarks.append("star: given to start with")
        if not fair.all():
            not_allowed = f"{(~fair).sum()} not {' or '.join(search.constraints)}"
            remarks.append(f"crosses: {not_allowed}, some may lie outside")
        # Trials that are not allowed do not decide which part of the plane is shown.
        inside = trials[fair] if fair.any() else trials
        shown_x, shown_y = list(inside[x] * scale_x), list(inside[y] * scale_y)
        remarks += _mark_published(axes, search, x, y, scale_x, shown_x, shown_y)
        axes.set_xlim(_around(shown_x))
        axes.set_ylim(_around(shown_y))
        _title(axes, search, f"{_name(y)} against {_name(x)}", remarks)
    return figure


def _name_point(axes: Axes, text: str, x: float, y: float, size: float = 6.5) -> None:
    """``text`` above a point, legible over whatever lies there."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        size=size,
        zorder=5,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )


def _around(values: list[float]) -> tuple[float, float]:
    """Limits of an axis that shows all ``values``."""
    if not values:
        return (0.0, 1.0)
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - margin, high + margin)


def _mark_published(
    axes: Axes,
    search: Search,
    x: str,
    y: str,
    scale_x: float,
    shown_x: list[float],
    shown_y: list[float],
) -> list[str]:
    """Mark published results on this data set, and add where they are to what is shown.

    Returns what the title has to say of them.
    """
    if y != "accuracy":
        return []
    published = read_published()
    rows = published[published["dataset"] == search.data].dropna(subset="top1")
    if rows.empty:
        return [f"no published result on {search.data}"]
    places = {"energy_mj": "energy_mj", "parameters": "parameters_m"}
    factor = 1e6 if x == "parameters" else 1.0
    placed = rows.dropna(subset=places[x]) if x in places else rows.iloc[:0]
    for row in placed.itertuples():
        px, py = getattr(row, places[x]) * factor * scale_x, row.top1
        shown_x.append(px)
        axes.plot(px, py, marker="D", color="0.2", ls="none", ms=4, mfc="none")
        _name_point(axes, f"{row.model}†", px, py, size=5)
    others = rows.drop(placed.index)
    for row in others.itertuples():
        axes.axhline(row.top1, color="0.7", lw=0.6, ls=":")
        axes.annotate(
            f"{row.model}†",
            (1, row.top1),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            size=5,
            color="0.35",
        )
    shown_y.extend(rows["top1"])
    says = "† published test accuracy"
    return [says + (f"; lines: {_name(x)} not published" if len(others) else "")]


def importance(search: Search) -> Figure | None:
    """How much each parameter decides about each objective (PED-ANOVA), in shares."""
    trials = [t for t in search.study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if len(trials) < _LEAST:
        return None
    shares = {}
    for position, (objective, aim) in enumerate(search.objectives.items()):
        sign = 1 if aim == "minimize" else -1  # Optuna takes the small values for the good ones
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shares[objective] = optuna.importance.get_param_importances(
                    search.study, target=partial(_signed, position, sign)
                )
            except (ValueError, RuntimeError):  # all values are the same, or too few
                return None
    frame = pd.DataFrame(shares).reindex(search.parameters)
    frame = frame.dropna(how="all").sort_values(search.primary)
    if frame.empty:
        return None
    with style():
        figure, axes = canvas()
        height = 0.8 / len(frame.columns)
        for i, (objective, color) in enumerate(zip(frame, _colors(), strict=False)):
            places = np.arange(len(frame)) + height * ((len(frame.columns) - 1) / 2 - i)
            axes.barh(places, frame[objective], height * 0.9, color=color, label=_name(objective))
        axes.set_yticks(range(len(frame)), [_short(key) for key in frame.index])
        axes.set_xlabel("share of the importance (PED-ANOVA)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right")
        left_out = [_short(key) for key in search.parameters if key not in frame.index]
        remarks = [f"from {len(trials)} complete trials"]
        remarks += [f"conditional, left out: {', '.join(left_out)}"] if left_out else []
        _title(axes, search, "what decides", remarks)
    return figure


def _signed(position: int, sign: int, trial: optuna.trial.FrozenTrial) -> float:
    return sign * trial.values[position]


def slices(search: Search) -> Figure:
    """The primary objective over every parameter; crosses: stopped early, with their last value."""
    count = len(search.parameters)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    last = search.curves.sort_values("epoch").groupby("number")["value"].last()
    scale, label = _scale(search.complete, search.primary)
    complete, stopped = search.complete, search.trials[search.trials["state"] == "stopped"]
    with style():
        figure = Figure(figsize=(2.1 * columns, 1.75 * rows + 0.45))
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        numbers = complete["number"]
        norm = mpl.colors.Normalize(0, max(len(search.trials) - 1, 1))
        for axes, key in zip(panels, search.parameters, strict=False):
            places = _places(search, axes, key)
            axes.plot(
                _at(stopped[key], places),
                stopped["number"].map(last) * scale,
                ls="none",
                marker="x",
                color=_GREY,
                ms=4,
            )
            axes.scatter(
                _at(complete[key], places),
                complete[search.primary] * scale,
                c=numbers,
                norm=norm,
                s=16,
                zorder=3,
            )
            axes.set_xlabel(_short(key))
        for axes in panels[count:]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel(label)
        figure.colorbar(ScalarMappable(norm), ax=list(panels[:count]), label="trial", aspect=40)
        says = f"{search.name}: {_name(search.primary)} over each parameter"
        figure.suptitle(says + "; crosses: stopped early", size=8, x=0.01, ha="left")
    return figure


def parallel(search: Search) -> Figure:
    """Parallel coordinates: a line per complete trial, coloured by the primary objective."""
    trials = search.complete
    keys = [*search.parameters, *search.objectives]
    scale, label = _scale(trials, search.primary)
    with style():
        figure = Figure(figsize=(max(4.4, 0.95 * len(keys)), 3.1))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        values = trials[search.primary].astype(float) * scale
        fair = values[trials["feasible"].astype(bool)]
        shown = fair if len(fair) else values
        norm = mpl.colors.Normalize(*((shown.min(), shown.max()) if len(shown) else (0, 1)))
        heights = {}
        for i, key in enumerate(keys):
            heights[key], texts = _heights(search, trials, key)
            axes.axvline(i, color="0.4", lw=0.8)
            for height, text in texts.items():
                look: dict[str, Any] = {"va": "center", "size": 6, "zorder": 5}
                look["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]
                axes.annotate(text, (i, height), (3, 0), textcoords="offset points", **look)
        colors = mpl.colormaps["viridis"]
        order = values.sort_values(ascending=search.objectives[search.primary] == "maximize").index
        for row in order:
            line = [heights[key].get(row, np.nan) for key in keys]
            known = [(i, h) for i, h in enumerate(line) if not np.isnan(h)]
            axes.plot(*zip(*known, strict=True), color=colors(norm(values[row])), alpha=0.8, lw=0.9)
        axes.set_xticks(range(len(keys)), [_short(key) for key in keys], rotation=25, ha="right")
        axes.tick_params(axis="x", length=0)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlim(-0.2, len(keys) - 0.6)
        for side in axes.spines.values():
            side.set_visible(False)
        figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=label)
        axes.set_title(f"{search.name}: {len(trials)} complete trials, a line each", pad=16)
    return figure


def history(search: Search) -> Figure:
    """Left: each trial's primary objective and the best so far. Right: its epochs and the rungs."""
    scale, label = _scale(search.complete, search.primary)
    complete = search.complete
    values = complete[search.primary].astype(float) * scale
    fair = values.where(complete["feasible"].astype(bool))
    best = fair.cummin() if search.objectives[search.primary] == "minimize" else fair.cummax()
    ends = search.curves.sort_values("epoch").groupby("number").last()
    stopped = search.trials.loc[search.trials["state"] == "stopped", "number"]
    stopped = ends.loc[ends.index.intersection(stopped)]
    with style():
        figure = Figure(figsize=(6.4, 2.9))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        left.plot(complete["number"], values, "o", color=_BLUE, label="complete")
        left.plot(stopped.index, stopped["value"] * scale, "x", color=_GREY, label="stopped early")
        left.step(
            complete["number"], best.ffill(), where="post", color=_ORANGE, label="best so far"
        )
        left.set_xlabel("trial")
        left.set_ylabel(label)
        for number, curve in search.curves.groupby("number"):
            over = number in stopped.index
            right.plot(
                curve["epoch"],
                curve["value"] * scale,
                lw=0.8,
                alpha=0.8,
                color=_GREY if over else _BLUE,
                marker="x" if over else None,
                markevery=[-1],
                ms=4,
            )
        for rung in rungs(search):
            right.axvline(rung, color=_ORANGE, lw=0.8, ls=":")
        right.set_xlabel("epoch")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, names = left.get_legend_handles_labels()
        if rungs(search):
            handles.append(Line2D([], [], color=_ORANGE, lw=0.8, ls=":"))
            names.append(f"rungs of {search.pruner['name']}")
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        counts = search.trials["state"].value_counts()
        shown = ", ".join(f"{count} {state}" for state, count in counts.items())
        left.set_title(f"{search.name}: {shown}")
    return figure


def rungs(search: Search) -> list[int]:
    """Epochs at which the pruner judges; of HyperBand's brackets, those of the first."""
    pruner, longest = search.pruner, search.curves["epoch"].max()
    if pruner["name"] not in ("asha", "hyperband") or not longest >= 1:
        return []
    found, epoch = [], pruner["grace"]
    while epoch < longest:
        found.append(math.ceil(epoch))
        epoch *= pruner["reduction"]
    return found


def _title(axes: Axes, search: Search, title: str, remarks: list[str]) -> None:
    axes.set_title("\n".join([f"{search.name}: {title}", *remarks]))
    if search.complete.empty:
        axes.text(0.5, 0.5, "no complete trial yet", transform=axes.transAxes, ha="center", size=9)


def _scale(trials: pd.DataFrame, name: str) -> tuple[float, str]:
    """The factor to the unit shown of a measure, and the axis label."""
    measure = all_measures()[name]
    unit = measure.unit(trials[name].astype(float))
    return measure.units[unit], measure.axis(unit)


def _name(measure: str) -> str:
    return all_measures()[measure].label


def _short(key: str) -> str:
    """What a parameter (a dotted name) or an objective is called below an axis."""
    option = key.partition(".")[2]
    return option.replace("_", " ") if option else _name(key)


FIGURES: dict[str, Callable[[Search], Figure | None]] = {
    "pareto": pareto,
    "history": history,
    "importance": importance,
    "slices": slices,
    "parallel": parallel,
}
"""The figures of a search by their files' names; one that has nothing to show is None."""


def _colors() -> list[str]:
    return mpl.rcParams["axes.prop_cycle"].by_key()["color"]


def _places(search: Search, axes: Axes, key: str) -> dict[Any, float] | None:
    """Places of the values of a parameter without numbers; None where they are numbers."""
    values = _choices(search.trials[key])
    if values is None:
        if key in search.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # not as a formula
            axes.xaxis.set_minor_formatter(NullFormatter())
        return None
    axes.set_xticks(range(len(values)), [_text(v) for v in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    return {value: float(i) for i, value in enumerate(values)}


def _choices(values: pd.Series) -> list[Any] | None:
    """The different values, ordered; None where they are numbers."""
    found = list(dict.fromkeys(values.dropna()))
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
        return None
    return sorted(found, key=lambda v: (len(v), v) if isinstance(v, tuple) else (0, str(v)))


def _at(values: pd.Series, places: dict[Any, float] | None) -> pd.Series:
    return values.astype(float) if places is None else values.map(places).astype(float)


def _heights(search: Search, trials: pd.DataFrame, key: str) -> tuple[pd.Series, dict[float, str]]:
    """Where each trial crosses the axis of ``key`` (0 to 1), and texts along the axis."""
    values = trials[key].dropna()
    if (found := _choices(values)) is not None:
        places = {v: i / max(len(found) - 1, 1) for i, v in enumerate(found)}
        return values.map(places).astype(float), {h: _text(v) for v, h in places.items()}
    numbers = values.astype(float)
    if numbers.empty:
        return numbers, {}
    shown = numbers.map(np.log) if key in search.logarithmic else numbers
    span = shown.max() - shown.min() or 1.0
    factor = _scale(trials, key)[0] if key in search.objectives else 1.0
    ends = {0.0: numbers.min(), 1.0: numbers.max()}
    return (shown - shown.min()) / span, {h: f"{factor * end:.3g}" for h, end in ends.items()}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
