"""The tables of a study, as functions of its data frames.

:data:`TABLES` lists them by the names of their files; a new one is a function here (or anywhere)
and its entry. Each computes and rounds once, for all formats of :mod:`analysis.formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.collect import NONE, StudyResults
from analysis.comparisons import outlook, paired_differences
from analysis.effects import effects, why_none
from analysis.layers import layers, parts
from analysis.notes import told_of_differences
from analysis.published import published_on, read_published
from analysis.statistics import CONFIDENCE
from analysis.tables import NOTHING, Entry, Table, compare, energy_measures, energy_unit, entries
from analysis.twins import accuracy_lost, energy_ratio, pairs, twin_measures
from analysis.view import USUAL, View
from msvit.options import unknown
from msvit.records.measures import Measure, all_measures
from msvit.records.schema import RecordError

_NARROW_LAYERS = ("configuration", "part", "firing", "energy")
_INTERVAL = f"{CONFIDENCE:.0%} interval"


def differences(study: StudyResults, view: View) -> Table | None:
    """Every configuration minus the baseline, in accuracy and energy; None without a baseline.

    Raises:
        RecordError: if the baseline is no configuration of the study.
    """
    if (baseline := view.baseline) is None:
        return None
    check_baseline(study, baseline)
    groups = [group for group in study.groups if group != baseline]
    judged = {
        name: paired_differences(study, name, baseline)
        for name in ("test_accuracy", *energy_measures(study, view))
    }
    accuracy = judged["test_accuracy"]
    columns = {
        "configuration": [Entry(group) for group in groups],
        **_judged_columns(study, judged),
        "seeds": [Entry(f"{0 if pd.isna(n) else n:.0f}") for n in accuracy["n"]],
    }
    future = outlook(study, "test_accuracy", baseline)
    return Table(
        name=f"{study.name}-differences",
        caption=f"Differences to {baseline}, paired by seed.",
        numbers=_side_by_side(judged).rename_axis("configuration").reset_index(),
        columns=columns,
        notes=tuple(told_of_differences(study, baseline, accuracy, future)),
        narrow=("configuration", "accuracy (points)", _INTERVAL, "p", "seeds"),
    )


def check_baseline(study: StudyResults, baseline: str) -> None:
    """Refuse what is no configuration of the study, with the nearest that is.

    Raises:
        RecordError: naming the valid ones.
    """
    if baseline not in study.groups:
        raise RecordError(
            unknown(baseline, study.groups, f"--baseline {baseline}: no such configuration")
        )


def main_effects(study: StudyResults, view: View = USUAL) -> Table | None:
    """What each axis of a factorial grid changes; None where the grid has no two axes."""
    if why_none(study):
        return None
    judged = {
        name: effects(study, name) for name in ("test_accuracy", *energy_measures(study, view))
    }
    changes = judged["test_accuracy"]["changes"]
    several = [len(change) > 1 for change in changes]
    columns = {
        "effect of": [Entry(effect_label(study, change)) for change in changes],
        **_judged_columns(study, judged),
    }
    return Table(
        name=f"{study.name}-effects",
        caption="What each change does, on the mean over all others, and how far two go together.",
        numbers=_side_by_side(
            {name: frame.drop(columns="changes") for name, frame in judged.items()}
        ).assign(effect=[effect_label(study, change) for change in changes]),
        columns=columns,
        notes=(
            "Effect: the change of the mean where an option is set as named, against its first "
            "value, over all combinations of the other axes. ×: by how much the effect of the one "
            "differs where the other is set too; 0 where effects add up. Intervals hold for all "
            f"effects of a column together ({CONFIDENCE:.0%}; largest of correlated t statistics). "
            f"Bold: apart from 0. From {len(study.finished)} cells, seeds taken as blocks.",
        ),
        narrow=("effect of", "accuracy (points)", _INTERVAL, "p"),
        blocks=(several.index(True),) if any(several) and not all(several) else (),
    )


def effect_label(study: StudyResults, changes: Sequence[tuple[str, Any]]) -> str:
    """``scales 1 → 1,3`` of a main effect, ``scales 1,3 × widths 0.5,1`` of an interaction."""
    shown = [f"{axis_label(axis)} {value_label(value)}" for axis, value in changes]
    if len(changes) > 1:
        return " × ".join(shown)
    ((axis, value),) = changes
    first = value_label(study.cells[axis].dropna().iloc[0])
    return f"{axis_label(axis)} {first} → {value_label(value)}"


def axis_label(axis: str) -> str:
    """``model.attn_threshold`` as ``attn threshold``."""
    return axis.removesuffix(".name").rpartition(".")[2].replace("_", " ")


def value_label(value: Any) -> str:
    """An option's value as labels show it: ``1,3``, ``yes``, ``none``."""
    if isinstance(value, tuple):
        return ",".join(map(value_label, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return NONE if value is None else str(value)


def twin_table(study: StudyResults, view: View = USUAL) -> Table | None:
    """What spikes cost against twins that do not spike; None where the study has none."""
    found = pairs(study)
    if not found:
        return None
    measures = twin_measures(study, view)
    rows = [
        {"configuration": group, "twin": twin, "energy_model": model}
        | {f"accuracy_{name}": lost[name] for name in ("difference", "low", "high")}
        | energy_ratio(study, measure, group, twin)
        for group in dict.fromkeys(group for group, _ in found)
        for twin, lost in accuracy_lost(
            study, group, [other for one, other in found if one == group]
        ).iterrows()
        for model, measure in measures.items()
    ]
    numbers = pd.DataFrame(rows)
    starts = list(range(0, len(numbers), len(measures)))
    measure = all_measures()["energy_mj"]
    both = pd.concat([numbers["energy"], numbers["twin_energy"]])
    unit = measure.unit(both)
    shown = entries(both * measure.units[unit])
    points = 100 * numbers[[f"accuracy_{name}" for name in ("difference", "low", "high")]]
    columns = {
        "configuration": _at(starts, numbers["configuration"]),
        "twin": _at(starts, numbers["twin"]),
        "accuracy (points)": [
            Entry(e.text, _bracket(low, high, 2), e.rank) if row in starts else Entry("")
            for row, (e, low, high) in enumerate(
                zip(
                    _signed(
                        points["accuracy_difference"],
                        2,
                        _beside(points["accuracy_low"], points["accuracy_high"], 0),
                    ),
                    points["accuracy_low"],
                    points["accuracy_high"],
                    strict=True,
                )
            )
        ],
        "energy by": [Entry(model) for model in numbers["energy_model"]],
        measure.column(unit, "spiking"): shown[: len(numbers)],
        measure.column(unit, "the twin"): shown[len(numbers) :],
        "ratio": [
            Entry(f"{ratio:.2f}", "" if pd.isna(low) else f"[{low:.2f}, {high:.2f}]", int(apart))
            for ratio, low, high, apart in zip(
                *(numbers[name] for name in ("ratio", "low", "high")),
                _beside(numbers["low"], numbers["high"], 1),
                strict=True,
            )
        ],
        "seeds": [Entry(str(n)) for n in numbers["seeds"]],
    }
    return Table(
        name=f"{study.name}-twins",
        caption="Spiking networks against twins that do not spike.",
        numbers=numbers,
        columns=columns,
        notes=(
            "Accuracy: spiking minus twin. Ratio: energy of the spiking network over that of the "
            f"twin, below 1 where spikes cost less. {_INTERVAL}s, paired by seed: of accuracy for "
            "all twins of a configuration together, of a ratio (geometric mean, t interval of its "
            "logarithm) for itself. Bold: apart from 0, and from 1. Energy is computed from "
            "operation counts, not measured on hardware; a twin's MACs are charged on the bits of "
            "its activations by exact_synops and memory_aware, and whole by the others.",
        ),
        left=("twin", "energy by"),
        narrow=("configuration", "twin", "energy by", "ratio"),
        blocks=tuple(starts[1:]),
    )


def _at(rows: Sequence[int], texts: Iterable[str]) -> list[Entry]:
    """``texts`` where something begins, and nothing below."""
    return [Entry(text if row in rows else "") for row, text in enumerate(texts)]


def _beside(low: pd.Series, high: pd.Series, value: float) -> pd.Series:
    """Where an interval does not hold ``value``."""
    return (low > value) | (high < value)


def layer_table(study: StudyResults, view: View = USUAL) -> Table | None:
    """Firing rate, operations and energy of each part of each configuration's network.

    The numbers are of every single layer.
    """
    if study.operations.empty:
        return None
    energies = energy_measures(study, view)
    of_energy = energy_unit(study, energies)
    each = parts(study, energies)
    measures = all_measures()
    starts = list(each.index[each["group"] != each["group"].shift()])
    columns = {
        "configuration": _at(starts, each["group"]),
        "part": [Entry(whole) for whole in each["whole"]],
        "firing rate": entries(each["rate"], measures["firing_rate"].decimals),
        **dict(_in_unit(measures[name], each[name]) for name in ("macs", "acs")),
        **dict(_in_unit(measures[name], each[name], of_energy) for name in energies),
        "of all (%)": entries(100 * each["share"], 1),
    }
    return Table(
        name=f"{study.name}-layers",
        caption="What each part of the networks fires and costs.",
        numbers=layers(study, energies).rename(columns={"group": "configuration"}),
        columns=columns,
        notes=(
            "Means over seeds. Firing rate: spikes per neuron and time step, over all neurons of a "
            "part. Operations and energy: per image, over all time steps; computed, not measured.",
        ),
        left=("part",),
        narrow=(
            "configuration",
            "part",
            "firing rate",
            next(h for h in columns if h.startswith("energy")),
        ),
        blocks=tuple(starts[1:]),
    )


def seed_table(study: StudyResults, view: View = USUAL) -> Table:
    """Every cell: what each seed gave, and those that have no result."""
    cells = study.cells.reset_index(drop=True)
    measures = all_measures()
    starts = list(cells.index[cells["group"] != cells["group"].shift()])
    energies = energy_measures(study, view)
    names = ("test_accuracy", "accuracy", "firing_rate", *energies, "training_seconds")
    unit = dict.fromkeys(energies, energy_unit(study, energies))
    columns = {
        "configuration": _at(starts, cells["group"]),
        "seed": [Entry(str(seed)) for seed in cells["seed"]],
        **dict(
            _in_unit(measures[name], cells[name].astype(float), unit.get(name)) for name in names
        ),
        "epoch": [Entry(NOTHING if pd.isna(e) else f"{e:.0f}") for e in cells["selected_epoch"]],
        "state": [Entry(state) for state in cells["status"]],
    }
    known = ["id", "group", "seed", "status", *all_measures(), "selected_epoch", "precision"]
    return Table(
        name=f"{study.name}-seeds",
        caption="Every run.",
        numbers=cells[[*known, "problem"]].rename(columns={"group": "configuration"}),
        columns=columns,
        notes=("Epoch: the one whose weights were kept, the best on the validation images.",),
        left=("state",),
        narrow=("configuration", "seed", "test (%)", "state"),
        blocks=tuple(starts[1:]),
    )


def published_table(study: StudyResults, view: View = USUAL) -> Table | None:
    """What was measured here, and under a rule what others published on the same data sets.

    None where nobody published on them.
    """
    finished, published = study.finished, read_published()
    tables = {data: published_on(data, published) for data in finished["data"].unique()}
    others = pd.concat(list(tables.values()) or [published.iloc[:0]])
    if others.empty:
        return None
    means = finished.groupby("group", sort=False)
    first = means.first()
    ours = pd.DataFrame(
        {
            "model": first.index,
            "dataset": first["data"],
            "image_size": first.get("model.image_size"),
            "timesteps": first.get("model.timesteps"),
            "parameters_m": first["parameters"].astype(float) / 1e6,
            "energy_mj": means["energy_mj"].mean(),
            "top1": 100 * means["test_accuracy"].mean(),
            "coupled_batches": first.get(
                "model.batch_coupled", pd.Series(None, index=first.index)
            ).map(lambda coupled: "yes" if coupled is True else "no"),
            "source": [f"measured here, {_seeds(n)}" for n in means.size()],
        }
    )
    numbers = pd.concat([ours, others], ignore_index=True)
    numbers.insert(1, "measured", [True] * len(ours) + [False] * len(others))
    marks = ["" if measured else "†" for measured in numbers["measured"]]
    columns = {
        "model": [
            Entry(f"{model}{mark}") for model, mark in zip(numbers["model"], marks, strict=True)
        ],
        "data": [Entry(data) for data in numbers["dataset"]],
        "image (pixels)": entries(numbers["image_size"].astype(float), 0),
        "time steps": entries(numbers["timesteps"].astype(float), 0),
        "parameters (M)": entries(numbers["parameters_m"], 2),
        "energy (mJ/image)": entries(numbers["energy_mj"]),
        "top-1 (%)": entries(numbers["top1"], 2),
        "coupled batches": [_or_nothing(text) for text in numbers["coupled_batches"]],
        "source": [Entry(text) for text in numbers["source"]],
    }
    return Table(
        name=f"{study.name}-published",
        caption="Measured here, and under the rule what others have published on the same data.",
        numbers=numbers,
        columns=columns,
        notes=(
            "† published, not measured here: other training, other code, other ways to count "
            "energy. Coupled batches: the code lets membrane potential pass from one image of a "
            "batch to the next, so that its accuracy depends on the batch.",
        ),
        left=("data", "coupled batches", "source"),
        narrow=("model", "parameters (M)", "energy (mJ/image)", "top-1 (%)"),
        blocks=(len(ours),),
    )


TABLES: dict[str, Callable[[StudyResults, View], Table | None]] = {
    "table": compare,
    "differences": differences,
    "effects": main_effects,
    "twins": twin_table,
    "layers": layer_table,
    "seeds": seed_table,
    "published": published_table,
}
"""The tables of a study by their files' names, in reading order."""


def study_tables(study: StudyResults, view: View = USUAL) -> dict[str, Table]:
    """All tables that this study has.

    Raises:
        RecordError: if the baseline is no configuration of the study.
    """
    drawn = {name: draw(study, view) for name, draw in TABLES.items()}
    return {name: _told(table, view) for name, table in drawn.items() if table is not None}


def _told(table: Table, view: View) -> Table:
    """The table, saying by which constants of one's own its energies were computed."""
    own = view.energy.own_constants()
    if not own or any(own in note for note in table.notes):
        return table
    return replace(table, notes=(*table.notes, own))


def _judged_columns(study: StudyResults, judged: dict[str, pd.DataFrame]) -> dict[str, list[Entry]]:
    """Accuracy with its whole judgement, then each energy with its interval."""
    columns: dict[str, list[Entry]] = {}
    of_energy = energy_unit(study, [name for name in judged if name != "test_accuracy"])
    for name, frame in judged.items():
        measure = all_measures()[name]
        unit = "%" if name == "test_accuracy" else of_energy
        scaled = frame[["difference", "low", "high"]] * measure.units[unit]
        apart = frame["p"] < 1 - CONFIDENCE
        if name == "test_accuracy":
            columns["accuracy (points)"] = _signed(scaled["difference"], 2, apart)
            columns[_INTERVAL] = _interval(scaled, 2)
            columns["p"] = [_probability(p) for p in frame["p"]]
            columns["effect size"] = _signed(frame["effect"], 1)
            continue
        digits = _digits(scaled["difference"].abs())
        columns[measure.column(unit)] = [
            Entry(e.text, _bracket(low, high, digits), e.rank)
            for e, low, high in zip(
                _signed(scaled["difference"], digits, apart),
                scaled["low"],
                scaled["high"],
                strict=True,
            )
        ]
    return columns


def _signed(
    values: Iterable[float], digits: int, apart: Iterable[bool] | None = None
) -> list[Entry]:
    """With its sign, and bold where it is ``apart`` from 0."""
    values = list(values)
    bold = list(apart) if apart is not None else [False] * len(values)
    shown = [NOTHING if pd.isna(value) else _minus(f"{value:+.{digits}f}") for value in values]
    return [Entry(text, rank=int(b)) for text, b in zip(shown, bold, strict=True)]


def _minus(text: str) -> str:
    """With the sign that print has; a zero has none."""
    return text[1:] if not float(text) else text.replace("-", "−")


def _interval(scaled: pd.DataFrame, digits: int) -> list[Entry]:
    rows = zip(scaled["low"], scaled["high"], strict=True)
    return [Entry(_bracket(low, high, digits) or NOTHING) for low, high in rows]


def _bracket(low: float, high: float, digits: int) -> str:
    if pd.isna(low):
        return ""
    return f"[{_minus(f'{low:+.{digits}f}')}, {_minus(f'{high:+.{digits}f}')}]"


def _digits(values: pd.Series) -> int:
    """As many behind the point as give the largest value three digits."""
    largest = values.max()
    return 2 if not largest > 0 else max(0, min(4, 3 - len(str(int(largest)))))


def _probability(p: float) -> Entry:
    return Entry(NOTHING if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}")


def _side_by_side(judged: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Columns named ``<measure>_<statistic>``, in the units of the measures."""
    frames = [frame.add_prefix(f"{name}_") for name, frame in judged.items()]
    return pd.concat(frames, axis=1)


def _in_unit(
    measure: Measure, values: pd.Series, unit: str | None = None
) -> tuple[str, list[Entry]]:
    """Heading and fields of one measure, in ``unit`` or in one that fits all its values."""
    unit = measure.unit(values) if unit is None else unit
    return measure.column(unit), entries(values * measure.units[unit], measure.decimals)


def _or_nothing(text: Any) -> Entry:
    return Entry(NOTHING if pd.isna(text) or not text else str(text))


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
