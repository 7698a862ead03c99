"""The numbers that are read off a record: one table of names, values, units, labels, directions.

Grids' tables and figures, searches (objectives, constraints, early stopping) and labels all take a
number by its name from here, so a new number is one entry of :data:`MEASURES`.

============================  ======================================================
accuracy, val_loss            on the validation images, at the selected epoch
test_accuracy                 on the test images, with the weights of that epoch
energy_mj                     millijoule per image, by the default energy model
energy_mj:<model>             the same by any other of :mod:`msvit.records.energy`
firing_rate                   spikes per neuron and time step; none for a network without neurons
parameters, macs, acs         trained values; operations per image, as the papers count them
synops                        synaptic operations per image, to the synapse
effective_macs, effective_acs by NeuroBench's definitions, per image
membrane_updates              neurons times time steps, per image
step_time, training_seconds   seconds
images_per_second             training images
data_wait                     share of the time of training steps spent waiting for images
peak_memory_gb                10⁹ bytes
============================  ======================================================

Energy, firing rate and operations need no labels: they are counted on the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from statistics import fmean
from typing import Literal

from msvit.records.energy import DEFAULT_ENERGY_MODEL, ENERGY_MODELS
from msvit.records.neurobench import neurobench
from msvit.records.schema import Epoch, Record, RecordError

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Measure:
    """One number of a record.

    Attributes:
        value: reads it off a record, in the unit of its name (seconds, shares, counts where the
            name has none); None where a record has no such number.
        better: which end of it is the good one.
        label: what it is, on axes and in sentences.
        heading: the same above a narrow column, where ``label`` is too long for that.
        units: units to show it in, the largest first, and the factor to each.
        per: what it is counted per, such as ``image``.
        note: what has to stand beside its unit, such as ``computed``.
        decimals: digits behind the point in tables; None gives the smallest value three digits.
        every_epoch: its key in what training reports after each epoch, where it is known then.
        most: the largest value that can be, where there is one; the smallest is 0 for all.
        reported: whether a study reports it in the end, so that nothing may be chosen by it.
    """

    value: Callable[[Record], float | None]
    better: Direction
    label: str
    heading: str = ""
    units: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})
    per: str = ""
    note: str = ""
    decimals: int | None = None
    every_epoch: str | None = None
    most: float | None = None
    reported: bool = False

    def unit(self, values: Iterable[float]) -> str:
        """The largest unit in which the largest of ``values`` is at least 1; the last if none is.

        Without any value, the unit that they are recorded in.
        """
        known = [value for value in values if value is not None and not isnan(value)]
        if not known:
            return next((u for u, factor in self.units.items() if factor == 1), [*self.units][-1])
        largest = max(known)
        return next((u for u, f in self.units.items() if largest * f >= 1), [*self.units][-1])

    def column(self, unit: str, name: str | None = None) -> str:
        """Heading of a column: ``energy (µJ/image)``."""
        shown = f"{unit}/{self.per}" if self.per else unit
        return _with_unit(name or self.heading or self.label, shown)

    def axis(self, unit: str) -> str:
        """Label of an axis: ``energy per image (µJ, computed)``."""
        name = f"{self.label} per {self.per}" if self.per else self.label
        return _with_unit(name, ", ".join(part for part in (unit, self.note) if part))

    def text(self, value: float) -> str:
        """In a sentence: ``energy 1.52 µJ``."""
        unit = self.unit([value])
        number = value * self.units[unit]
        digits = f"{number:.1f}" if unit == "%" else f"{number:.4g}"
        return f"{self.label} {digits}{'' if unit in ('', '%') else ' '}{unit}"


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def selected(record: Record) -> Epoch:
    """The epoch whose weights were kept: the best on the validation images.

    Raises:
        RecordError: where the history lacks it.
    """
    for epoch in record["history"]:
        if epoch["epoch"] == record["selected_epoch"]:
            return epoch
    raise RecordError(f"record of cell {record['id']}: no history of the selected epoch")


def _operations(kind: Literal["macs", "acs"]) -> Callable[[Record], float]:
    return lambda record: sum(row[kind] for row in record["operations"])


def _synops(record: Record) -> float | None:
    rows = [row for row in record["operations"] if row["kind"] != "neuron"]
    if not all("synops" in row for row in rows):
        return None
    return sum(row["synops"] or 0.0 for row in rows)


def _neurobench(name: str) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        found = neurobench(record["operations"])
        return None if found is None else found.get(name)

    return value


def _step_time(record: Record) -> float | None:
    """Seconds of a step, whose batch a small training set may not fill."""
    cell, rate = record["cell"], record["images_per_second"]
    images = cell["training"]["batch_size"]
    if per_class := cell["data"].get("train_per_class"):
        images = min(images, per_class * cell["model"]["num_classes"])
    return images / rate if rate else None


def _energy(model: str) -> Measure:
    return Measure(
        lambda record: ENERGY_MODELS[model](record["operations"]),
        "minimize",
        "energy" if model == DEFAULT_ENERGY_MODEL else f"energy by {model}",
        heading=f"energy by {model}",
        units={"mJ": 1.0, "µJ": 1e3, "nJ": 1e6},
        per="image",
        note=f"by {model}" if model == DEFAULT_ENERGY_MODEL else "computed",
    )


_PERCENT = {"%": 100.0}
_COUNT = {"G": 1e-9, "M": 1e-6, "k": 1e-3, "": 1.0}

MEASURES: dict[str, Measure] = {
    "accuracy": Measure(
        lambda record: selected(record)["val_accuracy"],
        "maximize",
        "validation accuracy",
        heading="validation",
        units=_PERCENT,
        decimals=2,
        every_epoch="val_accuracy",
        most=1.0,
    ),
    "val_loss": Measure(
        lambda record: selected(record)["val_loss"],
        "minimize",
        "validation loss",
        every_epoch="val_loss",
    ),
    "test_accuracy": Measure(
        lambda record: record["test"]["accuracy"],
        "maximize",
        "test accuracy",
        heading="test",
        units=_PERCENT,
        decimals=2,
        most=1.0,
        reported=True,
    ),
    "energy_mj": _energy(DEFAULT_ENERGY_MODEL),
    "firing_rate": Measure(
        lambda record: record["firing_rate"] if record["firing"] else None,
        "minimize",
        "firing rate",
        decimals=3,
    ),
    "parameters": Measure(
        lambda record: record["parameters"], "minimize", "parameters", units={"M": 1e-6}
    ),
    "macs": Measure(_operations("macs"), "minimize", "MACs", units=_COUNT, per="image"),
    "acs": Measure(_operations("acs"), "minimize", "ACs", units=_COUNT, per="image"),
    "synops": Measure(_synops, "minimize", "synaptic operations", units=_COUNT, per="image"),
    **{
        name: Measure(
            _neurobench(name), "minimize", name.replace("_", " "), units=_COUNT, per="image"
        )
        for name in ("effective_macs", "effective_acs", "membrane_updates")
    },
    "step_time": Measure(
        _step_time,
        "minimize",
        "training step",
        units={"s": 1.0, "ms": 1e3},
    ),
    "training_seconds": Measure(
        lambda record: record["training_seconds"],
        "minimize",
        "training",
        units={"h": 1 / 3600, "min": 1 / 60, "s": 1.0},
    ),
    "images_per_second": Measure(
        lambda record: record["images_per_second"],
        "maximize",
        "training speed",
        units={"images/s": 1.0},
    ),
    "data_wait": Measure(
        lambda record: record.get("data_wait"),
        "minimize",
        "waiting for data",
        units=_PERCENT,
        decimals=1,
        most=1.0,
    ),
    "peak_memory_gb": Measure(
        lambda record: record["peak_memory_gb"], "minimize", "peak memory", units={"GB": 1.0}
    ),
}


def all_measures() -> dict[str, Measure]:
    """Every measure by its name: :data:`MEASURES`, and energy under each further model."""
    further = [model for model in ENERGY_MODELS if model != DEFAULT_ENERGY_MODEL]
    return {**MEASURES, **{energy_measure(model): _energy(model) for model in further}}


def energy_measure(model: str) -> str:
    """The measure of energy by a model."""
    return "energy_mj" if model == DEFAULT_ENERGY_MODEL else f"energy_mj:{model}"


def energy_model(measure: str) -> str:
    """The model of a measure of energy."""
    return measure.partition(":")[2] or DEFAULT_ENERGY_MODEL


def all_energies() -> list[str]:
    """The measures of energy, by every model."""
    return [energy_measure(model) for model in ENERGY_MODELS]


def canonical(name: str) -> str:
    """The name of a measure as it stands in :func:`all_measures`.

    The default energy model may be asked for by its own name as well.
    """
    return energy_measure(energy_model(name)) if name.startswith("energy_mj:") else name


def measured(record: Record) -> dict[str, float]:
    """Every measure that this record has.

    Raises:
        RecordError: where the history lacks the selected epoch.
    """
    values = {name: measure.value(record) for name, measure in all_measures().items()}
    return {name: value for name, value in values.items() if value is not None}


def mean_measures(records: Sequence[Record]) -> dict[str, float]:
    """Means over ``records`` (one configuration, several seeds) of what all of them have."""
    rows = [measured(record) for record in records]
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: fmean(row[name] for row in rows) for name in shared}
