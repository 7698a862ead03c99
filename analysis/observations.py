"""What one record says, as rows of the frames of :mod:`analysis.collect`. Needs no pandas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msvit.cells import SECTIONS
from msvit.data.fingerprint import Fingerprint
from msvit.records.measures import measured
from msvit.records.schema import Epoch, Firing, Operations, Record

Row = tuple[Any, ...]

HISTORY_COLUMNS = list(Epoch.__annotations__)
FIRING_COLUMNS = [*Firing.__annotations__, "position"]
OPERATION_COLUMNS = [*Operations.__annotations__, "position"]


@dataclass(frozen=True)
class Observations:
    """One finished cell.

    Attributes:
        scores: columns of ``cells`` that come from its record.
        images: which images it was trained on; None where an earlier version did not tell.
        history, firing, operations: rows, in the order of the columns above.
    """

    scores: dict[str, Any]
    images: Fingerprint | None
    history: list[Row]
    firing: list[Row]
    operations: list[Row]


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
        history=[tuple(map(row.get, HISTORY_COLUMNS)) for row in record["history"]],
        firing=_with_position(record["firing"], FIRING_COLUMNS),
        operations=_with_position(record["operations"], OPERATION_COLUMNS),
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


def _with_position(rows: list[Any], columns: list[str]) -> list[Row]:
    """``rows`` in the order of ``columns``, of which the last is the layer's place, from 0."""
    positions: dict[str, int] = {}
    return [
        (
            *(row.get(column) for column in columns[:-1]),  # earlier versions counted less
            positions.setdefault(row["layer"], len(positions)),
        )
        for row in rows
    ]
