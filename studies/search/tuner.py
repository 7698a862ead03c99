"""Ray Tune's side of a search: it runs trials and stops weak ones; the ledger proposes them.

Tune's own Optuna searcher and its restore are not used: the one tells stopped trials as complete,
the other forgets or repeats trials after a kill. What Tune keeps on disk lives in a temporary
folder; a search goes on from its study and from the cells' checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msvit.options import ConfigError
from msvit.records.faults import disk_error
from msvit.records.measures import all_measures, mean_measures
from msvit.records.schema import RecordError
from msvit.records.store import has_record, write_record
from studies.cluster import Place, RayLost, connected, packing
from studies.packing import Packing
from studies.room import described, slots
from studies.search.ledger import Ledger, Proposal
from studies.search.space import Space, largest_epochs
from studies.search.trial import run_trial

RESTARTS = 2  # of a trial whose process died, and of Tune if it dies itself

Say = Callable[[str], None]


def search(
    space: Space, ledger: Ledger, results: Path, place: Place, data_dir: Path | None, say: Say
) -> int:
    """Run trials until the budget of the study, or its time, is used up.

    Returns how many failed by their surroundings (data, memory, device) and go on next time.

    Raises:
        ConfigError: where Ray cannot be reached or no machine is large enough for a trial.
        RecordError: where the results or the study cannot be written.
        RayLost: where Ray dies.
        KeyboardInterrupt: on Ctrl-C; the trials that were running go on next time.
    """
    deadline = None if space.minutes is None else time.monotonic() + 60 * space.minutes
    _calm_tune()
    with connected(place):
        shares = packing(place, results)
        gpus = 0.0 if place.gpus_per_cell is None else place.gpus_per_cell
        if not slots(place.cpus_per_cell, gpus):
            raise ConfigError(
                "",
                "",
                f"no machine has the {place.cpus_per_cell:g} CPUs and {gpus:g} GPUs that one "
                f"trial is to get; Ray sees {described()}",
            )
        deaths = 0
        while True:
            proposer = make_proposer(space, ledger, results, data_dir, deadline, say, shares)
            try:
                _fit(space, ledger, proposer, place)
            except RayLost:
                raise
            except Exception as error:
                for folder in (results, Path(tempfile.gettempdir())):  # Tune keeps files, too
                    if full := disk_error(error, folder):
                        raise full from None
                # A process killed for want of memory can take Tune's loop with it.
                deaths += 1
                if deaths > RESTARTS:
                    reason = str(error).strip().splitlines() or [type(error).__name__]
                    raise RayLost(
                        f"Ray Tune has died {1 + RESTARTS} times ({reason[-1].strip()}); "
                        "the same command goes on where this one stopped"
                    ) from None
                say(f"Ray Tune has died ({type(error).__name__}); going on")
                ledger = ledger.reopened()
                continue
            if broken := proposer.broken:
                known = isinstance(broken, RecordError)
                raise broken if known else disk_error(broken, results) or broken
            return proposer.hindered


def make_proposer(
    space: Space,
    ledger: Ledger,
    results: Path,
    data_dir: Path | None,
    deadline: float | None,
    say: Say,
    shares: Packing,
) -> Any:
    """Tune's searcher over ``ledger``; its class is made here since Ray is loaded late."""
    from ray.tune.search import Searcher

    class Proposer(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="value", mode=_mode(space))
            self.running: dict[str, Proposal] = {}
            self.broken: Exception | None = None
            self.hindered = 0
            self.late = False

        def suggest(  # type: ignore[override]  # Ray's own types forget FINISHED
            self, trial_id: str
        ) -> dict[str, Any] | str | None:
            if deadline is not None and time.monotonic() > deadline and not self.late:
                self.late = True
                say("time is up: no further trial is begun")
            proposal = None if self.late or self.broken else ledger.propose()
            while ledger.impossible:
                number, problem = ledger.impossible.pop(0)
                self._tell(number, f"cannot be built: {problem}")
            if proposal is None:
                return Searcher.FINISHED
            self.running[trial_id] = proposal
            if proposal.resumed:
                say(f"trial {proposal.number} goes on")
            task = {
                "cells": [cell.as_dict() for cell in proposal.cells],
                "results": str(results.resolve()),
                "data_dir": str(data_dir.resolve()) if data_dir else None,
                "every_epoch": all_measures()[space.primary].every_epoch,
                "gpus": max(shares.gpus(cell) for cell in proposal.cells),
            }
            return {"task": json.dumps(task)}

        def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
            try:
                self._note(self.running[trial_id].number, result)
            except Exception as problem:
                self.broken = self.broken or problem

        def on_trial_complete(
            self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
        ) -> None:
            proposal, result = self.running.pop(trial_id), result or {}
            number = proposal.number
            try:
                if self.broken:
                    pass  # it is left running in the study, and so goes on next time
                elif "broken" in result:
                    self.broken = RecordError(result["broken"])
                elif "records" in result:
                    self._complete(proposal, result)
                elif result.get("hindered"):
                    self.hindered += 1
                    self._tell(number, f"hindered, {result['failure'].splitlines()[0]}")
                elif "failure" in result:
                    ledger.fail(number, result["failure"])
                    self._tell(number, f"FAILED, {result['failure'].splitlines()[0]}")
                elif error:
                    problem = f"its process died {1 + RESTARTS} times"
                    ledger.fail(number, problem)
                    self._tell(number, f"FAILED, {problem}")
                else:
                    # Tune does not pass the result on that made it stop.
                    self._note(number, result)
                    ledger.prune(number)
                    value = _shown(space.primary, result.get("value"))
                    self._tell(number, f"stopped after epoch {result.get('epoch')}, {value}")
            except Exception as problem:  # Tune would log it and go on with an empty book
                self.broken = self.broken or problem

        def _complete(self, proposal: Proposal, result: Mapping[str, Any]) -> None:
            self._note(proposal.number, result)
            for record in result["records"]:
                # The worker has written it, unless it has no disk in common with us.
                if not has_record(results, record["id"]):
                    write_record(results, record)
            measures = mean_measures(result["records"])
            aims = dict.fromkeys((*space.objectives, *(c.measure for c in space.constraints)))
            if lacking := [name for name in aims if name not in measures]:
                problem = f"its records hold no {', '.join(lacking)}"
                ledger.fail(proposal.number, problem)
                self._tell(proposal.number, f"FAILED, {problem}")
                return
            best = ledger.complete(proposal.number, measures)
            shown = ", ".join(_shown(name, measures[name]) for name in aims)
            broken = [str(c) for c in space.constraints if c.excess(measures) > 0]
            note = f"; not {', '.join(broken)}" if broken else "; best so far" if best else ""
            if best and len(space.objectives) > 1:
                note = "; on the front"
            self._tell(proposal.number, shown + note)

        def _note(self, number: int, result: Mapping[str, Any]) -> None:
            if "value" in result:
                ledger.epoch(number, result["epoch"], result["value"])

        def _tell(self, number: int, text: str) -> None:
            over, budget = ledger.budget - ledger.left(), ledger.budget
            say(f"[{over:{len(str(budget))}d}/{budget}] trial {number}: {text}")

        def save(self, checkpoint_path: str) -> None:
            return  # nothing of Tune's is ever restored

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

    return Proposer()


