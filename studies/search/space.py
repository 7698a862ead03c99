"""Space files: a question, what may vary, and what is aimed at.

::

    question: Which MSVIT is accurate and frugal?
    base:                        # as in a grid
      model: {name: msvit, depths: [1, 1, 1]}
      data: {name: digits}
      training: {recipe: digits}
    parameters:                  # any option of model, data or training
      model.scales: {categorical: [[1], [1, 3], [1, 3, 5]]}
      model.dim: {int: [16, 64], step: 16}
      training.lr: {float: [1.0e-3, 3.0e-2], log: true}
      model.branch_kernel: {categorical: [1d, 2d], when: {model.scales: [[1, 3], [1, 3, 5]]}}
    objectives: {accuracy: maximize, energy_mj: minimize}   # the first one decides early stopping
    constraints: [energy_mj <= 0.2]
    trials: 50
    minutes: 60                  # optional: no trial begins later than this
    seeds: 1                     # several: a trial's measures are means
    sampler: tpe                 # gp, nsga2, random, grid
    pruner: asha                 # hyperband, median, none; or {name: asha, grace: 2, reduction: 3}
    start_with:                  # configurations to try first
      - msvit_cifar10            # of the registry: its values of the parameters above
      - {model.scales: [1, 3], training.lr: 0.01}

A trial is left without the parameters that its other values leave without effect (``tau`` beside a
PSN); ``when`` keeps the sampler from choosing them. Everything is checked before the first trial.
Nothing here imports torch, Optuna or Ray.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from msvit.cells import Cell, option_names, resolve_cell, without_effect
from msvit.data import DATASETS
from msvit.models import model_options, zoo
from msvit.options import ConfigError, Problem, unknown
from msvit.recipes import trained_epochs, unknown_option
from msvit.records.measures import Direction, all_measures
from msvit.yaml_files import read_yaml
from studies.configurations import (
    MAX_CELLS,
    Raw,
    base_of,
    check_name,
    checked_keys,
    find_file,
    list_files,
    merged,
    nested,
    question_of,
    seeds_of,
    shown_path,
    split_key,
    varied,
)
from studies.search.objectives import Constraint, constraints_of, objectives_of
from studies.search.parameters import Parameter, Scalar, decode, encode, parameters_of

SAMPLERS = ("tpe", "gp", "nsga2", "random", "grid")
PRUNERS = ("asha", "hyperband", "median", "none")

_REQUIRED = ("question", "base", "parameters", "objectives")
_OPTIONAL = ("constraints", "trials", "minutes", "seeds", "sampler", "pruner", "start_with")
_DRAWS = 40  # how many draws may show that a value is possible


@dataclass(frozen=True)
class Pruner:
    """Early stopping: never before ``grace`` epochs; of every rung, 1 / ``reduction`` goes on."""

    name: str
    grace: int
    reduction: float


@dataclass(frozen=True)
class Space:
    """A space file, checked."""

    name: str
    question: str
    file: str
    base: Raw
    parameters: tuple[Parameter, ...]
    objectives: Mapping[str, Direction]
    constraints: tuple[Constraint, ...]
    trials: int
    minutes: float | None
    seeds: tuple[int, ...]
    sampler: str
    pruner: Pruner
    start_with: tuple[dict[str, Scalar], ...]

    @property
    def primary(self) -> str:
        """The objective that decides early stopping."""
        return next(iter(self.objectives))

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the data sets that are trained on."""
        return self._values("data", "name")

    @property
    def data_sections(self) -> list[dict[str, Any]]:
        """The ``data`` of its cells, by name, with what the base sets of each data set."""
        fixed = self.base["data"]
        return [
            {key: fixed[key] for key in fixed if key in DATASETS[name].model_fields}
            | {"name": name}
            for name in self.data
        ]

    @property
    def precisions(self) -> tuple[str, ...]:
        """What ``training.precision`` may be, as far as the space says."""
        return self._values("training", "precision")

    def _values(self, section: str, option: str) -> tuple[str, ...]:
        searched = [p for p in self.parameters if p.key == f"{section}.{option}"]
        if searched:
            return tuple(str(choice) for p in searched for choice in p.choices)
        return tuple(filter(None, [self.base[section].get(option)]))

    def cells(self, chosen: Mapping[str, Scalar]) -> list[Cell]:
        """The cells of one trial, a cell per seed.

        Raises:
            ConfigError: where the chosen values do not fit together.
        """
        try:
            cell = resolve_cell(merged(self.base, self.own(chosen), ""), "")
        except ConfigError as error:
            raise error.within(self.file) from None
        return [Cell(cell.model, cell.data, cell.training, seed) for seed in self.seeds]

    def own(self, chosen: Mapping[str, Scalar]) -> Raw:
        """What a trial sets over the base: the ``chosen`` values that have an effect together."""
        values = {key: decode(value) for key, value in chosen.items()}
        return varied(self.base, nested(values, self.file), "")

    def draw(self, source: random.Random, fixed: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Random values for all parameters that apply, but for the ``fixed`` ones."""
        chosen: dict[str, Scalar] = {}
        for parameter in self.parameters:
            key = parameter.key
            if parameter.applies(chosen):
                chosen[key] = fixed[key] if key in fixed else parameter.draw(source)
        return chosen

    def meaning(self) -> dict[str, Any]:
        """What one study is about: a search may not go on under another meaning."""
        content = {
            "base": self.base,
            "parameters": {p.key: _described(p) for p in self.parameters},
            "objectives": list(self.objectives.items()),
            "constraints": [str(c) for c in self.constraints],
            "seeds": self.seeds,
        }
        return json.loads(json.dumps(content))  # as it comes back from a file

    def changes(self, known: Mapping[str, Any]) -> list[str]:
        """What of its meaning differs from the ``known`` one of an earlier run."""
        return [key for key, value in self.meaning().items() if known.get(key) != value]


def list_spaces() -> list[str]:
    """Names of the spaces that come with the harness."""
    return list_files("space")


def load_space(given: str, **changes: Any) -> Space:
    """Read and check a space: a name of the harness, or a YAML file.

    ``changes`` replace the file's ``trials``, ``minutes``, ``sampler``, ``pruner`` and ``name``
    where they are not None.

    Raises:
        ConfigError: for whatever could not be searched, naming file, key and nearest valid choice.
    """
    path = find_file("space", given)
    where = path.name
    values = checked_keys(read_yaml(path), (*_REQUIRED, *_OPTIONAL), where)
    for key in _REQUIRED:
        if key not in values:
            raise ConfigError(where, key, "missing", ": ")
    name = changes.pop("name", None) or path.stem
    check_name(name, f"--name {name}")
    given_changes = {key: value for key, value in changes.items() if value is not None}
    values |= given_changes

    def place(key: str) -> str:
        return f"--{key}" if key in given_changes else f"{where}: {key}"

    parameters = parameters_of(values["parameters"], where)
    objectives = objectives_of(values["objectives"], where)
    space = Space(
        name=name,
        question=question_of(values, where),
        file=shown_path(path),
        base=base_of(values["base"], where),
        parameters=parameters,
        objectives=objectives,
        constraints=constraints_of(values.get("constraints"), where),
        trials=_trials(values.get("trials", 20), place("trials")),
        minutes=_minutes(values.get("minutes"), place("minutes")),
        seeds=tuple(seeds_of(values.get("seeds", 1), where)),
        sampler=_one_of(values.get("sampler", "tpe"), SAMPLERS, place("sampler")),
        pruner=_pruner(values.get("pruner"), next(iter(objectives)), place("pruner")),
        start_with=(),
    )
    _check_possible(space, where)
    if space.sampler == "grid":
        _check_countable(space, place("sampler"))
    started = _start_with(values.get("start_with"), space, where)
    return Space(**{**vars(space), "start_with": started})


def possible_share(space: Space) -> tuple[float, str]:
    """Share of random draws that can be built, and what is wrong with one that cannot."""
    source = random.Random(1)
    found = [_possible(space, space.draw(source, {})) for _ in range(_DRAWS)]
    problems = [error.problems[0] for error in found if isinstance(error, ConfigError)]
    return 1 - len(problems) / _DRAWS, str(replace(problems[0], where="")) if problems else ""


def largest_epochs(space: Space) -> int:
    """Epochs of the longest training that the space holds."""
    source = random.Random(0)
    draws = [_possible(space, space.draw(source, {})) for _ in range(_DRAWS)]
    trainings = [cell.training for cell in draws if isinstance(cell, Cell)]
    for parameter in space.parameters:
        if parameter.key == "training.epochs":
            # Other kinds of values are no epochs, and have been refused.
            longest = int(max(cast(tuple[float, ...], parameter.corners())))
            return longest + max((trained_epochs(t) - t["epochs"] for t in trainings), default=0)
    return max(trained_epochs(training) for training in trainings)


def _described(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "categorical":
        values: dict[str, Any] = {"categorical": [decode(c) for c in parameter.choices]}
    else:
        values = {parameter.kind: [parameter.low, parameter.high]}
        values |= {"log": True} if parameter.log else {}
        values |= {"step": parameter.step} if parameter.step else {}
    if parameter.when:
        values["when"] = {key: [decode(v) for v in allowed] for key, allowed in parameter.when}
    return values


def _check_possible(space: Space, where: str) -> None:
    """Every choice and both ends of every range must be part of some configuration."""
    for parameter in space.parameters:
        _check_known(space, parameter.key, where)
    for parameter in space.parameters:
        for value in parameter.corners():
            problem: ConfigError | None = None
            source = random.Random(0)
            for _ in range(_DRAWS):
                fixed = {parameter.key: value}
                for key, allowed in parameter.when:
                    fixed[key] = source.choice(allowed)
                chosen = space.draw(source, fixed)
                found = _possible(space, chosen)
                if isinstance(found, Cell):
                    problem = _in_vain(space, chosen, parameter.key)
                else:
                    problem = found
                if problem is None:
                    break
            if problem is not None:
                # What is wrong with the base is said of the base.
                raw = merged(space.base, {}, where)
                if "name" in raw["model"] and parameter.key != "model.name":
                    resolve_cell(raw, f"{where}: base")
                own = [
                    _of_parameter(p, parameter.key, f"{where}: parameters")
                    for p in problem.problems
                ]
                raise ConfigError.of(own)


def _of_parameter(problem: Problem, key: str, where: str) -> Problem:
    """What is wrong with a cell, said of the space; of the parameter ``key`` by that key."""
    section, option = split_key(key, where)
    place, _, inner = problem.key.partition(".")  # "model (msvit)" tells whose option it is
    if place.partition(" ")[0] == section and f"{inner}.".startswith(f"{option}."):
        return replace(problem, where=where, key=f"{section}.{inner}")
    return replace(problem, where=where)


def _check_known(space: Space, key: str, where: str) -> None:
    """The option must be one of some model (data set) that the space can name."""
    section, option = split_key(key, where)
    names = [p.choices for p in space.parameters if p.key == f"{section}.name"]
    choices = names[0] if names else (space.base[section].get("name"),)
    if section != "training" and not all(isinstance(name, str) for name in choices):
        raise ConfigError(where, f"base.{section}.name", "a name is needed", ": ")
    known = {o for name in choices for o in option_names(section, str(name), f"{where}: {section}")}
    if option not in known:
        keys = [f"{section}.{name}" for name in known]
        raise ConfigError(f"{where}: parameters", key, unknown_option(key, keys))


def _possible(space: Space, chosen: Mapping[str, Scalar]) -> Cell | ConfigError:
    try:
        return space.cells(chosen)[0]
    except ConfigError as error:
        return error


def _in_vain(space: Space, chosen: Mapping[str, Scalar], key: str) -> ConfigError | None:
    """What is wrong with a parameter that has no effect in this trial."""
    section, option = split_key(key, space.file)
    values = {key: decode(value) for key, value in chosen.items()}
    whole = merged(space.base, nested(values, space.file), "")
    why = without_effect(section, whole[section]).get(option)
    return None if why is None else ConfigError("", key, why)


def _check_countable(space: Space, where: str) -> None:
    for parameter in space.parameters:
        if parameter.points() is None:
            raise ConfigError(where, "", f"grid needs a step or choices for {parameter.key}")
        if parameter.when:
            raise ConfigError(where, "", f"grid takes no condition, and {parameter.key} has one")


def _trials(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CELLS:
        message = f"a whole number from 1 to {MAX_CELLS} is needed (got {value!r})"
        raise ConfigError(where, "", message)
    return value


def _minutes(value: Any, where: str) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and (not number or not 0 < value < 1e9):
        raise ConfigError(where, "", f"a number above 0 is needed (got {value!r})")
    return value


def _one_of(value: Any, valid: tuple[str, ...], where: str) -> str:
    if value not in valid:
        raise ConfigError(where, "", unknown(value, valid, f"unknown value {value!r}"))
    return value


def _pruner(value: Any, primary: str, where: str) -> Pruner:
    values = {"name": value} if not isinstance(value, Mapping) else value
    values = checked_keys(values, ("name", "grace", "reduction"), where)
    name = values.get("name")
    known = [name for name, measure in all_measures().items() if measure.every_epoch]
    if name is None:
        name = "asha" if primary in known else "none"
    name = _one_of(name, PRUNERS, where)
    if name != "none" and primary not in known:
        raise ConfigError(
            where,
            "",
            f"{name} judges the first objective after each epoch, and {primary} is known "
            f"only at the end; put {' or '.join(known)} first, or take pruner: none",
        )
    grace, reduction = values.get("grace", 1), values.get("reduction", 3)
    if isinstance(grace, bool) or not isinstance(grace, int) or grace < 1:
        raise ConfigError(where, "grace", f"a whole number of epochs is needed (got {grace!r})")
    if (
        isinstance(reduction, bool)
        or not isinstance(reduction, int | float)
        or not 1 < reduction < math.inf
    ):
        raise ConfigError(where, "reduction", f"a number above 1 is needed (got {reduction!r})")
    return Pruner(name, grace, reduction)


def _start_with(values: Any, space: Space, where: str) -> tuple[dict[str, Scalar], ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise ConfigError(where, "start_with", f"a list is needed (got {values!r})", ": ")
    return tuple(
        _start(entry, space, f"{where}: start_with[{i}]") for i, entry in enumerate(values)
    )


def _start(entry: Any, space: Space, where: str) -> dict[str, Scalar]:
    parameters = {p.key: p for p in space.parameters}
    if isinstance(entry, str):
        if entry not in zoo():
            raise ConfigError(where, "", unknown(entry, zoo(), f"unknown model {entry!r}"))
        options = {"name": entry, **model_options(entry, {}, where).model_dump(mode="json")}
        dotted = {f"model.{key}": value for key, value in options.items()}
        chosen = {}
        for key, parameter in parameters.items():
            if key in dotted and parameter.applies({k: encode(v) for k, v in dotted.items()}):
                chosen[key] = encode(dotted[key])
    elif isinstance(entry, Mapping):
        for key in entry:
            if key not in parameters:
                raise ConfigError(where, "", unknown(key, parameters, f"{key!r} is no parameter"))
        chosen = {key: encode(value) for key, value in entry.items()}
    else:
        raise ConfigError(where, "", f"a registry name or a mapping is needed (got {entry!r})")
    if not chosen:
        raise ConfigError(where, "", "a value of at least one parameter is needed")
    for key, value in chosen.items():
        parameter = parameters[key]
        for other, allowed in parameter.when:
            if other in chosen and chosen[other] not in allowed:
                raise ConfigError(where, "", f"{key} is not there with {other} = {chosen[other]}")
        if not parameter.contains(value):
            valid = f"one of {list(map(decode, parameter.choices))}"
            if parameter.kind != "categorical":
                valid = f"{parameter.low!r} to {parameter.high!r}"
                valid += f" in steps of {parameter.step!r}" if parameter.step else ""
            raise ConfigError(where, "", f"{key} = {decode(value)!r} is not {valid}")
    return chosen
