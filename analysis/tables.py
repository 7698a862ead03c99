"""The comparison table of a study: one row per configuration, in grid order.

:func:`compare` computes and rounds once; :mod:`analysis.formats` only dresses the result.
The numbers themselves, unrounded, are ``Table.numbers`` (and ``table.csv``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.collect import StudyResults
from analysis.notes import notes
from analysis.published import find_published, read_published
from analysis.statistics import interquartile, on_new_images, summarize
from analysis.view import USUAL, View, telling
from msvit.records.measures import all_energies, all_measures

NOTHING = "—"
_SCORE = "test_accuracy"
_NARROW = ("configuration", "accuracy", "firing", "energy", "top-1†")


@dataclass(frozen=True)
class Entry:
    """One field as shown: ``98.43`` with the detail ``± 0.21``; rank 1 is the best, 2 second."""

    text: str
    detail: str = ""
    rank: int = 0


@dataclass(frozen=True)
class Table:
    """A table ready to be shown.

    Attributes:
        name: of the study.
        caption: one sentence.
        numbers: one row per configuration, full precision; the columns name their units.
        columns: entries by their header, which has the unit; as many in each as there are rows.
        notes: sentences that belong under the table.
        ranked: whether marks mean best and second best of a column.
        left: the headers, beside the first, whose column is of words and not of numbers.
        narrow: the headers that fit one column of a two-column page; empty means all.
        blocks: the rows (from 0) that begin something else than the row before.
    """

    name: str
    caption: str
    numbers: pd.DataFrame
    columns: Mapping[str, Sequence[Entry]]
    notes: tuple[str, ...]
    ranked: bool = False
    left: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()

    @property
    def headers(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @cached_property
    def rows(self) -> tuple[tuple[Entry, ...], ...]:
        return tuple(zip(*self.columns.values(), strict=True))


def compare(study: StudyResults, view: View = USUAL) -> Table:
    """The main comparison of a study, from its finished cells."""
    numbers, sources = comparison_numbers(study)
    measures = all_measures()
    energies = energy_measures(study, view)
    of_energy = energy_unit(study, energies)

    def column(name: str, ranked: bool = False) -> tuple[str, list]:
        measure, values = measures[name], numbers[f"{name}_mean"]
        unit = of_energy if name in energies else measure.unit(values)
        best = (max if measure.better == "maximize" else min) if ranked else None
        shown = entries(values * measure.units[unit], measure.decimals, best=best)
        return measure.column(unit), shown

    columns = {
        "configuration": [Entry(group) for group in numbers["configuration"]],
        "accuracy (%)": _accuracy(numbers),
        **dict([column("firing_rate"), *(column(name, ranked=True) for name in energies)]),
        "parameters (M)": entries(numbers["parameters"].astype(float) / 1e6),
        **dict([column("training_seconds")]),
        "seeds": [
            Entry(f"{done}/{planned}")
            for done, planned in zip(numbers["seeds"], numbers["seeds_planned"], strict=True)
        ],
    }
    if sources:
        columns["top-1† (%)"] = entries(numbers["published_top1_percent"], 2)
        if numbers["published_energy_mj"].notna().any():
            ours = measures["energy_mj"]
            published = entries(numbers["published_energy_mj"] * ours.units[of_energy])
            columns[ours.column(of_energy, "energy†")] = published
    return Table(
        name=study.name,
        caption=study.question,
        numbers=numbers,
        columns=columns,
        notes=tuple(notes(study, sources, view.energy)),
        ranked=True,
        narrow=tuple(name for name in columns if name.partition(" ")[0] in _NARROW),
    )


def energy_measures(study: StudyResults, view: View) -> list[str]:
    """Measures of energy by the models that tell of the study (:func:`analysis.view.telling`)."""
    return [*telling(study, view.energy).measures]


def energy_unit(study: StudyResults, energies: Sequence[str]) -> str:
    """The unit of all these energies in all tables of a study, so that columns can be compared."""
    return all_measures()["energy_mj"].unit(study.finished[[*energies]].to_numpy(float).ravel())


def comparison_numbers(study: StudyResults) -> tuple[pd.DataFrame, dict[str, str]]:
    """The numbers of the table, and the source of each published figure by configuration.

    Returns:
        A frame with configuration, model, data, timesteps, seeds (finished), seeds_planned;
        ``*_mean`` and ``*_std`` of accuracy_percent, firing_rate (spikes per neuron and time
        step), energy_mj (per image; also under each further energy model, ``energy_mj:<model>``),
        training_seconds; accuracy_percent_low and _high (interval
        of the mean at level ``CONFIDENCE``), accuracy_percent_new_images_low and _high (the same
        for other test images); accuracy_percent_interquartile, _low and _high where there are seeds
        enough; parameters; published_top1_percent and
        published_energy_mj. Empty where there is no number.
    """
    finished = study.finished.drop_duplicates("group").set_index("group")
    planned = study.cells.groupby("group").size()
    accuracy = summarize(study, _SCORE)
    published, sources = read_published(), {}
    rows = []
    for group in study.groups:
        row = {"configuration": group, "model": None, "data": None, "timesteps": None}
        row |= {"seeds": accuracy["n"][group], "seeds_planned": planned[group]}
        if group in finished.index:
            cell = finished.loc[group]
            row |= {"model": cell["model"], "data": cell["data"]}
            row |= {"timesteps": cell.get("model.timesteps"), "parameters": cell["parameters"]}
            known = find_published(cell, published)
            if known is not None:
                sources[group] = f"{known['model']} ({known['source']})"
                row["published_top1_percent"] = known["top1"]
                row["published_energy_mj"] = known["energy_mj"]
        rows.append(row)
    numbers = pd.DataFrame(rows)
    for statistic in ("mean", "std", "low", "high"):
        numbers[f"accuracy_percent_{statistic}"] = 100 * accuracy[statistic].to_numpy()
    several = {"new_images": on_new_images(study), "interquartile": interquartile(study, _SCORE)}
    for name, found in several.items():
        for statistic, values in found.reindex(study.groups).items():
            column = name if statistic == "mean" else f"{name}_{statistic}"
            numbers[f"accuracy_percent_{column}"] = 100 * values.to_numpy()
    for column in ("firing_rate", *all_energies(), "training_seconds"):
        summary = summarize(study, column)
        for statistic in ("mean", "std"):
            numbers[f"{column}_{statistic}"] = summary[statistic].to_numpy()
    late = ["parameters", "published_top1_percent", "published_energy_mj"]
    numbers = numbers.reindex(columns=[*(c for c in numbers if c not in late), *late])
    types = dict.fromkeys(late, float) | {"parameters": "Int64", "timesteps": "Int64"}
    return numbers.astype(types), sources


def _accuracy(numbers: pd.DataFrame) -> list[Entry]:
    shown = entries(numbers["accuracy_percent_mean"], 2, best=max)
    details = []
    for seeds, std in zip(numbers["seeds"], numbers["accuracy_percent_std"], strict=True):
        details.append(f"± {std:.2f}" if seeds > 1 else "(one seed)" if seeds else "")
    return [Entry(e.text, d, e.rank) for e, d in zip(shown, details, strict=True)]


def entries(
    values: pd.Series, decimals: int | None = None, best: Callable[..., Any] | None = None
) -> list[Entry]:
    """``values`` as text, a field each; with ``best`` (min or max) the first two ranks are marked.

    Without ``decimals``, as many as give the smallest value three digits. Ranks are those of
    what is shown: what looks equal ranks equal.
    """
    if decimals is None:
        smallest = values[values > 0].min()
        decimals = (
            0 if math.isnan(smallest) else min(4, max(0, 2 - math.floor(math.log10(smallest))))
        )
    shown = [NOTHING if pd.isna(value) else f"{value:.{decimals}f}" for value in values]
    distinct = sorted({float(text) for text in shown if text != NOTHING}, reverse=best is max)
    ranks = {value: rank for rank, value in enumerate(distinct[:2], 1)}
    if best is None or len(distinct) < 2:
        ranks = {}
    return [Entry(t, "", 0 if t == NOTHING else ranks.get(float(t), 0)) for t in shown]
