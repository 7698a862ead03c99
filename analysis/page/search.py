"""A search as a part of a page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from matplotlib.figure import Figure

from analysis.page.content import Part, Run, grid_of
from analysis.page.figure_data import csv_of
from analysis.page.pictures import pictures_of
from analysis.search import Search
from analysis.search_report import trial_table
from msvit.records.energy_choice import EnergyChoice
from msvit.records.measures import all_measures

_STATES = ("complete", "stopped", "failed", "running", "waiting")


def search_part(
    search: Search, figures: Mapping[str, Figure], energy: EnergyChoice, share: float = 1
) -> Part:
    """All that a page shows of a search, on this share of its room."""
    counts = search.trials["state"].value_counts()
    # Each figure shows the trials by some of their columns; history shows them epoch by epoch.
    frames = {**dict.fromkeys(figures, search.trials), "history": search.curves}
    data = {name: csv_of(frame) for name, frame in frames.items() if len(frame)}
    pictures, left_out = pictures_of(figures, data, share)
    front = trial_table(search, list(search.front["number"]), energy=energy)
    trials = trial_table(search, energy=energy)
    grids = (
        grid_of("front", replace(front, caption="On the Pareto front.")),
        grid_of("trials", replace(trials, caption="Every trial."), said=front.notes),
    )
    return Part(
        kind="search",
        name=search.name,
        question=search.question,
        states=tuple((state, int(counts[state])) for state in _STATES if state in counts),
        planned=max(search.budget, len(search.trials)),
        answer=tuple(_answer(search)),
        warnings=(),
        grids=grids,
        # Their own titles tell what is in them, not what they are.
        pictures=tuple(replace(picture, title=picture.name) for picture in pictures),
        runs=tuple(_runs(search)),
        commands=(
            shlex.join(["python", "studies/hpo.py", "--space", search.name]),
            shlex.join(["python", "analysis/search_report.py", "--space", search.name]),
        ),
        left_out=tuple(left_out),
    )


def _answer(search: Search) -> list[str]:
    """The best trials, and why they are not the last word."""
    front = search.front
    if front.empty:
        return ["Nothing can be said yet: no trial has ended with a result that is allowed."]
    measures = all_measures()
    first = front.iloc[0]
    told = ", ".join(measures[name].text(float(first[name])) for name in search.objectives)
    several = len(search.objectives) > 1
    found = [f"Trial {first['number']} has the best {measures[search.primary].label}: {told}."]
    if several:
        trials = "trial is" if len(front) == 1 else "trials are"
        found.append(
            f"{len(front)} {trials} on the Pareto front: no other one is at least as good in "
            "everything and better in something."
        )
    return [
        *found,
        "The best of many trials is partly luck, and none of these numbers says how much: run the "
        "best again with fresh seeds.",
    ]


def _runs(search: Search) -> list[Run]:
    """Trials that failed, each with why; the table of trials tells of the others."""
    failed = search.trials[search.trials["state"] == "failed"]
    return [
        Run(f"trial {row.number}", "", "failed", problem=row.problem) for row in failed.itertuples()
    ]
