"""Maps in rows and columns, those that are compared on one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.canvas import entitle, style

# Inches. Every panel has its place, so that maps are of one size whatever stands around them.
_SIDE, _GAP = 0.66, 0.05  # of a map, and between two
_APART = 0.16  # between columns of different bars
_LETTER, _LINE = 0.055, 0.137  # of a label, of the title
_ABOVE, _BELOW = 0.24, 0.62  # the names of columns; the colour bars
_BAR = 0.07
_NARROWEST = 4.4


@dataclass(frozen=True)
class Column:
    """Maps ``[H, W]``, one in each row, or pictures ``[H, W, 3]``.

    Neighbours with the same ``bar`` share a colour scale, from 0 to their highest value, and a bar
    of that label. Without one they are pictures, each from its darkest to its brightest.
    """

    title: str
    maps: Sequence[np.ndarray]
    bar: str = ""


def map_grid(rows: Sequence[str], columns: Sequence[Column], title: Sequence[str]) -> Figure:
    """A row of maps for each of the labels ``rows``, below the lines of ``title``."""
    groups = [list(same) for _, same in groupby(columns, lambda column: column.bar)]
    labels = 0.2 + _LETTER * max(len(line) for label in rows for line in label.split("\n"))
    across = len(columns) * (_SIDE + _GAP) + (len(groups) - 1) * _APART
    with style():
        width = max(_NARROWEST, labels + across + 0.15)
        figure = Figure(figsize=(width, 1))
        figure.set_layout_engine("none")
        FigureCanvasAgg(figure)
        words = entitle(figure, title)
        lines = words.get_text().count("\n") + 1
        down = len(rows) * (_SIDE + _GAP)
        height = 0.15 + _LINE * lines + _ABOVE + down + _BELOW
        figure.set_size_inches(width, height)
        words.set_y(1 - 0.06 / height)

        def panel(left: float, bottom: float, wide: float, high: float) -> Axes:
            return figure.add_axes((left / width, bottom / height, wide / width, high / height))

        left = labels
        for group in groups:
            top = _highest(group) if group[0].bar else None
            start = left
            for column in group:
                axes = panel(left, _BELOW, _SIDE, down)
                drawn = _maps(axes, column, rows if column is columns[0] else None, top)
                left += _SIDE + _GAP
            if top is not None:
                axes = panel(start, _BELOW - 0.12 - _BAR, left - _GAP - start, _BAR)
                _bar(figure, axes, drawn, group)
            left += _APART
    return figure


def _highest(columns: Sequence[Column]) -> float:
    return max(float(values.max()) for column in columns for values in column.maps) or 1.0


def _maps(axes: Axes, column: Column, labels: Sequence[str] | None, top: float | None) -> AxesImage:
    """Maps one below the other; the last of them, for a colour bar."""
    look: dict[str, Any] = {"cmap": "gray"} if top is None else {"vmin": 0, "vmax": top}
    pitch = _SIDE + _GAP
    for row, values in enumerate(column.maps):
        box = (0, _SIDE, row * pitch + _SIDE, row * pitch)
        drawn = axes.imshow(values, extent=box, aspect="auto", interpolation="nearest", **look)
        axes.add_patch(Rectangle((0, row * pitch), _SIDE, _SIDE, fill=False, ec="0.5", lw=0.4))
    axes.set_xlim(0, _SIDE)
    axes.set_ylim(len(column.maps) * pitch, 0)
    axes.set_xticks([])
    places = [row * pitch + _SIDE / 2 for row in range(len(labels or ()))]
    axes.set_yticks(places, labels or [], size=6.5)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(column.title, loc="center", size=7, pad=3)
    return drawn


def _bar(figure: Figure, axes: Axes, drawn: AxesImage, group: Sequence[Column]) -> None:
    bar = figure.colorbar(drawn, cax=axes, orientation="horizontal")
    bar.locator = MaxNLocator(2 * min(len(group), 2), steps=[1, 2, 5, 10])
    bar.ax.tick_params(labelsize=6, length=2)
    bar.set_label(group[0].bar, size=6)
    bar.outline.set_linewidth(0.4)


def picture(pixels: np.ndarray) -> np.ndarray:
    """Bytes ``[C, H, W]`` as ``[H, W]`` or ``[H, W, 3]``; events ``[T, C, H, W]`` summed up."""
    if pixels.ndim == 4:
        return pixels.sum((0, 1), dtype=np.int64)
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.sum(0, dtype=np.int64)
