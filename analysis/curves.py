"""Learning curves: validation accuracy over epochs, one small panel per configuration."""

from __future__ import annotations

import math
import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import keep_to_possible, say, style
from analysis.collect import StudyResults
from analysis.statistics import summarize
from analysis.view import USUAL, View

_COLOR = "#0072B2"


def learning_curves(study: StudyResults, view: View = USUAL) -> Figure | None:
    """Validation accuracy (%) over epochs: mean over seeds, and a band from the lowest to the best.

    The means of the other configurations stand grey behind. None where nothing has two epochs.
    """
    history = study.history
    if history.empty or history["epoch"].nunique() < 2:
        return None
    by_epoch = (100 * history.set_index(["group", "epoch"])["val_accuracy"]).groupby(level=[0, 1])
    curves = pd.DataFrame({"mean": by_epoch.mean(), "low": by_epoch.min(), "high": by_epoch.max()})
    found = set(history["group"])
    groups = [group for group in study.groups if group in found]
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    seeds = summarize(study, "test_accuracy")["n"]
    with style():
        figure = Figure(figsize=(max(3.4, 1.9 * columns), 0.7 + 1.35 * rows))
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        every = [axes for row in panels for axes in row]
        for axes, group in zip(every, groups, strict=False):
            for other in groups:
                axes.plot(curves.loc[other, "mean"], color="0.8", lw=0.7, zorder=1)
            _curve(axes, curves.loc[group])
            title = group + (" (one seed)" if seeds[group] == 1 else "")
            axes.set_title(textwrap.fill(title, 28), size=7, pad=3)
            axes.xaxis.get_major_locator().set_params(integer=True)
        keep_to_possible(every[0])  # and so all of them: they share it
        for place in range(len(groups), len(every)):
            every[place].remove()
            every[place - columns].tick_params(labelbottom=True)
        figure.supxlabel("epoch", size=7.5)
        figure.supylabel("validation accuracy (%)", size=7.5)
        say(figure, study, "learning curves", "mean and range", "grey: the others' means")
    return figure


def _curve(axes: Axes, curve: pd.DataFrame) -> None:
    axes.fill_between(curve.index, curve["low"], curve["high"], color=_COLOR, alpha=0.2, lw=0)
    axes.plot(curve["mean"], color=_COLOR)
