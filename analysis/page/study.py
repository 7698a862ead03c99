"""A study as a part of a page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.collect import StudyResults
from analysis.drawn import Drawn
from analysis.page.answer import answer
from analysis.page.content import Part, Run, grid_of
from analysis.page.figure_data import data_of_figures
from analysis.page.inside import insides_of
from analysis.page.pictures import pictures_of, room_left
from analysis.study_tables import value_label
from analysis.view import USUAL, View
from msvit.cells import SECTIONS

_TAIL = 15  # lines of a log
_LONGEST_LINE = 300
_READ = 1 << 16  # bytes of its end
_MOST_LOGS = 1_000_000
"""Characters of the logs of a study, of the page's 5 MB. Those of failed cells come first."""
_STATES = ("finished", "failed", "missing")


def study_part(drawn: Drawn, share: float = 1) -> Part:
    """All that a page shows of a study, on this share of its room."""
    study, view = drawn.study, drawn.view
    said = tuple(answer(study, view))
    data = data_of_figures(study, view, drawn.figures, drawn.tables)
    pictures, left_out = pictures_of(drawn.figures, data, share)
    insides, unseen, broken = insides_of(study, room_left(pictures, share))
    shared, own = _settings(study)
    counts = Counter(study.cells["status"])
    return Part(
        kind="study",
        name=study.name,
        question=study.question,
        states=tuple((state, counts[state]) for state in _STATES if counts[state]),
        planned=len(study.cells),
        answer=said,
        warnings=(*study.warnings, *broken),
        grids=tuple(grid_of(stem, table, said) for stem, table in drawn.tables.items()),
        pictures=tuple(pictures),
        runs=tuple(_runs(study, own, share)),
        shared=shared,
        places=tuple(places(study)),
        commands=tuple(commands(study, view)),
        left_out=tuple(left_out),
        insides=tuple(insides),
        insides_left_out=tuple(unseen),
    )


Settings = tuple[tuple[str, str], ...]


def _settings(study: StudyResults) -> tuple[Settings, list[Settings]]:
    """Options that all cells share, and those of each cell that others have not or have otherwise.

    Nothing is known of the options of cells that are missing.
    """
    names = [
        name
        for name in study.cells
        if name.partition(".")[0] in SECTIONS and study.cells[name].notna().any()
    ]
    known = study.cells[study.cells["status"] != "missing"][names].map(_shown)
    same = [name for name in names if known[name].nunique(dropna=False) == 1 and len(known) > 1]
    shared = tuple((name, str(known[name].iloc[0])) for name in same)
    own = [name for name in names if name not in same]
    found = []
    for place in study.cells.index:
        row = known.loc[place, own] if place in known.index else pd.Series(dtype=object)
        found.append(tuple((name, text) for name, text in row.items() if text))
    return shared, found


def _shown(value: Any) -> str:
    # A column with gaps has made floats of whole numbers: both are shown alike.
    if not isinstance(value, tuple) and pd.isna(value):
        return ""
    return value_label(value)


def _runs(study: StudyResults, own: Iterable[Settings], share: float) -> list[Run]:
    """The cells, those without a result first."""
    order = {"failed": 0, "missing": 1, "finished": 2}
    rows = sorted(
        zip(study.cells.to_dict("records"), own, strict=True), key=lambda r: order[r[0]["status"]]
    )
    runs: list[Run] = []
    room = share * _MOST_LOGS
    for cell, settings in rows:
        log, cut = _tail(cell["log"]) if room > 0 else ("", True)
        room -= len(log)
        accuracy = cell["test_accuracy"]
        runs.append(
            Run(
                label=cell["label"],
                id=cell["id"],
                state=cell["status"],
                result="" if pd.isna(accuracy) else f"{100 * accuracy:.2f} %",
                problem="" if pd.isna(cell["problem"]) else cell["problem"],
                settings=settings,
                log=log,
                cut=cut,
            )
        )
    return runs


def _tail(path: str | None) -> tuple[str, bool]:
    """The last lines of a log, and whether there are more."""
    if path is None or pd.isna(path):
        return "", False
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - _READ)
            file.seek(start)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "", False
    shown = [line[:_LONGEST_LINE] for line in lines[-_TAIL:]]
    return "\n".join(shown), start > 0 or len(lines) > _TAIL


def places(study: StudyResults) -> list[tuple[int, Settings]]:
    """What cells were trained on and with, and how many.

    The first entry is what all have in common; the others are what some have otherwise.
    """
    finished = study.finished
    columns = [name for name in finished if name.startswith("environment.")]
    columns = ["precision", *(c for c in columns if c != "environment.finished_at")]
    found = finished.reindex(columns=columns).map(_shown)
    found.columns = [name.removeprefix("environment.") for name in columns]
    same = [name for name in found if found[name].nunique() == 1]
    others = [name for name in found if name not in same]
    told = [(len(found), _told(found[same]))] if len(found) and same else []
    if others:
        groups = found.groupby(others, sort=False)
        told += [(len(rows), _told(rows[others])) for _, rows in groups]
    return told


def _told(rows: pd.DataFrame) -> Settings:
    """What rows that are all alike say."""
    return tuple((str(name), text) for name, text in rows.iloc[0].items() if text)


def commands(study: StudyResults, view: View) -> list[str]:
    """What makes the study again, from the version of the code that all its cells were made by."""
    grid = Path(study.grid_file)
    ours = grid.parent.parts[-2:] == ("studies", "grids")
    words = ["python", "studies/run.py", "--grid", grid.stem if ours else str(grid)]
    for override in study.overrides:
        words += ["--set", override]
    seeds = [sorted(rows) for _, rows in study.cells.groupby("group")["seed"]]
    if all(found == list(range(len(seeds[0]))) for found in seeds):
        words += ["--seeds", str(len(seeds[0]))]
    shown = ["python", "analysis/report.py", "--grid", study.name]
    asked = [] if view.baseline is None else ["--baseline", view.baseline]
    if view.energy.models != USUAL.energy.models:
        asked += ["--energy", ",".join(view.energy.models)]
    words += asked
    shown += asked
    found = [shlex.join(words), shlex.join(shown)]
    commits = set(study.finished.get("environment.commit", pd.Series(dtype=object)).dropna())
    if len(commits) == 1 and "-" not in (commit := str(commits.pop())):
        found.insert(0, shlex.join(["git", "checkout", commit]))
    return found
