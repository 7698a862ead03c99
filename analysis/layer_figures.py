"""Energy by layer: where in the network it goes, one bar per configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.canvas import say, style, width_for
from analysis.collect import StudyResults
from analysis.layers import layers
from analysis.tables import energy_measures
from analysis.twins import pairs, twin_measures
from analysis.view import USUAL, View
from msvit.records.measures import Measure, all_measures

KINDS: dict[str, dict[str, Any]] = {
    "stem, embeddings": {"color": "#0072B2"},
    "attention": {"color": "#E69F00"},
    "MLP": {"color": "#C9E6F7"},
    "head": {"color": "#000000"},
}
"""What parts are called together: each as grey its own, from black to nearly white."""
_COLUMNS = 3  # of panels
_WIDE_ENOUGH = 0.035  # for a number, of the widest bar


def energy_by_layer(study: StudyResults, view: View = USUAL) -> Figure | None:
    """Energy per image of each kind of part, stacked; the numbers are those of stages or blocks.

    A panel for each of :func:`energies_by_layer`; a twin stands below its spiking network. None
    without operations.
    """
    if study.operations.empty:
        return None
    twins, energies = pairs(study), energies_by_layer(study, view)
    each = layers(study, energies).assign(kind=lambda frame: frame.apply(_kind, axis=1))
    groups = _beside_twins([g for g in study.groups if g in set(each["group"])], twins)
    # The same place of the network is one piece, whatever its layers are.
    pieces = each.groupby(["group", "kind", "place"], sort=False)[energies].sum()
    columns = min(_COLUMNS, math.ceil(math.sqrt(len(energies))))
    rows = math.ceil(len(energies) / columns)
    with style():
        width = width_for(groups) + 2.2 * (columns - 1)
        figure = Figure(figsize=(width, 0.55 + rows * (0.6 + 0.24 * len(groups))))
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes, name in zip(panels, energies, strict=False):
            _bars(axes, pieces[name], groups, all_measures()[name])
        for axes in panels[len(energies) :]:
            axes.remove()
        handles = [Patch(label=kind, ec="white", **look) for kind, look in KINDS.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(KINDS), handleheight=1.4
        )
        say(figure, study, "energy by part of the network", "mean", "numbers: stage or block")
    return figure


def energies_by_layer(study: StudyResults, view: View) -> list[str]:
    """The measures that were asked for, or where the study has twins, those of their table."""
    found = twin_measures(study, view) if pairs(study) else {}
    return list(found.values()) or energy_measures(study, view)


def _beside_twins(groups: Sequence[str], twins: Sequence[tuple[str, str]]) -> list[str]:
    """``groups`` in their order, but each twin behind the first of its spiking networks."""
    placed = {twin for _, twin in twins}
    order: list[str] = []
    for group in groups:
        if group not in placed:
            order += [group, *(twin for spiking, twin in twins if spiking == group)]
    return list(dict.fromkeys(order))


def _bars(axes: Axes, energy: pd.Series, groups: Sequence[str], measure: Measure) -> None:
    """Millijoule of pieces by group, kind and place, in a unit that fits all."""
    widths = energy.groupby(level="group").sum()
    unit = measure.unit(widths)
    factor, widest = measure.units[unit], widths.max()
    for row, group in enumerate(groups):
        left = 0.0
        for kind in KINDS:
            for place, width in _of(energy, group, kind).items():
                axes.barh(row, factor * width, 0.72, left, ec="white", lw=0.6, **KINDS[kind])
                if width > _WIDE_ENOUGH * widest and (number := _number(str(place))):
                    _write(axes, left + factor * width / 2, row, number, kind)
                left += factor * width
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(measure.axis(unit).replace(" per image", " per image\n"))


def _of(pieces: pd.Series, group: str, kind: str) -> pd.Series:
    found = pieces.loc[group]
    return (
        found.loc[kind] if kind in found.index.get_level_values("kind") else pd.Series(dtype=float)
    )


def _write(axes: Axes, x: float, y: float, text: str, kind: str) -> None:
    dark = kind in ("stem, embeddings", "head")
    color = "white" if dark else "black"
    axes.text(x, y, text, ha="center", va="center", size=6, color=color)


def _kind(layer: pd.Series) -> str:
    if layer["place"] == "head":
        return "head"
    if layer["part"] == "MLP":
        return "MLP"
    return "attention" if layer["part"] else "stem, embeddings"


def _number(place: str) -> str:
    """``1`` of *stage 1*, ``3.2`` of *stage 3, block 2*; nothing of *stem*."""
    return ".".join(re.findall(r"\d+", place))
