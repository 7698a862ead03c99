"""Counting again, from the kept weights of a finished cell, what an earlier version did not count.

Nothing is trained, and nothing that a record says is changed: rows of operations get the fields
that they lack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from msvit.metrics import Meter
from msvit.records.schema import Operations, Record, RecordError, lacking
from msvit.training.batches import eval_batches
from msvit.training.kept import open_kept
from msvit.training.loop import evaluate

_NEAR = 0.02
"""Share by which accumulates may differ from those of the record, where another processor rounds
otherwise; what differs more is another network, or other images."""


def lacks_counts(record: Record) -> bool:
    """Whether a version has measured it that counted less than this one."""
    return any(lacking(row) for row in record["operations"])


def remeasured(results: Path, record: Record, data_dir: Path | None = None) -> Record:
    """``record`` with its operations counted again on the test images, in its precision.

    Raises:
        CheckpointError: where no weights are kept.
        DataError: where the images are not there, or are others than it was trained on.
        RecordError: where what is counted is not what the record says.
    """
    kept = open_kept(results, record, data_dir)
    with Meter(kept.model) as meter:
        evaluate(eval_batches(kept.test), kept.scores())
    rows = _completed(record["operations"], meter.result().operations, str(kept.folder))
    return {**record, "operations": rows}


def _completed(
    known: Sequence[Operations], found: Sequence[Operations], where: str
) -> list[Operations]:
    """The ``known`` rows with what they lack of those that were ``found``.

    And rows of neurons, which the first versions did not have.
    """
    of_layers, of_neurons = _by_name(found)
    known_layers, known_neurons = _by_name(known)
    if of_layers.keys() != known_layers.keys() or known_neurons.keys() - of_neurons.keys():
        raise RecordError(
            f"{where}: its layers are not those that this version counts; use the version that "
            "wrote it"
        )
    then, now = (sum(row["acs"] for row in rows) for rows in (known, found))
    if not math.isclose(then, now, rel_tol=_NEAR):
        raise RecordError(
            f"{where}: {now:.4g} accumulates are counted and its record says {then:.4g}: "
            "the kept weights or the images are not those that were measured"
        )
    layers: list[Operations] = [{**row, **known_layers[name]} for name, row in of_layers.items()]
    neurons: list[Operations] = [
        {**row, **known_neurons.get(name, row)} for name, row in of_neurons.items()
    ]
    return [*layers, *neurons]


def _by_name(rows: Sequence[Operations]) -> tuple[dict[str, Operations], dict[str, Operations]]:
    """The rows of layers, and those of neurons."""
    layers = {row["layer"]: row for row in rows if row["kind"] != "neuron"}
    return layers, {row["layer"]: row for row in rows if row["kind"] == "neuron"}
