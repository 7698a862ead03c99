"""From the Optuna study of a search to tidy data frames.

``trials``, one row per trial, in order of their numbers:
    ========================  =====================================================
    number                    of the trial in the study
    state                     ``complete``, ``stopped``, ``failed``, ``running``, ``waiting``
    given                     whether it was asked for by ``start_with``
    one column per parameter  by its dotted name, such as ``model.scales``; lists are tuples;
                              null is ``none``; empty where its condition does not hold
    epochs                    trained before the trial ended or was stopped
    one column per measure    by its name in :mod:`msvit.records.measures`, which tells the unit:
                              means over seeds (complete trials)
    feasible                  whether all constraints hold (complete trials)
    same_as                   the earlier complete trial with the same cells, if there is one
    rank                      0 on the Pareto front, 1 on the front of what is left without it,
                              and so on; empty for trials that are not complete and feasible,
                              and for repeated ones
    problem                   why it failed
    ========================  =====================================================

``curves``: number, epoch, value of the primary objective.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from analysis.collect import NONE
from msvit.options import unknown
from msvit.records.measures import all_measures, mean_measures
from msvit.records.optuna_storage import locate, open_storage, quiet_optuna, readable
from msvit.records.schema import RecordError
from msvit.records.store import read_record, read_search, search_folder

_STATES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass(frozen=True)
class Search:
    """All that is known of one search, over or not.

    Attributes:
        name, question, data: of the space; ``data`` is the data set's name.
        parameters: dotted names, in the space's order.
        logarithmic: those of them that are searched on a log scale.
        objectives: measure → ``maximize`` or ``minimize``; the first decides early stopping.
        constraints: as written.
        budget: trials of the whole study.
        pruner: name, grace (epochs) and reduction.
        folder: where tables and figures go.
        study: the Optuna study.
        trials, curves: see the head of this module.
    """

    name: str
    question: str
    data: str
    parameters: tuple[str, ...]
    logarithmic: frozenset[str]
    objectives: dict[str, str]
    constraints: tuple[str, ...]
    budget: int
    pruner: dict[str, Any]
    folder: Path
    study: optuna.Study
    trials: pd.DataFrame
    curves: pd.DataFrame

    @property
    def primary(self) -> str:
        return next(iter(self.objectives))

    @property
    def aims(self) -> tuple[str, ...]:
        """Measures that decide: objectives, then those of the constraints."""
        constrained = (text.split()[0] for text in self.constraints)
        return tuple(dict.fromkeys((*self.objectives, *constrained)))

    @property
    def complete(self) -> pd.DataFrame:
        """The rows of ``trials`` that have a result."""
        return self.trials[self.trials["state"] == "complete"]

    @property
    def front(self) -> pd.DataFrame:
        """The complete, feasible trials that no other one beats, best primary objective first."""
        return self.ranked[self.ranked["rank"] == 0]

    @property
    def ranked(self) -> pd.DataFrame:
        """The trials that have a rank: front by front, best primary objective first."""
        rising = self.objectives[self.primary] == "minimize"
        ranked = self.trials.dropna(subset="rank")
        return ranked.sort_values(["rank", self.primary], ascending=[True, rising])


def list_searches(results: Path) -> list[str]:
    """Names of the searches that a results folder holds, sorted."""
    return sorted(path.parent.name for path in results.glob("searches/*/search.json"))


def collect_search(results: Path, name: str) -> Search:
    """Read one search from its manifest and its Optuna study.

    Raises:
        RecordError: if the search or its study is not there or cannot be used.
    """
    results = Path(results)
    known = list_searches(results)
    if name not in known:
        message = f"{results}: no results of a search {name!r}"
        train = f"To run it: python studies/hpo.py --space {name}"
        raise RecordError(f"{unknown(name, known, message)}. {train}")
    manifest = read_search(results, name)
    storage = locate(manifest["storage"], search_folder(results, name))
    quiet_optuna()
    if "://" not in storage and not Path(storage).exists():
        raise RecordError(f"{storage}: no such file; the search {name!r} had its study there")
    with readable(storage):
        study = optuna.load_study(study_name=name, storage=open_storage(storage))
    objectives = dict(manifest["objectives"])
    parameters = tuple(manifest["parameters"])
    frozen = study.get_trials(deepcopy=False)
    trials = pd.DataFrame(
        [_row(trial, parameters, results) for trial in frozen], columns=_columns(parameters)
    )
    trials["same_as"] = _repeats(frozen)
    trials["rank"] = _ranks(trials, objectives)
    curves = [
        (trial.number, int(epoch), value)
        for trial in frozen
        for epoch, value in trial.user_attrs.get("epochs", {}).items()
    ]
    return Search(
        name=name,
        question=manifest["question"],
        data=manifest["data"],
        parameters=parameters,
        logarithmic=frozenset(k for k, v in manifest["parameters"].items() if v.get("log")),
        objectives=objectives,
        constraints=tuple(manifest["constraints"]),
        budget=manifest["trials"],
        pruner=manifest["pruner"],
        folder=search_folder(results, name),
        study=study,
        trials=trials,
        curves=pd.DataFrame(curves, columns=["number", "epoch", "value"]),
    )


def _columns(parameters: tuple[str, ...]) -> list[str]:
    first = ["number", "state", "given", *parameters, "epochs"]
    return [*first, *all_measures(), "feasible", "problem"]


def _row(
    trial: optuna.trial.FrozenTrial, parameters: tuple[str, ...], results: Path
) -> dict[str, Any]:
    attributes = trial.user_attrs
    epochs = [int(epoch) for epoch in attributes.get("epochs", {})]
    complete = trial.state.name == "COMPLETE"
    constraints = trial.constraints if complete else {}
    return {
        "number": trial.number,
        "state": _STATES[trial.state.name],
        "given": bool(attributes.get("given")),
        **{key: _plain(trial.params[key]) for key in parameters if key in trial.params},
        "epochs": max(epochs, default=0),
        **(_measures(trial, results) if complete else {}),
        "feasible": complete and all(excess <= 0 for excess in constraints.values()),
        "problem": attributes.get("problem", ""),
    }


def _measures(trial: optuna.trial.FrozenTrial, results: Path) -> dict[str, float]:
    """What the trial was told, and what is younger than it, from its cells' records."""
    attributes = trial.user_attrs
    told = attributes.get("measures") or attributes.get("figures", {})
    if told.keys() >= all_measures().keys():
        return told
    return {**_from_records(attributes.get("cells", ()), results), **told}


