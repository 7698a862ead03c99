"""Main effects and interactions of a factorial grid: what each change does, and whether they add.

A grid of two or more axes has a configuration for every combination of their values. The *main
effect* of a value is what it changes against the first value of its axis, on the mean over all
combinations of the others. The *interaction* of two values is by how much the effect of the one
differs where the other is set, again on that mean; 0 where effects add up. Interactions of three
and more values are not told. All effects of a study on one measure are one family
(:func:`analysis.contrasts.judge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pandas as pd

from analysis.collect import StudyResults
from analysis.comparisons import resolution
from analysis.contrasts import fit, judge
from analysis.statistics import by_seed

Weights = dict[str, float]
Changes = tuple[tuple[str, Any], ...]
"""Option and value of each thing that is changed."""


@dataclass(frozen=True)
class Effect:
    """One contrast of the grid's configurations.

    Attributes:
        changes: option and value, one of a main effect and two of an interaction.
        weights: of the configurations, by label.
    """

    changes: Changes
    weights: Weights


def effects(study: StudyResults, column: str) -> pd.DataFrame:
    """Effects of all axes of a grid on one measure, main effects first.

    Returns:
        One row per effect with changes (see :class:`Effect`) and what
        :func:`analysis.contrasts.judge` tells; no rows where :func:`why_none` says why.
    """
    if why_none(study):
        return pd.DataFrame()
    planned = plan(study)
    names = [str(number) for number in range(len(planned))]
    groups = list(dict.fromkeys(group for effect in planned for group in effect.weights))
    family = {name: effect.weights for name, effect in zip(names, planned, strict=True)}
    found = judge(fit(by_seed(study, column)[groups]), family, resolution(study, column))
    found.insert(0, "changes", [effect.changes for effect in planned])
    return found.reset_index(drop=True)


def why_none(study: StudyResults) -> str:
    """Why a study has no effects to tell, in a sentence; empty where it has."""
    axes = _levels(study)
    told = study.cells.dropna(subset="model")["group"].nunique()
    # Of other configurations it is not known yet which options they have.
    if len(study.axes) > 1 and told < len(study.groups):
        return (
            "Main effects need a result of every combination of the axes: "
            f"{told} of {len(study.groups)} configurations have one."
        )
    if len(axes) < 2:
        return "Main effects need a grid of two or more axes."
    wanted, known = list(product(*axes.values())), _corners(study, list(axes))
    finished = set(study.finished["group"])
    there = sum(known.get(corner) in finished for corner in wanted)
    if there < len(wanted):
        return (
            "Main effects need a result of every combination of the axes: "
            f"{there} of {len(wanted)} have one."
        )
    return ""


def plan(study: StudyResults) -> list[Effect]:
    """All main effects of a complete grid, then the interactions of each two of its values."""
    axes = _levels(study)
    corners = _corners(study, list(axes))
    changes = [(axis, value) for axis, values in axes.items() for value in values[1:]]
    several: list[Changes] = [(change,) for change in changes]
    several += [pair for pair in combinations(changes, 2) if pair[0][0] != pair[1][0]]
    return [Effect(chosen, _weights(chosen, axes, corners)) for chosen in several]


def _weights(
    changes: Changes,
    axes: Mapping[str, list[Any]],
    corners: Mapping[tuple[Any, ...], str],
) -> Weights:
    """Each changed axis counts + at the value and − at its first one; the others are averaged."""
    chosen, weights = dict(changes), {}
    for corner in product(*axes.values()):
        weight = 1.0
        for (axis, values), value in zip(axes.items(), corner, strict=True):
            if axis not in chosen:
                weight /= len(values)
            elif value != chosen[axis]:
                weight *= -1 if value == values[0] else 0
        if weight:
            weights[corners[corner]] = weight
    return weights


def _levels(study: StudyResults) -> dict[str, list[Any]]:
    """The values of each axis that has several, in grid order, by the column of ``cells``."""
    known = study.cells.drop_duplicates("group")
    columns = [axis.removesuffix(".name") for axis in study.axes]  # cells call model.name "model"
    levels = {c: list(known[c].dropna().unique()) for c in columns if c in known}
    return {column: values for column, values in levels.items() if len(values) > 1}


def _corners(study: StudyResults, axes: list[str]) -> dict[tuple[Any, ...], str]:
    """The configuration of each combination: the first one, since what is included comes after."""
    rows = study.cells.drop_duplicates("group").dropna(subset=axes)
    corners: dict[tuple[Any, ...], str] = {}
    for group, *values in rows[["group", *axes]].itertuples(index=False):
        corners.setdefault(tuple(values), group)
    return corners
