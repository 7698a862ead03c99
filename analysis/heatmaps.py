"""Firing rates as heat maps: layers in network order down, time steps across."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import entitle, slug, style
from analysis.collect import StudyResults
from analysis.layers import in_reading_order, layer_names, outline
from analysis.statistics import summarize
from analysis.view import USUAL, View

MANY_LAYERS = 16  # more than this and a configuration gets a figure of its own


def firing_maps(study: StudyResults, view: View = USUAL) -> dict[str, Figure]:
    """Heat maps of the firing rate, layers in network order down, time steps across.

    Rates are means over seeds, on one colour scale for the study, from 0 to its highest rate.

    Returns:
        Figures by name: ``rates`` with all configurations, or one per configuration where
        layers are many.
    """
    firing = study.firing
    maps = {}
    for group in firing["group"].drop_duplicates():
        rows = firing[firing["group"] == group]
        rates = rows.pivot_table(index=["position", "layer"], columns="timestep", values="rate")
        rates = rates.droplevel("position")
        maps[group] = rates.loc[in_reading_order(list(rates.index))]
    maps = {group: maps[group] for group in study.groups if group in maps}
    if not maps:
        return {}  # networks without neurons
    with style():
        highest = max(float(rates.to_numpy().max()) for rates in maps.values()) or 1.0
        if max(len(rates) for rates in maps.values()) > MANY_LAYERS:
            return {
                f"{number:02d}_{slug(group)}": _firing_figure(study, {group: rates}, highest)
                for number, (group, rates) in enumerate(maps.items(), 1)
            }
        return {"rates": _firing_figure(study, maps, highest)}


def _firing_figure(study: StudyResults, maps: dict[str, pd.DataFrame], highest: float) -> Figure:
    columns = min(3, len(maps))
    rows = math.ceil(len(maps) / columns)
    layers = max(len(rates) for rates in maps.values())
    steps = max(len(rates.columns) for rates in maps.values())
    width = 2.3 + 0.22 * min(steps, 16) if columns > 1 else 4.0
    figure = Figure(figsize=(width * columns + 0.6, rows * (0.5 + 0.125 * layers) + 0.7))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes, (group, rates) in zip(panels, maps.items(), strict=False):
        image = axes.imshow(rates, aspect="auto", vmin=0, vmax=highest, interpolation="nearest")
        axes.grid(False)
        axes.set_xlabel("time step (from 0)")
        every = math.ceil(len(rates.columns) / 8)
        axes.set_xticks(range(0, len(rates.columns), every), rates.columns[::every])
        axes.set_yticks(range(len(rates)), _words(list(rates.index)), size=6)
        axes.tick_params(length=0)
        axes.set_title(f"{group}{_seeds_of(study, group)}")
    for axes in panels[len(maps) :]:
        axes.remove()
    if len(maps) > 1:  # one says its configuration
        entitle(figure, [f"{study.name}: firing rates by layer and time step"])
    figure.colorbar(
        image, ax=panels[: len(maps)], label="spikes per neuron and time step", aspect=30
    )
    return figure


def _seeds_of(study: StudyResults, group: str) -> str:
    seeds = int(summarize(study, "firing_rate")["n"][group])
    return "\none seed" if seeds == 1 else f"\nmean over {seeds} seeds"


def _words(layers: Sequence[str]) -> list[str]:
    """The paper's words, each part of the network named once."""
    names = layer_names(layers)
    return outline([names[layer] for layer in layers])
