"""Several studies and searches on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.drawn import Drawn
from analysis.page.render import write_page
from analysis.page.search import search_part
from analysis.page.study import study_part
from analysis.search import Search
from analysis.search_figures import draw_search_figures
from msvit.records.energy_choice import EnergyChoice


def write_pages(
    drawn: Sequence[Drawn], searches: Sequence[Search], energy: EnergyChoice, folder: Path
) -> Path:
    """Write ``report.html`` in ``folder``, with as much room for each; returns its path."""
    share = 1 / (len(drawn) + len(searches))
    parts = [study_part(each, share) for each in drawn]
    parts += [search_part(each, draw_search_figures(each), energy, share) for each in searches]
    return write_page(parts, folder)
