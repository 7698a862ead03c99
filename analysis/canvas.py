"""What all figures share: the style, an empty pair of axes, and an honest title."""

from __future__ import annotations

import logging
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from analysis.collect import StudyResults
from analysis.statistics import summarize

_LONGEST_SLUG = 60  # letters, of up to four bytes each; file systems take 255 bytes for a name
_LETTERS_OF_AN_INCH = 16.5  # of a title, on the mean
STYLE = Path(__file__).with_name("paper.mplstyle")
SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew", "Unifont"),
)
"""Families that hold what DejaVu Sans lacks, asked in this order where they are installed."""

_said: set[str] = set()  # letters that were reported missing
_log = logging.getLogger("msvit")


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's style inside of this block; letters of any installed script."""
    with mpl.rc_context(fname=STYLE), _missing_letters():
        mpl.rcParams["font.family"] = _families()
        yield


@cache
def _families() -> list[str]:
    installed = {font.name for font in fontManager.ttflist}
    return [*mpl.rcParams["font.sans-serif"], *(name for name in SCRIPTS if name in installed)]


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


@contextmanager
def _missing_letters() -> Iterator[None]:
    """Have one line say which letters no font has, in place of a warning per letter and figure."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = set()
    for warning in caught:
        if found := re.match(r"Glyph (\d+) .*missing from", str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if missing := missing - _said:
        _said.update(missing)
        letters = "".join(sorted(missing))
        _log.warning(
            "figures: no font here has the letters %s; install one that has, such as Noto Sans CJK",
            letters,
        )


def say(where: Axes | Figure, study: StudyResults, title: str, *remarks: str) -> None:
    """Title of a figure: what it shows, how, and why one should not believe it yet."""
    seeds = summarize(study, "test_accuracy")["n"]
    seeds = seeds[seeds > 0]
    lines = [f"{study.name}: {title}"]
    if len(seeds):
        few, many = seeds.min(), seeds.max()
        over = f"{many} seeds" if few == many else f"{few} to {many} seeds"
        # Figures of several panels have other points, or none.
        over += " (hollow: one seed)" if few == 1 and isinstance(where, Axes) else ""
        known = f"{remarks[0]} over {over}" if many > 1 else "one seed each: no spread is known"
        lines.append("; ".join([known, *remarks[1:]]))
    if len(study.unfinished):
        lines.append(f"unfinished: {len(study.unfinished)} of {len(study.cells)} cells are missing")
    entitle(where, lines)


def entitle(where: Axes | Figure, lines: Sequence[str]) -> Text:
    """Set a title of these lines, broken where they are wider than the figure.

    The figure's label is the first line, unbroken.
    """
    figure = where if isinstance(where, Figure) else cast(Figure, where.figure)
    figure.set_label(lines[0])
    room = int(_LETTERS_OF_AN_INCH * figure.get_figwidth())
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, room))
    if isinstance(where, Figure):  # of several panels
        return where.suptitle(text, x=0.01, ha="left", size=mpl.rcParams["axes.titlesize"])
    return where.set_title(text)


MARKERS = "osD^vPX*"
DASHES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def looks() -> list[dict[str, Any]]:
    """Colour and marker for one thing after another: told apart in grey as well."""
    colors = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    pairs = zip(colors * len(MARKERS), MARKERS * len(colors), strict=True)
    return [{"color": color, "marker": marker} for color, marker in pairs]


def keep_to_possible(axes: Axes, most: float = 100) -> None:
    """Nothing on the y axis that cannot be, such as a percentage above 100."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, most))


def width_for(labels: Iterable[str]) -> float:
    """Inches of a figure whose rows have these labels at their left: as others, or wider."""
    return max(mpl.rcParams["figure.figsize"][0], 3.0 + 0.055 * max(map(len, labels), default=0))


def slug(text: str) -> str:
    """``text`` as a part of a file name, or as much of it as a name has room for."""
    return re.sub(r"[\W_]+", "-", text).strip("-").lower()[:_LONGEST_SLUG]
