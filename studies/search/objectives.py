"""What a search aims at: objectives and constraints on the measures of a record."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msvit.options import ConfigError, unknown
from msvit.records.measures import Direction, Measure, all_measures

_CONSTRAINT = re.compile(r"\s*([\w:]+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """``measure <= bound`` or ``measure >= bound``."""

    measure: str
    sign: Literal["<=", ">="]
    bound: float

    def excess(self, measures: Mapping[str, float]) -> float:
        """How far the measure is on the wrong side; at most 0 where it is allowed."""
        over = measures[self.measure] - self.bound
        return over if self.sign == "<=" else -over

    def __str__(self) -> str:
        return f"{self.measure} {self.sign} {self.bound:g}"


def objectives_of(values: Any, where: str) -> dict[str, Direction]:
    """Objectives as written: ``{accuracy: maximize, ...}`` or a list of names."""
    place = f"{where}: objectives"
    if isinstance(values, list):
        for name in values:
            if values.count(name) > 1:
                raise ConfigError(place, "", f"{name!r} appears twice")
        values = {name: _measure(name, f"{place}.{name}").better for name in values}
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(place, "", "a mapping such as {accuracy: maximize} is needed")
    for name, direction in values.items():
        _measure(name, f"{place}.{name}")
        if direction not in ("maximize", "minimize"):
            message = f"unknown direction {direction!r}"
            raise ConfigError(place, name, unknown(direction, ("maximize", "minimize"), message))
    return dict(values)


def constraints_of(values: Any, where: str) -> tuple[Constraint, ...]:
    """Constraints as written: a list of texts such as ``energy_mj <= 0.2``."""
    place = f"{where}: constraints"
    if values is None:
        return ()
    if not isinstance(values, list):
        raise ConfigError(place, "", "a list such as ['energy_mj <= 0.2'] is needed")
    return tuple(_constraint(text, f"{place}[{i}]") for i, text in enumerate(values))


def _constraint(text: Any, where: str) -> Constraint:
    match = _CONSTRAINT.fullmatch(str(text))
    if not match:
        raise ConfigError(where, "", f"write it as 'energy_mj <= 0.2' (got {text!r})")
    name, sign, number = match.groups()
    measure = _measure(name, where)
    try:
        bound = float(number)
    except ValueError:
        bound = float("nan")
    if not math.isfinite(bound):
        raise ConfigError(where, "", f"a number is needed behind {sign} (got {number!r})")
    if measure.most == 1 and not 0 <= bound <= 1:
        raise ConfigError(where, "", f"{name} is a share; write 0.9 for 90 % (got {number})")
    return Constraint(name, "<=" if sign == "<=" else ">=", bound)


def _measure(name: Any, where: str) -> Measure:
    measures = all_measures()
    if name not in measures:
        raise ConfigError(where, "", unknown(name, measures, f"{name!r} is not recorded"))
    if measures[name].reported:
        message = f"what is reported in the end must choose nothing ({name}); take accuracy"
        raise ConfigError(where, "", message)
    return measures[name]
