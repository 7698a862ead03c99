"""The frames of a study as Parquet files, which pandas, R, DuckDB and Polars read without us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.collect import StudyResults
from analysis.layers import layers


def write_frames(study: StudyResults, folder: Path) -> list[Path]:
    """Write ``cells``, ``history``, ``firing``, ``operations`` and ``layers`` as ``.parquet``.

    Columns and units are those of :mod:`analysis.collect` and :func:`analysis.layers.layers`. A
    column of tuples becomes one of lists, and one of several types its text: files have one type a
    column.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {
        "cells": study.cells,
        "history": study.history,
        "firing": study.firing,
        "operations": study.operations,
        "layers": layers(study),
    }
    paths = []
    for name, frame in frames.items():
        paths.append(folder / f"{name}.parquet")
        frame.apply(_of_one_type).to_parquet(paths[-1], index=False)
    return paths


def _of_one_type(column: pd.Series) -> pd.Series:
    known = column.dropna()
    if column.dtype != object or known.empty:
        return column
    if known.map(lambda value: isinstance(value, tuple)).all():
        items = {type(item) for value in known for item in value}
        if len(items) <= 1:
            return column.map(list, na_action="ignore")
    elif known.map(type).nunique() == 1:
        return column
    return column.map(_text, na_action="ignore")


def _text(value: Any) -> str:
    return ",".join(map(_text, value)) if isinstance(value, tuple) else str(value)
