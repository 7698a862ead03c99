"""The Optuna study of a search: proposes trials, learns what became of them, survives everything.

A trial is RUNNING from its proposal on. What a killed search leaves RUNNING is proposed again,
under its number, before anything new. A trial that was stopped early is PRUNED, with the value
of each epoch in its attributes; it has no measures and is on no front. What attributes a trial has
is told by :class:`msvit.records.schema.TrialAttributes`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from msvit.cells import Cell
from msvit.options import ConfigError
from msvit.records.optuna_storage import open_storage, quiet_optuna, readable
from studies.search.parameters import Scalar
from studies.search.space import Space

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Proposal:
    """A trial to run: its number in the study, what was chosen, and a cell per seed."""

    number: int
    chosen: Mapping[str, Scalar]
    cells: tuple[Cell, ...]
    resumed: bool


class Ledger:
    """The study's book; create with :meth:`open`."""

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study = study
        self._space = space
        self._left_running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._trials: dict[int, optuna.Trial] = {}
        self._epochs: dict[int, dict[int, float]] = {}
        self.impossible: list[tuple[int, str]] = []

    @classmethod
    def open(cls, space: Space, storage: str, seed: int) -> Ledger:
        """Create the study of ``space`` in ``storage`` (file or URL) or go on with it.

        Raises:
            RecordError: where the storage cannot be used.
            ConfigError: where the study in it has another space.
        """
        quiet_optuna()
        with readable(storage):
            study = optuna.create_study(
                study_name=space.name,
                storage=open_storage(storage),
                directions=list(space.objectives.values()),
                load_if_exists=True,
            )
        known = study.user_attrs.get("space")
        if known is None:
            study.set_user_attr("space", space.meaning())
            study.set_metric_names(list(space.objectives))
        elif changed := space.changes(known):
            raise ConfigError(
                space.file,
                "",
                f"{', '.join(changed)} changed since the search {space.name!r} was "
                "begun; --name gives the changed one a study of its own",
            )
        for start in space.start_with:
            study.enqueue_trial(dict(start), user_attrs={"given": True}, skip_if_exists=True)
        started = len(study.get_trials(deepcopy=False))
        # With the bare seed, a search that goes on would draw once more what it drew first.
        study.sampler = _sampler(space, seed * 1_000_003 + started)
        if space.sampler == "grid":
            _enqueue_points(study, space)
        return cls(study, space)

    def reopened(self) -> Ledger:
        """A ledger of the same study that proposes again what is running now."""
        return Ledger(self._study, self._space)

    @property
    def study(self) -> optuna.Study:
        return self._study

    @property
    def budget(self) -> int:
        """Trials of the whole study; a grid has no more than its points."""
        if self._space.sampler != "grid":
            return self._space.trials
        return min(self._space.trials, _count_points(self._space))

    def left(self) -> int:
        """How many trials of the budget are still to be run, resumed ones among them."""
        trials = self._study.get_trials(deepcopy=False, states=_FINISHED)
        return max(0, self.budget - len(trials))

    def propose(self) -> Proposal | None:
        """The next trial, None where the budget is used up.

        A combination that cannot be built fails, counts, and is noted in ``impossible``.
        """
        while True:
            resumed = bool(self._left_running)
            if resumed:
                frozen = self._left_running.pop(0)
                trial = optuna.Trial(self._study, frozen._trial_id)
            elif self.left() > len(self._trials):
                trial = self._study.ask()
            else:
                return None
            chosen: dict[str, Scalar] = {}
            for parameter in self._space.parameters:
                if parameter.applies(chosen):
                    chosen[parameter.key] = parameter.suggest(trial)
            try:
                cells = tuple(self._space.cells(chosen))
            except ConfigError as error:
                self._trials[trial.number] = trial
                self.fail(trial.number, f"impossible: {error}")
                self.impossible.append((trial.number, str(error.problems[0])))
                continue
            trial.set_user_attr("cells", [cell.id for cell in cells])
            self._trials[trial.number] = trial
            self._epochs[trial.number] = {}
            return Proposal(trial.number, chosen, cells, resumed)

    def epoch(self, number: int, epoch: int, value: float) -> None:
        """Note the primary objective of a running trial after an epoch."""
        if number not in self._trials or epoch in self._epochs[number]:
            return
        self._epochs[number][epoch] = value
        if len(self._space.objectives) == 1:  # Optuna takes such values for one objective only
            self._trials[number].report(value, epoch)

    def complete(self, number: int, measures: Mapping[str, float]) -> bool:
        """Tell the measures of a finished trial; returns whether it is on the front now."""
        trial = self._trials[number]
        for constraint in self._space.constraints:
            trial.set_constraint(str(constraint), constraint.excess(measures))
        trial.set_user_attr("measures", dict(measures))
        values = [measures[name] for name in self._space.objectives]
        self._tell(number, TrialState.COMPLETE, values)
        return any(best.number == number for best in self._study.best_trials)

    def prune(self, number: int) -> None:
        """A trial was stopped early."""
        self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, problem: str) -> None:
        """A trial has ended without a record."""
        self._trials[number].set_user_attr("problem", problem)
        self._tell(number, TrialState.FAIL)

    def past(self) -> Iterator[list[tuple[int, float]]]:
        """(epoch, primary objective) of every trial that is over."""
        for trial in self._study.get_trials(deepcopy=False, states=_FINISHED):
            if epochs := trial.user_attrs.get("epochs"):
                yield [(int(epoch), value) for epoch, value in epochs.items()]

    def _tell(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        trial = self._trials.pop(number)
        if epochs := self._epochs.pop(number, None):
            trial.set_user_attr("epochs", epochs)
        self._study.tell(trial, values, state)


def _sampler(space: Space, seed: int) -> BaseSampler:
    seed %= 2**32
    if space.sampler == "tpe":
        conditional = any(parameter.when for parameter in space.parameters)
        startup = max(4, min(10, space.trials // 4))
        return TPESampler(seed=seed, multivariate=True, group=conditional, n_startup_trials=startup)
    if space.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=max(4, min(10, space.trials // 4)))
    if space.sampler == "nsga2":
        # Of the usual 50 in a generation, a small budget would never see the second one.
        return NSGAIISampler(seed=seed, population_size=max(4, min(50, space.trials // 5)))
    return RandomSampler(seed=seed)


def _count_points(space: Space) -> int:
    count = 1
    for parameter in space.parameters:
        count *= len(parameter.points() or ())
    return count


def _enqueue_points(study: optuna.Study, space: Space) -> None:
    """Line up the points of the grid that no trial has, shuffled: a part is then a fair sample."""
    keys = [parameter.key for parameter in space.parameters]
    points = list(itertools.product(*(p.points() or () for p in space.parameters)))
    random.Random(0).shuffle(points)
    for point in points[: space.trials]:
        study.enqueue_trial(dict(zip(keys, point, strict=True)), skip_if_exists=True)
