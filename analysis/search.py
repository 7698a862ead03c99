"""From the Optuna study of a search to tidy data frames.

``trials``, one row per trial, in order of their numbers:
    ========================  =====================================================
    number                    of the trial in the study
    state                     ``complete``, ``stopped``, ``failed``, ``running``, ``waiting``
    given                     whether it was asked for by ``start_with``
    one column per parameter  by its dotted name, such as ``model.scales``; lists are tuples;
                              null is ``none``; empty where its condition does not hold
    epochs                    trained before the trial ended or was stopped
    one column per figure     means over seeds of what the records say: ``accuracy`` and
                              ``val_loss`` (validation images), ``test_accuracy``,
                              ``energy_mj``, ``firing_rate``, ``parameters``, ``macs``, ``acs``,
                              ``step_time`` (s), ``training_seconds``, ``peak_memory_gb``
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

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from analysis.collect import NONE
from msvit.options import ConfigError, unknown
from msvit.records import RecordError, locate, read_search, search_folder

FIGURES = (
    *("accuracy", "val_loss", "test_accuracy", "energy_mj", "firing_rate", "parameters"),
    *("macs", "acs", "step_time", "training_seconds", "peak_memory_gb"),
)
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
        objectives: figure → ``maximize`` or ``minimize``; the first decides early stopping.
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
    def complete(self) -> pd.DataFrame:
        """The rows of ``trials`` that have all figures."""
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
    try:
        with readable(storage):
            study = optuna.load_study(study_name=name, storage=open_storage(storage))
    except ConfigError as error:
        raise RecordError(str(error)) from None
    objectives = dict(manifest["objectives"])
    parameters = tuple(manifest["parameters"])
    frozen = study.get_trials(deepcopy=False)
    trials = pd.DataFrame(
        [_row(trial, parameters) for trial in frozen], columns=_columns(parameters)
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


def quiet_optuna() -> None:
    """No line per trial, and none about the parts of Optuna that may still change."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_storage(storage: str) -> BaseStorage:
    """The storage of an Optuna study: a database by its URL, or a journal file by its path.

    Use it inside of :func:`readable`.
    """
    if "://" in storage:
        return get_storage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


@contextlib.contextmanager
def readable(storage: str) -> Iterator[None]:
    """Have whatever is wrong with a storage said in one line.

    Raises:
        ConfigError: where it cannot be opened or read.
    """
    try:
        yield
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ConfigError(storage, "", f"no readable Optuna study ({error})") from None
    except Exception as error:  # drivers of databases raise what they like
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(storage, "", reason) from None


def mend_journal(path: Path) -> bool:
    """Cut off a last line that a full disk or a power cut has left unfinished.

    Optuna would read past it, but write its next line behind it, and never read either again.
    The file as it was stays beside, with ``.bak`` at its end. Returns whether there was one.
    """
    content = path.read_bytes() if path.exists() else b""
    if not content or content.endswith(b"\n"):
        return False
    path.with_name(path.name + ".bak").write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
    return True


def _columns(parameters: tuple[str, ...]) -> list[str]:
    return ["number", "state", "given", *parameters, "epochs", *FIGURES, "feasible", "problem"]


def _row(trial: optuna.trial.FrozenTrial, parameters: tuple[str, ...]) -> dict[str, Any]:
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
        **attributes.get("figures", {}),
        "feasible": complete and all(excess <= 0 for excess in constraints.values()),
        "problem": attributes.get("problem", ""),
    }


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
