"""Which configurations of a study form a line over one of its axes, and which stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis.collect import StudyResults


def counted(values: Sequence[Any]) -> bool:
    """Whether the values are tuples of different lengths, so that the length says it all."""
    return (
        bool(values)
        and all(isinstance(value, tuple) for value in values)
        and len({len(value) for value in values}) == len(values)
    )


def numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


@dataclass(frozen=True)
class Series:
    """Configurations that differ in the axis only, in grid order."""

    label: str
    groups: tuple[str, ...]
    values: tuple[Any, ...]


def axis_series(study: StudyResults, axis: str) -> tuple[list[Series], list[str]]:
    """Lines over ``axis`` (a dotted option name), and the finished configurations on none.

    Two configurations are on one line if all their other options are equal, or, where that
    connects nothing, if they have the same model (options may depend on the axis) and the same
    values on the other axes. Those with
    a value of their own but nothing to connect to are baselines, like those without a value.
    """
    finished = study.finished.drop_duplicates("group").set_index("group")
    axis = axis.removesuffix(".name")  # cells call model.name "model"
    if axis not in finished:
        return [], list(finished.index)
    valued = finished[finished[axis].notna()]
    names = [column for column in ("model", "data") if column != axis]
    others = [column for column in finished if "." in column and column != axis]
    series = _connected(valued, [*names, *others], axis)
    if not any(len(line.groups) > 1 for line in series):
        varied = [a.removesuffix(".name") for a in study.axes]
        varied = [a for a in varied if a in finished and a not in (axis, *names)]
        series = _connected(valued, [*names, *varied], axis)
    if any(len(line.groups) > 1 for line in series):
        series = [line for line in series if len(line.groups) > 1]
    on_lines = {group for line in series for group in line.groups}
    return series, [group for group in finished.index if group not in on_lines]


def joined(study: StudyResults, groups: Sequence[str]) -> list[list[str]]:
    """``groups`` in runs, each of neighbours along one axis whose values have an order."""
    beside = {
        pair
        for axis in study.axes
        for line in axis_series(study, axis)[0]
        if numeric(line.values) or counted(line.values)
        for pair in pairwise(line.groups)
    }
    runs: list[list[str]] = []
    for group in groups:
        if runs and (runs[-1][-1], group) in beside:
            runs[-1].append(group)
        else:
            runs.append([group])
    return runs


def _connected(valued: pd.DataFrame, same: list[str], axis: str) -> list[Series]:
    lines: dict[tuple[str, ...], list[str]] = {}
    for group, row in valued.iterrows():
        lines.setdefault(tuple(str(row[column]) for column in same), []).append(str(group))
    return [
        Series(_common(groups), tuple(groups), tuple(valued.loc[groups, axis]))
        for groups in lines.values()
        if valued.loc[groups, axis].is_unique
    ]


def _common(labels: list[str]) -> str:
    """The words that all labels share: ``msvit`` of ``msvit scales=1`` and ``msvit scales=1,3``."""
    words = labels[0].split()
    shared = [word for word in words if all(word in label.split() for label in labels)]
    return " ".join(shared) or labels[0]
