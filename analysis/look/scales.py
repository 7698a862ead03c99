"""How much each scale says: votes, decisions, and what they tell of the class."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import MARKERS, entitle, style
from analysis.look.content import Look, branch_words
from analysis.look.frames import scale_rows

MOST_CLASSES = 20
"""On an axis; of more, votes by class are in the frames only."""

_BARS = {
    "vote_share": "share of\nall votes (%)",
    "kept_alone": "kept if it\nalone voted (%)",
    "changed_without": "changed\nwithout it (%)",
    "class_share": "explained\nby class (%)",
}


def weight_of_scales(look: Look, layer: str) -> Figure | None:
    """Bars of each scale's part, and its number of votes by class; of more than one scale."""
    seen = look.survey.layers[layer]
    if not seen.pairs:
        return None
    rows = scale_rows(seen)
    names = [branch_words(name) for name in seen.branches]
    classes = [c for c in range(len(seen.class_masks)) if not np.isnan(seen.class_masks[c]).any()]
    by_class = len(classes) <= MOST_CLASSES
    with style():
        figure = Figure(figsize=(5.6, 1.35 + 0.2 * len(rows) + (1.75 if by_class else 0)))
        FigureCanvasAgg(figure)
        ratios = [0.35 + 0.2 * len(rows), 1.6] if by_class else [1.0]
        grid = figure.add_gridspec(len(ratios), len(_BARS), height_ratios=ratios)
        for place, (column, label) in enumerate(_BARS.items()):
            axes = figure.add_subplot(grid[0, place])
            line = 100 * seen.kept if column == "kept_alone" else None
            _bars(axes, names, 100 * rows[column].to_numpy(), label, place == 0, line)
        if by_class:
            _by_class(figure.add_subplot(grid[1, :]), seen.class_maps[classes], classes, names)
        title = [f"{look.label}: what each scale weighs, {look.words[layer].words}"]
        title.append(
            f"Over {look.seen}. Kept, changed: of all decisions (a token of a head in a time "
            "step); dashed: what the mask of all keeps. Explained by class: of the variation of "
            "an image's number of votes."
        )
        entitle(figure, title)
    return figure


def _bars(
    axes: Axes,
    names: list[str],
    values: np.ndarray,
    label: str,
    first: bool,
    line: float | None,
) -> None:
    places = np.arange(len(names))
    known = np.nan_to_num(values)
    axes.barh(places, known, color=[f"C{i % 7}" for i in places], height=0.6)
    for place, value in enumerate(values):
        text = "none vary" if np.isnan(value) else f"{value:.1f}"
        # In a column of its own, where neither bars nor the line are.
        aside = axes.get_yaxis_transform()
        axes.text(1.03, place, text, va="center", size=6, transform=aside)
    axes.set_yticks(places, names if first else [""] * len(names))
    axes.invert_yaxis()
    axes.set_xlim(0, min(100, max(1.05 * known.max(), 1.05 * (line or 0), 1e-9)))
    if line is not None:
        axes.axvline(line, color="0.3", ls="--", lw=0.9)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _by_class(axes: Axes, maps: np.ndarray, classes: list[int], names: list[str]) -> None:
    votes = maps.mean((2, 3))  # [K, S]
    shift = 0.5 / max(len(names), 2)
    for i, name in enumerate(names):
        places = np.arange(len(classes)) + shift * (i - (len(names) - 1) / 2)
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(places, votes[:, i], marker=marker, ls="none", ms=4, label=name, clip_on=False)
    axes.set_xticks(range(len(classes)), [str(c) for c in classes])
    axes.set_xlabel("class")
    axes.set_ylabel("votes for a token")
    axes.set_ylim(0, 1.1 * max(float(votes.max()), 1e-9))
    axes.legend(ncols=min(len(names), 8), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
