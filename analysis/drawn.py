"""A study as a reader has asked to see it, with its tables and figures: each is made once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from analysis.collect import StudyResults
from analysis.study_tables import study_tables
from analysis.tables import Table
from analysis.view import USUAL, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """What all files of a report are written from."""

    study: StudyResults
    view: View = USUAL

    @cached_property
    def tables(self) -> dict[str, Table]:
        """By the names of their files, in reading order.

        Raises:
            RecordError: if the baseline is no configuration of the study.
        """
        return study_tables(self.study, self.view)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """By the names of their files, in reading order."""
        from analysis.figures import draw_figures  # matplotlib takes a second to load

        return draw_figures(self.study, self.view)
