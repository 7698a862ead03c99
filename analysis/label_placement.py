"""Names written next to what they name, without overlaps.

Both functions place text on an axes whose data and layout are final, in the pixels of the
figure, so call them last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

DISTANCES = (5, 9, 16, 26, 38, 52)  # points between a mark and its label, nearest first
DIRECTIONS = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200)  # degrees, best first

_AXES = 0.75  # of a figure's height, at least


@dataclass(frozen=True)
class Mark:
    """A point in data units with the half-lengths of its error bars."""

    text: str
    x: float
    y: float
    xerr: float = 0.0
    yerr: float = 0.0
    color: Any = "black"


def label_marks(
    axes: Axes, marks: Sequence[Mark], lines: Sequence[tuple[float, float]] = (), size: float = 7
) -> None:
    """Write each mark's text beside it, off all marks, error bars, labels and ``lines``.

    ``lines`` are the corners of one polyline of horizontal and vertical pieces. Where the texts
    find no room, each mark gets a number instead, and a key right of the axes explains it.
    """
    figure = cast(Figure, axes.figure)  # there are no figures within figures
    figure.draw_without_rendering()
    if _place_all(axes, marks, lines, size):
        figure.set_layout_engine("none")  # placed labels must not move the axes again
        return
    key = [Line2D([], [], ls="none", label=f"{i}  {mark.text}") for i, mark in enumerate(marks, 1)]
    columns = math.ceil(len(key) * 1.6 * size / (72 * _AXES * figure.get_figheight()))
    shown = {"handlelength": 0, "handletextpad": 0, "ncols": columns}
    width, longest = figure.get_figwidth(), max(len(mark.text) for mark in marks) + 4
    # At least as wide as it takes, so that the axes keep their place until the room is known.
    figure.set_figwidth(width + columns * longest * size / 72)
    legend = figure.legend(handles=key, loc="outside right upper", **shown)
    figure.draw_without_rendering()
    room = legend.get_window_extent().width / figure.dpi
    figure.set_figwidth(width + room)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # Beside the axes, not beside the title: that may be as wide as the figure was.
    frame = axes.get_position()
    legend.set_loc("upper left")
    legend.set_bbox_to_anchor((frame.x1, frame.y1), figure.transFigure)
    numbers = [replace(mark, text=str(i)) for i, mark in enumerate(marks, 1)]
    if not _place_all(axes, numbers, lines, size):
        for mark in numbers:
            _annotate(axes, mark, size).set_position((3, 3))


def label_right(axes: Axes, marks: Sequence[Mark], size: float = 7) -> list[Annotation]:
    """Write the texts right of the axes at the heights of their marks, moved apart if needed."""
    figure = cast(Figure, axes.figure)  # there are no figures within figures
    labels = [
        axes.annotate(
            mark.text,
            (1, mark.y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            size=size,
            color=mark.color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "lw": 0.5,
                "color": mark.color,
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )
        for mark in sorted(marks, key=lambda mark: mark.y)
    ]
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    heights = [axes.transData.transform((0, label.xy[1]))[1] * points for label in labels]
    for label, old, new in zip(labels, heights, _apart(heights, 1.35 * size), strict=True):
        label.xyann = (12, new - old)
    return labels


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights moved as little as possible until neighbours are ``gap`` apart."""
    groups = [(height, 1) for height in heights]  # mean height and size of each stack
    while True:
        for i, ((low, below), (high, above)) in enumerate(pairwise(groups)):
            if high - low < gap * (below + above) / 2 - 1e-9:
                count = below + above
                groups[i : i + 2] = [((low * below + high * above) / count, count)]
                break
        else:
            return [
                center + gap * (place - (count - 1) / 2)
                for center, count in groups
                for place in range(count)
            ]


