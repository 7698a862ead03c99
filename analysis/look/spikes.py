"""Which neurons fire when one image is seen: rasters beside firing over time, layer by layer."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import entitle, style
from analysis.layers import in_reading_order, outline
from analysis.look.content import Look
from msvit.inside import ImageLook
from msvit.inside.look import NEURONS

_BAND = NEURONS + 1  # rows of a layer: its neurons, and a line between it and the next


def spikes_of_image(look: Look, image: ImageLook) -> Figure:
    """A band per layer: some of its neurons, its rate in each step, the share that fires at all.

    In a single time step all neurons that fire look alike: then there is no raster.
    """
    layers = in_reading_order(list(image.spikes))
    seen = [image.spikes[layer] for layer in layers]
    steps = len(seen[0].rate)
    rates = np.stack([one.rate for one in seen])
    rows = np.full((_BAND * len(seen), steps), np.nan)
    for place, one in enumerate(seen):
        rows[_BAND * place : _BAND * place + len(one.raster)] = one.raster
    with style():
        figure = Figure(figsize=(5.6, 1.2 + 0.17 * len(seen)))
        FigureCanvasAgg(figure)
        widths = [1.2, 1.2, 0.9] if steps > 1 else [1.2, 0.9]
        panels = figure.subplots(1, len(widths), width_ratios=widths)
        box = (-0.5, steps - 0.5, len(seen) - 0.5, -0.5)
        *rasters, heat, active = panels
        drawn = heat.imshow(rates, vmin=0, aspect="auto", interpolation="nearest", extent=box)
        active.barh(range(len(seen)), [100 * one.active for one in seen], color="0.45", height=0.7)
        names = outline([look.words[layer] for layer in layers])
        for axes in panels:
            axes.set_ylim(len(seen) - 0.5, -0.5)
            axes.set_yticks(
                range(len(seen)), names if axes is panels[0] else [""] * len(seen), size=6
            )
            axes.tick_params(length=0)
            axes.grid(False)
        for axes in (*rasters, heat):
            _steps(axes, steps)
        for raster in rasters:
            look_of = {"cmap": "gray_r", "aspect": "auto", "interpolation": "nearest"}
            raster.imshow(rows, vmin=0, extent=box, **look_of)
            for edge in np.arange(0.5, len(seen) - 1):
                raster.axhline(edge, color="0.8", lw=0.4)
            raster.set_title(f"{NEURONS} neurons each")
        heat.set_title("spikes per neuron")
        active.set_title("fire at all")
        active.set_xlabel("share of neurons (%)")
        active.set_xlim(0, 100)
        active.spines["left"].set_visible(False)
        bar = figure.colorbar(drawn, ax=heat, aspect=40)
        bar.ax.tick_params(labelsize=6)
        read = "" if image.label == image.predicted else f", read as {image.predicted}"
        title = [
            f"{look.label}: which neurons fire, image {image.index}, class {image.label}{read}"
        ]
        if rasters:
            title.append(
                "The neurons are some of those that fire, evenly over all that do; dark: a spike."
            )
        entitle(figure, title)
    return figure


def _steps(axes: Axes, steps: int) -> None:
    axes.set_xticks(range(0, steps, math.ceil(steps / 8)))
    axes.set_xlabel("time step (from 0)")
