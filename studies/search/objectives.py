"""What a search aims at: objectives and constraints on the measures of a record."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msvit.options import ConfigError, unknown
from msvit.records.measures import Direction, Measure, all_measures, canonical

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
        pairs = [(name, _measure(name, f"{place}.{name}").better) for name in values]
    elif isinstance(values, Mapping):
        pairs = list(values.items())
    else:
        pairs = []
    if not pairs:
        raise ConfigError(place, "", "a mapping such as {accuracy: maximize} is needed")
    found: dict[str, Direction] = {}
    for name, direction in pairs:
        _measure(name, f"{place}.{name}")
        if direction not in ("maximize", "minimize"):
            message = f"unknown direction {direction!r}"
            raise ConfigError(place, name, unknown(direction, ("maximize", "minimize"), message))
        if canonical(name) in found:
            raise ConfigError(place, "", f"{name!r} appears twice")
        found[canonical(name)] = direction
    return found


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
    return Constraint(canonical(name), "<=" if sign == "<=" else ">=", bound)


def _measure(name: Any, where: str) -> Measure:
    measures = all_measures()
    measure = measures.get(canonical(name)) if isinstance(name, str) else None
    if measure is None:
        raise ConfigError(where, "", unknown(name, measures, f"{name!r} is not recorded"))
    if measure.reported:
        message = f"what is reported in the end must choose nothing ({name}); take accuracy"
        raise ConfigError(where, "", message)
    return measure
