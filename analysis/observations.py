"""What one record says, as columns of the frames of :mod:`analysis.collect`. Needs no pandas."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msvit.cells import SECTIONS
from msvit.data.fingerprint import Fingerprint
from msvit.records.measures import measured
from msvit.records.schema import Epoch, Firing, Operations, Record

Columns = dict[str, tuple[Any, ...]]
"""As many values by each name: a record has hundreds of rows, of which each would be an object."""

HISTORY_COLUMNS = list(Epoch.__annotations__)
FIRING_COLUMNS = [*Firing.__annotations__, "position"]
OPERATION_COLUMNS = [*Operations.__annotations__, "position"]


@dataclass(frozen=True)
class Observations:
    """One finished cell.

    Attributes:
        scores: columns of ``cells`` that come from its record.
        images: which images it was trained on; None where an earlier version did not tell.
        history, firing, operations: the columns above.
    """

    scores: dict[str, Any]
    images: Fingerprint | None
    history: Columns
    firing: Columns
    operations: Columns


def observe(record: Record) -> Observations:
    """All that tables and figures need of a record.

    Raises:
        RecordError: where its history lacks the selected epoch.
    """
    return Observations(
        scores={
            **options(record["cell"]),
            **measured(record),
            "selected_epoch": record["selected_epoch"],
            "test_images": record["test"]["images"],
            "precision": record["precision"],
            "workers": record.get("workers", {"count": 1})["count"],
            **_images(record.get("data")),
            **{f"environment.{key}": value for key, value in record["environment"].items()},
        },
        images=record.get("data"),
        history=_columns(record["history"], HISTORY_COLUMNS),
        firing=_of_layers(record["firing"], FIRING_COLUMNS),
        operations=_of_layers(record["operations"], OPERATION_COLUMNS),
    )


def options(cell: Mapping[str, Any]) -> dict[str, Any]:
    """``{"model": {"name": "msvit", "scales": [1, 3]}}`` as model, model.scales, ..."""
    return {
        part if key == "name" else f"{part}.{key}": _hashable(value)
        for part in SECTIONS
        for key, value in cell[part].items()
    }


def _images(found: Fingerprint | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {"images.counts": json.dumps(found["counts"]), "images.digest": found["digest"]}


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return value


def _columns(rows: Sequence[Any], names: Sequence[str]) -> Columns:
    # Earlier versions have counted less.
    return {name: tuple([row.get(name) for row in rows]) for name in names}


def _of_layers(rows: Sequence[Any], names: Sequence[str]) -> Columns:
    """``names`` of the rows; the last one is the layer's place in the network, from 0."""
    columns = _columns(rows, names[:-1])
    places = {layer: place for place, layer in enumerate(dict.fromkeys(columns["layer"]))}
    # The same words in every record of a study: kept once.
    columns["layer"] = tuple([sys.intern(layer) for layer in columns["layer"]])
    return columns | {names[-1]: tuple([places[layer] for layer in columns["layer"]])}