def _from_records(cells: Sequence[str], results: Path) -> dict[str, float]:
    """Means over the records of ``cells``; nothing where one of them is not to be had."""
    try:
        records = [read_record(results, cell) for cell in cells]
        there = [record for record in records if record is not None]
        return mean_measures(there) if there and len(there) == len(records) else {}
    except RecordError:
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value[:1] == "[":
        return tuple(json.loads(value))
    return NONE if value is None else value


def _repeats(trials: list[optuna.trial.FrozenTrial]) -> list[int | None]:
    first: dict[tuple[str, ...], int] = {}
    repeats = []
    for trial in trials:
        cells = tuple(trial.user_attrs.get("cells", ()))
        complete = bool(cells) and trial.state.name == "COMPLETE"
        earlier = first.setdefault(cells, trial.number) if complete else trial.number
        repeats.append(None if earlier == trial.number else earlier)
    return repeats


def _ranks(trials: pd.DataFrame, objectives: dict[str, str]) -> pd.Series:
    """Peel one front after the other off the complete, feasible trials."""
    left = trials[trials["feasible"].astype(bool) & trials["same_as"].isna()]
    signs = {name: 1 if aim == "minimize" else -1 for name, aim in objectives.items()}
    losses = left[list(objectives)].astype(float).mul(signs)
    ranks = pd.Series(float("nan"), index=trials.index)
    rank = 0
    while len(losses):
        values = losses.to_numpy()
        at_least = (values[:, None] <= values[None]).all(-1)
        beaten = (at_least & (values[:, None] < values[None]).any(-1)).any(0)
        ranks[losses.index[~beaten]] = rank
        losses = losses[beaten]
        rank += 1
    return ranks