def _place_all(
    axes: Axes, marks: Sequence[Mark], lines: Sequence[tuple[float, float]], size: float
) -> bool:
    """Label all marks off everything else, or, if that cannot be, none of them."""
    taken = [box for mark in marks for box in _boxes(axes, mark)]
    taken += [_span(axes, *ends) for ends in pairwise(lines)]
    artists: list[Annotation] = []
    labels: list[Bbox] = []
    # Crowded marks choose first: they have the fewest free places.
    for mark in sorted(marks, key=lambda mark: -_neighbours(axes, mark, marks)):
        label = _annotate(axes, mark, size)
        artists.append(label)
        offset = _free_place(axes, label, taken, labels)
        if offset is None:
            for artist in artists:
                artist.remove()
            return False
        labels.append(_extent(label))
        taken.append(labels[-1])
        if math.hypot(*offset) > DISTANCES[1]:
            artists.append(_leader(axes, mark, offset))
            taken += _trail(axes, (mark.x, mark.y), offset)
    return True


def _annotate(axes: Axes, mark: Mark, size: float) -> Annotation:
    return axes.annotate(
        mark.text,
        (mark.x, mark.y),
        xytext=(0, 0),
        textcoords="offset points",
        size=size,
        color=mark.color,
    )


def _free_place(
    axes: Axes, label: Annotation, taken: Sequence[Bbox], labels: Sequence[Bbox]
) -> tuple[float, float] | None:
    """Move ``label`` to the nearest place off all ``taken`` and with no label on its leader.

    Returns its offset in points, or None if there is no such place.
    """
    frame = axes.get_window_extent()
    for distance in DISTANCES:
        for degrees in DIRECTIONS:
            dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            label.set_horizontalalignment(
                "left" if dx > 0.5 else "right" if dx < -0.5 else "center"
            )
            label.set_verticalalignment("bottom" if dy > 0.5 else "top" if dy < -0.5 else "center")
            offset = (distance * dx, distance * dy)
            label.set_position(offset)
            box = _extent(label)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside &= frame.y0 <= box.y0 and box.y1 <= frame.y1
            trail = _trail(axes, label.xy, offset)
            crossed = any(dot.overlaps(other) for dot in trail for other in labels)
            if inside and not crossed and not any(box.overlaps(other) for other in taken):
                return offset
    return None


def _trail(axes: Axes, place: tuple[float, float], offset: tuple[float, float]) -> list[Bbox]:
    """Dots along the line from a place in data units to ``offset`` points from it."""
    x, y = axes.transData.transform(place)
    scale = axes.figure.dpi / 72
    ends = [(x + offset[0] * scale * i / 8, y + offset[1] * scale * i / 8) for i in range(1, 8)]
    return [Bbox.from_bounds(a - 1, b - 1, 2, 2) for a, b in ends]


def _leader(axes: Axes, mark: Mark, offset: tuple[float, float]) -> Annotation:
    """A thin line from a mark to a label that could not stand right beside it."""
    return axes.annotate(
        "",
        (mark.x, mark.y),
        xytext=offset,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": mark.color, "shrinkA": 0, "shrinkB": 3},
    )


def _extent(label: Annotation) -> Bbox:
    canvas = cast(FigureCanvasAgg, label.figure.canvas)  # of all figures here
    return label.get_window_extent(canvas.get_renderer())


def _boxes(axes: Axes, mark: Mark) -> list[Bbox]:
    """The pixels of a marker and of its error bars."""
    across = _span(axes, (mark.x - mark.xerr, mark.y), (mark.x + mark.xerr, mark.y), 2.5)
    along = _span(axes, (mark.x, mark.y - mark.yerr), (mark.x, mark.y + mark.yerr), 2.5)
    return [_span(axes, (mark.x, mark.y), (mark.x, mark.y), 3), across, along]


def _span(axes: Axes, start: tuple[float, float], end: tuple[float, float], pad: float = 1) -> Bbox:
    """The pixels of a horizontal or vertical piece in data units, ``pad`` points wider."""
    box = Bbox(axes.transData.transform([start, end]))
    return Bbox.from_extents(box.xmin, box.ymin, box.xmax, box.ymax).padded(
        pad * axes.figure.dpi / 72
    )


def _neighbours(axes: Axes, mark: Mark, marks: Sequence[Mark]) -> int:
    here = axes.transData.transform((mark.x, mark.y))
    places = [axes.transData.transform((other.x, other.y)) for other in marks]
    return sum(math.dist(here, place) < 0.8 * axes.figure.dpi for place in places)
