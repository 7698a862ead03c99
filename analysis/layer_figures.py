"""Energy by layer: where in the network it goes, one bar per configuration."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.canvas import say, style, width_for
from analysis.collect import StudyResults
from analysis.layers import layers
from msvit.records.measures import MEASURES

KINDS: dict[str, dict[str, Any]] = {
    "stem, embeddings": {"color": "#0072B2", "hatch": None},
    "attention": {"color": "#E69F00", "hatch": "/////"},
    "MLP": {"color": "#8CCBEE", "hatch": None},
    "head": {"color": "#000000", "hatch": None},
}
"""What parts are called together, told apart in grey as well."""


def energy_by_layer(study: StudyResults) -> Figure | None:
    """Energy per image of each kind of part, stacked; the numbers are those of stages or blocks.

    None without operations.
    """
    if study.operations.empty:
        return None
    each = layers(study).assign(kind=lambda frame: frame.apply(_kind, axis=1))
    groups = [group for group in study.groups if group in set(each["group"])]
    measure = MEASURES["energy_mj"]
    unit = measure.unit(each.groupby("group")["energy_mj"].sum())
    each["energy"] = each["energy_mj"] * measure.units[unit]
    # The same place of the network is one piece, whatever its layers are.
    pieces = each.groupby(["group", "kind", "place"], sort=False)["energy"].sum()
    with style():
        figure = Figure(figsize=(width_for(groups), 1.15 + 0.24 * len(groups)))
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        widest = pieces.groupby(level="group").sum().max()
        for row, group in enumerate(groups):
            left = 0.0
            for kind in KINDS:
                for place, width in _of(pieces, group, kind).items():
                    axes.barh(row, width, 0.72, left, ec="white", lw=0.6, **KINDS[kind])
                    if width > 0.035 * widest and (number := _number(str(place))):
                        _write(axes, left + width / 2, row, number, kind)
                    left += width
        axes.set_yticks(range(len(groups)), groups)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(measure.axis(unit))
        handles = [Patch(label=kind, ec="white", **look) for kind, look in KINDS.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(KINDS), handleheight=1.4
        )
        say(figure, study, "energy by part of the network", "mean", "numbers: stage or block")
    return figure


def _of(pieces: pd.Series, group: str, kind: str) -> pd.Series:
    found = pieces.loc[group]
    return (
        found.loc[kind] if kind in found.index.get_level_values("kind") else pd.Series(dtype=float)
    )


def _write(axes: Axes, x: float, y: float, text: str, kind: str) -> None:
    box = {"boxstyle": "round,pad=0.15", "fc": KINDS[kind]["color"], "ec": "none"}
    dark = kind in ("stem, embeddings", "head")
    color = "white" if dark else "black"
    axes.text(x, y, text, ha="center", va="center", size=6, color=color, bbox=box)


def _kind(layer: pd.Series) -> str:
    if layer["place"] == "head":
        return "head"
    if layer["part"] == "MLP":
        return "MLP"
    return "attention" if layer["part"] else "stem, embeddings"


def _number(place: str) -> str:
    """``1`` of *stage 1*, ``3.2`` of *stage 3, block 2*; nothing of *stem*."""
    return ".".join(re.findall(r"\d+", place))
