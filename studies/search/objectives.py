"""What a search can aim at: figures that every record holds.

``accuracy`` and ``val_loss`` are those of the validation images; the accuracy on the test images is
only shown beside. Energy, firing rate and operations need no labels: as in every record, they are
counted on the test images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from msvit.options import ConfigError, unknown

Direction = Literal["maximize", "minimize"]

BEST: dict[str, Direction] = {
    "accuracy": "maximize",
    "val_loss": "minimize",
    "energy_mj": "minimize",
    "firing_rate": "minimize",
    "parameters": "minimize",
    "macs": "minimize",
    "acs": "minimize",
    "step_time": "minimize",
    "training_seconds": "minimize",
    "peak_memory_gb": "minimize",
}
"""Every figure, and which end of it is the good one."""

PER_EPOCH = {"accuracy": "val_accuracy", "val_loss": "val_loss"}
"""Figures that are known after each epoch, by their key in what training reports."""

ENERGY_MODEL = "sop_spikformer"
_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """``figure <= bound`` or ``figure >= bound``."""

    figure: str
    sign: Literal["<=", ">="]
    bound: float

    def excess(self, figures: Mapping[str, float]) -> float:
        """How far the figures are on the wrong side; at most 0 where they are allowed."""
        over = figures[self.figure] - self.bound
        return over if self.sign == "<=" else -over

    def __str__(self) -> str:
        return f"{self.figure} {self.sign} {self.bound:g}"


def figures_of(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over ``records`` (one configuration, several seeds) of all figures.

    Units: accuracies are shares; energy is millijoule per image, by ``ENERGY_MODEL``; ``macs``
    and ``acs`` are operations per image; ``step_time`` is seconds per training step.
    """
    rows = [_figures(record) for record in records]
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    epoch = next(e for e in record["history"] if e["epoch"] == record["selected_epoch"])
    same = ("firing_rate", "parameters", "training_seconds", "peak_memory_gb")
    return {
        "accuracy": epoch["val_accuracy"],
        "val_loss": epoch["val_loss"],
        "energy_mj": record["energy_mj"][ENERGY_MODEL],
        **{name: float(record[name]) for name in same},
        "macs": sum(row["macs"] for row in record["operations"]),
        "acs": sum(row["acs"] for row in record["operations"]),
        "step_time": record["cell"]["training"]["batch_size"] / record["images_per_second"],
        "test_accuracy": record["test"]["accuracy"],
    }


def objectives_of(values: Any, where: str) -> dict[str, Direction]:
    """Objectives as written: ``{accuracy: maximize, ...}`` or a list of names."""
    place = f"{where}: objectives"
    if isinstance(values, list):
        for name in values:
            if values.count(name) > 1:
                raise ConfigError(place, "", f"{name!r} appears twice")
        values = {str(name): BEST.get(str(name), "minimize") for name in values}
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(place, "", "a mapping such as {accuracy: maximize} is needed")
    for name, direction in values.items():
        _check_figure(name, f"{place}.{name}")
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
    figure, sign, number = match.groups()
    _check_figure(figure, where)
    try:
        bound = float(number)
    except ValueError:
        bound = float("nan")
    if not math.isfinite(bound):
        raise ConfigError(where, "", f"a number is needed behind {sign} (got {number!r})")
    if figure == "accuracy" and not 0 <= bound <= 1:
        raise ConfigError(where, "", f"accuracy is a share; write 0.9 for 90 % (got {number})")
    return Constraint(figure, sign, bound)


def _check_figure(name: Any, where: str) -> None:
    if name not in BEST:
        raise ConfigError(where, "", unknown(name, BEST, f"{name!r} is not recorded"))
