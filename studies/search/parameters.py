"""The parameters of a search space: choices and ranges of options, some under a condition."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msvit.options import ConfigError, unknown
from studies.configurations import split_key

Scalar = bool | int | float | str | None
Kind = Literal["categorical", "int", "float"]
_KINDS: tuple[Kind, ...] = ("categorical", "int", "float")
_KEYS = {"categorical": (), "int": ("log", "step"), "float": ("log", "step")}


@dataclass(frozen=True)
class Parameter:
    """One searched option.

    ``choices`` are texts or numbers as Optuna stores them (:func:`encode`); ``when`` maps an
    earlier categorical parameter to the choices under which this one is there at all.
    """

    key: str
    kind: Kind
    choices: tuple[Scalar, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    when: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()

    def applies(self, chosen: Mapping[str, Scalar]) -> bool:
        return all(key in chosen and chosen[key] in allowed for key, allowed in self.when)

    def contains(self, value: Scalar) -> bool:
        if self.kind == "categorical":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.step and not math.isclose(round(s := (value - self.low) / self.step), s):
            return False
        return self.low <= value <= self.high

    def corners(self) -> tuple[Scalar, ...]:
        """The values that show whether all are possible: every choice, both ends."""
        return self.choices if self.kind == "categorical" else (self.low, self.high)

    def points(self) -> list[Scalar] | None:
        """All values, None where they cannot be counted."""
        if self.kind == "categorical":
            return list(self.choices)
        step = self.step or (1 if self.kind == "int" and not self.log else None)
        if step is None:
            return None
        count = round((self.high - self.low) / step) + 1
        # 0.1 + 2 * 0.1 is not 0.3, and would be another cell.
        values = (round(self.low + i * step, 12) for i in range(count))
        return [min(value, self.high) for value in values]

    def draw(self, source: random.Random) -> Scalar:
        if points := self.points():
            return source.choice(points)
        value = source.uniform(self.low, self.high)
        return round(value) if self.kind == "int" else value

    def suggest(self, trial: Any) -> Scalar:
        """Ask ``trial``, an :class:`optuna.Trial`, for a value."""
        if self.kind == "categorical":
            return trial.suggest_categorical(self.key, self.choices)
        options = {"log": self.log, **({"step": self.step} if self.step else {})}
        suggest = trial.suggest_int if self.kind == "int" else trial.suggest_float
        return suggest(self.key, self.low, self.high, **options)


def encode(value: Any) -> Scalar:
    """A value as Optuna can store it: lists become JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def decode(value: Scalar) -> Any:
    """The inverse of :func:`encode`."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return json.loads(value)
    return value


def parameters_of(values: Any, where: str) -> tuple[Parameter, ...]:
    """The parameters of a space as written, by their dotted keys."""
    place = f"{where}: parameters"
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(place, "", "a mapping of options to ranges or choices is needed")
    found: dict[str, Parameter] = {}
    for key, given in values.items():
        split_key(str(key), f"{place}.{key}")
        found[key] = _parameter(str(key), given, found, f"{place}.{key}")
    return tuple(found.values())


def _parameter(key: str, given: Any, earlier: Mapping[str, Parameter], where: str) -> Parameter:
    kinds = [k for k in _KINDS if isinstance(given, Mapping) and k in given]
    if len(kinds) != 1:
        raise ConfigError(
            where,
            "",
            "one of categorical: [a, b], int: [low, high], float: [low, high] is needed "
            f"(got {given!r})",
        )
    kind = kinds[0]
    for name in given:
        if name not in (kind, "when", *_KEYS[kind]):
            valid = ("when", *_KEYS[kind])
            raise ConfigError(where, str(name), unknown(name, valid, f"unknown key beside {kind}"))
    when = _when(given.get("when"), earlier, f"{where}.when")
    if kind == "categorical":
        return Parameter(key, kind, choices=_choices(given[kind], f"{where}.{kind}"), when=when)
    low, high = _range(given[kind], kind, f"{where}.{kind}")
    log, step = given.get("log", False), given.get("step")
    if not isinstance(log, bool):
        raise ConfigError(where, "log", f"true or false is needed (got {log!r})")
    if log and low <= 0:
        raise ConfigError(where, kind, f"with log the range must be above 0 (got {low!r})")
    if step is not None:
        if log:
            raise ConfigError(where, "step", "log and step exclude each other")
        if not _is_number(step, kind) or step <= 0:
            raise ConfigError(where, "step", f"a positive {_NOUN[kind]} is needed (got {step!r})")
        if not math.isclose(round(steps := (high - low) / step), steps):
            raise ConfigError(where, "step", f"{low!r} to {high!r} is no whole number of steps")
    return Parameter(key, kind, low=low, high=high, log=log, step=step, when=when)


_NOUN = {"int": "whole number", "float": "number"}


def _choices(values: Any, where: str) -> tuple[Scalar, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(where, "", f"a list of values is needed (got {values!r})")
    encoded = [encode(value) for value in values]
    for value in encoded:
        if sum(_same(decode(other), decode(value)) for other in encoded) > 1:
            raise ConfigError(where, "", f"{value!r} appears twice")
    return tuple(encoded)


def _same(a: Any, b: Any) -> bool:
    """Whether both make the same cell, as 2 and 2.0 do; true is no number."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _range(values: Any, kind: str, where: str) -> tuple[float, float]:
    if (
        not isinstance(values, list)
        or len(values) != 2
        or not all(_is_number(v, kind) for v in values)
    ):
        message = f"[low, high] of two {_NOUN[kind]}s is needed (got {values!r})"
        raise ConfigError(where, "", message)
    low, high = values
    if low > high:
        raise ConfigError(where, "", f"the range is empty ({low!r} is above {high!r})")
    return (low, high) if kind == "int" else (float(low), float(high))


def _is_number(value: Any, kind: str) -> bool:
    types = int if kind == "int" else (int, float)
    return isinstance(value, types) and not isinstance(value, bool) and math.isfinite(value)


def _when(values: Any, earlier: Mapping[str, Parameter], where: str) -> tuple:
    if values is None:
        return ()
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(where, "", "a mapping of a parameter to its values is needed")
    conditions = []
    for key, allowed in values.items():
        if key not in earlier or earlier[key].kind != "categorical":
            valid = [k for k, p in earlier.items() if p.kind == "categorical"]
            message = f"{key!r} is no categorical parameter further up"
            raise ConfigError(where, "", unknown(key, valid, message))
        choices = earlier[key].choices
        options = allowed if isinstance(allowed, list) else [allowed]
        # A list may be one choice (scales) or several.
        options = [allowed] if encode(allowed) in choices else options
        for option in options:
            if encode(option) not in choices:
                shown = [str(c) for c in choices]
                message = unknown(option, shown, f"{option!r} is not one of its choices")
                raise ConfigError(where, key, message)
        conditions.append((key, tuple(encode(option) for option in options)))
    return tuple(conditions)
