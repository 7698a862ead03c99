"""Differences with their intervals, one below the other: to a baseline, and effects of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import say, style, width_for
from analysis.collect import StudyResults
from analysis.comparisons import paired_differences
from analysis.effects import effects, why_none
from analysis.statistics import CONFIDENCE, by_seed
from analysis.study_tables import check_baseline, effect_label
from analysis.tables import energy_measures
from analysis.view import USUAL, View
from msvit.records.measures import all_measures

_COLOR = "#0072B2"


def difference_forest(study: StudyResults, view: View) -> Figure | None:
    """Accuracy and energy of every configuration minus the baseline; None without one, or others.

    Bars are simultaneous intervals; a filled point is told apart from 0, a hollow one is not; each
    small grey point is one seed.

    Raises:
        RecordError: if the baseline is no configuration of the study.
    """
    if (baseline := view.baseline) is None:
        return None
    check_baseline(study, baseline)
    others = [group for group in study.groups if group != baseline]
    if not others or baseline not in set(study.finished["group"]):
        return None
    shown = _shown(study, view)
    judged = {name: paired_differences(study, name, baseline) for name in shown}
    seeds = {}
    for name in shown:
        values = by_seed(study, name)
        seeds[name] = values[others].sub(values[baseline], axis=0)
    return _forest(study, others, judged, f"differences to {baseline}", seeds)


def effect_forest(study: StudyResults, view: View = USUAL) -> Figure | None:
    """Main effects and interactions of a factorial grid; None where it has no two full axes."""
    if why_none(study):
        return None
    judged = {name: effects(study, name) for name in _shown(study, view)}
    found = judged["test_accuracy"]["changes"]
    labels = [effect_label(study, changes) for changes in found]
    main = sum(len(changes) == 1 for changes in found)
    title = "main effects" + (" and, below the line, interactions" if main < len(labels) else "")
    return _forest(study, labels, judged, title, rule=main)


def _shown(study: StudyResults, view: View) -> tuple[str, str]:
    return ("test_accuracy", energy_measures(study, view)[0])


def _forest(
    study: StudyResults,
    labels: Sequence[str],
    judged: Mapping[str, pd.DataFrame],
    title: str,
    seeds: Mapping[str, pd.DataFrame] | None = None,
    rule: int | None = None,
) -> Figure:
    with style():
        figure = Figure(figsize=(width_for(labels), 1.35 + 0.2 * len(labels)))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(judged), sharey=True)
        for axes, (name, rows) in zip(panels, judged.items(), strict=True):
            measure = all_measures()[name]
            unit = measure.unit(rows["difference"].abs())
            factor = measure.units[unit]
            _rows(axes, factor * rows[["difference", "low", "high"]], rows["p"])
            if seeds is not None:
                for place, values in enumerate(seeds[name].to_numpy().T):
                    # Below the bar, which would hide them.
                    axes.plot(factor * values, [place + 0.25] * len(values), ".", color="0.5", ms=3)
            axes.axvline(0, color="0.3", lw=0.8, zorder=1)
            if rule is not None and 0 < rule < len(labels):
                axes.axhline(rule - 0.5, color="0.6", lw=0.6)
            label = "test accuracy (points)" if unit == "%" else measure.axis(unit)
            axes.set_xlabel(label.replace(" (", "\n("))
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        for axes in panels[1:]:
            axes.tick_params(axis="y", length=0)
        bars = f"mean with simultaneous {CONFIDENCE:.0%} interval"
        small = ["grey: single seeds"] if seeds is not None else []
        say(figure, study, title, bars, "filled: apart from 0", *small)
    return figure


def _rows(axes: Axes, scaled: pd.DataFrame, probabilities: pd.Series) -> None:
    for place, ((mean, low, high), p) in enumerate(
        zip(scaled.to_numpy(), probabilities, strict=True)
    ):
        axes.errorbar(
            *(mean, place, None, None if pd.isna(low) else [[mean - low], [high - mean]]),
            fmt="o",
            color=_COLOR,
            mfc=_COLOR if p < 1 - CONFIDENCE else "white",
            ms=4.5,
            elinewidth=1,
        )