def _fit(space: Space, ledger: Ledger, proposer: Any, place: Place) -> None:
    from ray import tune

    left = ledger.left()
    if not left:
        return

    def resources_of(config: Mapping[str, Any]) -> Any:
        gpus = json.loads(config["task"])["gpus"]
        return tune.PlacementGroupFactory([{"CPU": place.cpus_per_cell, "GPU": gpus}])

    with tempfile.TemporaryDirectory(prefix="msvit-tune-") as folder:
        tune.Tuner(
            tune.with_resources(run_trial, resources_of),
            tune_config=tune.TuneConfig(
                search_alg=proposer,
                scheduler=make_scheduler(space, ledger),
                num_samples=left,
                # Of the GPUs, each trial takes what it needs: Tune waits for that by itself.
                max_concurrent_trials=max(1, slots(place.cpus_per_cell, place.gpus_per_cell or 0)),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=space.name,
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                stop=lambda trial_id, result: proposer.broken is not None,
                verbose=0,
            ),
        ).fit()


def make_scheduler(space: Space, ledger: Ledger) -> Any:
    """Early stopping; it has seen all earlier trials of the study."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    pruner, epochs = space.pruner, largest_epochs(space)
    grace = min(pruner.grace, epochs)
    aim: dict[str, Any] = {"metric": "value", "mode": _mode(space), "time_attr": "epoch"}
    aim["grace_period"] = grace
    if pruner.name == "none":
        return FIFOScheduler()
    if pruner.name == "median":

        class OnlyStops(MedianStoppingRule):
            """Never pauses a trial, whose state would be lost with its process."""

            def _on_insufficient_samples(self, *_: Any) -> str:
                return self.CONTINUE

        return _after_past(OnlyStops(**aim), ledger)
    # HyperBand without its pauses is ASHA in brackets that begin to stop at different epochs.
    brackets = 3 if pruner.name == "hyperband" else 1
    asha = AsyncHyperBandScheduler(
        **aim, max_t=epochs, reduction_factor=pruner.reduction, brackets=brackets
    )
    return _after_past(asha, ledger)


def _after_past(scheduler: Any, ledger: Ledger) -> Any:
    """``scheduler``, having seen all earlier trials of the study."""
    for number, history in enumerate(ledger.past()):
        stand_in = PastTrial(f"past-{number}")
        scheduler.on_trial_add(None, stand_in)
        for epoch, value in history[:-1]:
            scheduler.on_trial_result(None, stand_in, {"epoch": epoch, "value": value})
        epoch, value = history[-1]
        scheduler.on_trial_complete(None, stand_in, {"epoch": epoch, "value": value})
    return scheduler


class PastTrial:
    """What schedulers look at of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _mode(space: Space) -> str:
    return "max" if space.objectives[space.primary] == "maximize" else "min"


def _shown(name: str, value: float | None) -> str:
    return f"no {name} yet" if value is None else all_measures()[name].text(value)


def _calm_tune() -> None:
    """Settings that Ray reads when it is imported."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends a search as a grid
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failure has no value
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # a banner that verbose=0 does not silence
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # state that nobody reads
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Where time is up before the first trial, the folder of this state may never have been made.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
