"""What all figures share: the style, an empty pair of axes, and an honest title."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.collect import StudyResults
from analysis.statistics import summarize

_LONGEST_SLUG = 80  # file systems take 255 bytes for the whole name
STYLE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's style inside of this block."""
    with mpl.rc_context(fname=STYLE):
        yield


def canvas() -> tuple[Figure, Axes]:
    """A figure of the style's size with one pair of axes, outside of pyplot."""
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as ``<name>.png`` and ``.pdf``; returns the PNG files in their order.

    ``folder`` then holds these figures only: PNG and PDF files of other names are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.pdf")):
        if old.stem not in figures:
            old.unlink()
    with style():
        for name, figure in figures.items():
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not once more for each format
            for suffix in (".pdf", ".png"):
                # Without a creation date the same records give the same bytes.
                metadata = {"CreationDate": None} if suffix == ".pdf" else None
                figure.savefig(folder / (name + suffix), metadata=metadata)
    return [folder / f"{name}.png" for name in figures]


def say(axes: Axes, study: StudyResults, title: str, *remarks: str) -> None:
    """Title of a figure: what it shows, how, and why one should not believe it yet."""
    seeds = summarize(study, "test_accuracy")["n"]
    seeds = seeds[seeds > 0]
    lines = [f"{study.name}: {title}"]
    if len(seeds):
        few, many = seeds.min(), seeds.max()
        over = f"{many} seeds" if few == many else f"{few} to {many} seeds"
        over += " (hollow: one seed)" if few == 1 else ""
        known = f"{remarks[0]} over {over}" if many > 1 else "one seed each: no spread is known"
        lines.append("; ".join([known, *remarks[1:]]))
    if len(study.unfinished):
        lines.append(f"unfinished: {len(study.unfinished)} of {len(study.cells)} cells are missing")
    axes.set_title("\n".join(lines))
    if study.finished.empty:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finished cell yet", transform=axes.transAxes, ha="center", size=9)


def slug(text: str) -> str:
    """``text`` as a part of a file name, or as much of it as a name has room for."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:_LONGEST_SLUG]
