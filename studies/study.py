"""A study: the cells that answer one question, as a grid file (:mod:`studies.grids`) gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msvit.cells import SCHEMA, Cell
from studies.resources import NOTHING_SAID, Resources


@dataclass(frozen=True)
class StudyCell:
    """A cell's place in a study: ``group`` is its configuration, the same for all seeds.

    ``resources`` are what it runs on, which is no part of the cell.
    """

    cell: Cell
    group: str
    resources: Resources = NOTHING_SAID

    @property
    def label(self) -> str:
        return f"{self.group} seed {self.cell.seed}"


@dataclass(frozen=True)
class Study:
    """A grid file, expanded: its cells in the order in which they are run and shown."""

    name: str
    question: str
    grid_file: str
    axes: tuple[str, ...]
    cells: tuple[StudyCell, ...]
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def manifest(self) -> dict[str, Any]:
        """What ``study.json`` says (:class:`msvit.records.schema.Manifest`)."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "question": self.question,
            "grid_file": self.grid_file,
            "axes": list(self.axes),
            "overrides": list(self.overrides),
            "cells": [
                {"id": c.cell.id, "label": c.label, "group": c.group, "seed": c.cell.seed}
                for c in self.cells
            ],
        }


def show_value(value: Any) -> str:
    """An option's value as labels and listings show it: ``1,3``, ``yes``, ``none``."""
    if isinstance(value, list | tuple):
        return ",".join(show_value(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
