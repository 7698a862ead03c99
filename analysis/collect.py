"""From the files of a results folder to tidy data frames.

One row per observation, one frame per kind of observation; tables and figures are functions
of these frames and of nothing else. Columns and units:

``cells``, one row per cell of the study, in the order of its manifest:
    ========================  =====================================================
    id, group, label, seed    as in the manifest; ``group`` is a configuration without its seed
    status                    ``finished``, ``failed`` or ``missing``
    model, data               registry names
    model.*, data.*,          every option of the cell by its dotted name, such as
    training.*                ``model.scales``; lists are tuples; empty where a model lacks it;
                              null is ``none`` where the study varies the option, else empty
    parameters                trained values of the model
    test_accuracy             share in [0, 1], at the selected epoch
    val_accuracy              share in [0, 1], at the selected epoch
    test_images               number of test images
    selected_epoch            1-based
    firing_rate               spikes per neuron and time step, all neuron layers, test images
    energy_mj                 millijoule per image, energy model ``ENERGY_MODEL``
    training_seconds          wall time of the training
    images_per_second         training images per second
    peak_memory_gb            gigabytes
    precision                 what products were computed in
    problem                   why a cell is not finished, one line; empty for finished cells
    log                       path of the cell's log, if there is one
    ========================  =====================================================

``history``: id, group, seed, epoch (1-based), lr, train_loss, train_accuracy, val_loss,
    val_accuracy (shares), seconds.
``firing``: id, group, seed, layer, timestep (0-based), rate (spikes per neuron), neurons (per
    image), position (of the layer in the network, 0-based).
``operations``: id, group, seed, layer, kind, input, dense_macs, input_rate, macs, acs (per
    image, summed over all time steps), position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from msvit.cells import SECTIONS
from msvit.options import unknown
from msvit.recipes import TrainingOptions
from msvit.records import (
    Epoch,
    Firing,
    Operations,
    RecordError,
    cell_folder,
    read_failure,
    read_record,
    read_study,
    study_folder,
)

ENERGY_MODEL = "sop_spikformer"
NONE = "none"

KEY_COLUMNS = ["id", "group", "seed"]
CELL_COLUMNS = [
    *("id", "group", "label", "seed", "status", "model", "data"),
    *("parameters", "test_accuracy", "val_accuracy", "test_images", "selected_epoch"),
    *("firing_rate", "energy_mj", "training_seconds", "images_per_second", "peak_memory_gb"),
    "precision",
    *("problem", "log"),
]
HISTORY_COLUMNS = list(Epoch.__annotations__)
FIRING_COLUMNS = [*Firing.__annotations__, "position"]
OPERATION_COLUMNS = [*Operations.__annotations__, "position"]


@dataclass(frozen=True)
class Study:
    """All that is known of one study, finished or not.

    Attributes:
        name: name of the grid.
        question: what the study asks, one sentence.
        axes: dotted names of the options that vary, such as ``("model.scales",)``.
        groups: configuration labels in grid order.
        overrides: settings given on the command line in place of the grid's own.
        folder: where tables and figures of this study go.
        warnings: one line per file that could not be used.
        cells, history, firing, operations: see the head of this module.
    """

    name: str
    question: str
    axes: tuple[str, ...]
    groups: tuple[str, ...]
    overrides: tuple[str, ...]
    folder: Path
    cells: pd.DataFrame
    history: pd.DataFrame
    firing: pd.DataFrame
    operations: pd.DataFrame
    warnings: tuple[str, ...]

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of ``cells`` that have a record."""
        return self.cells[self.cells["status"] == "finished"]

    @property
    def unfinished(self) -> pd.DataFrame:
        """The rows of ``cells`` that failed or are missing."""
        return self.cells[self.cells["status"] != "finished"]


def list_studies(results: Path) -> list[str]:
    """Names of the studies that a results folder holds, sorted."""
    return sorted(path.parent.name for path in results.glob("studies/*/study.json"))


def collect(results: Path, grid: str) -> Study:
    """Read one study from its manifest and the records of its cells.

    A cell without a usable record is a row with status ``failed`` or ``missing``; a file that
    cannot be used becomes one line in :attr:`Study.warnings`.

    Raises:
        RecordError: if the folder or the study's manifest is not there or cannot be used.
    """
    results = Path(results)
    manifest = _manifest(results, grid)
    frames: dict[str, list[Any]] = {"cells": [], "history": [], "firing": [], "operations": []}
    warnings: list[str] = []
    axes = manifest["axes"]
    for entry in manifest["cells"]:
        try:
            record = read_record(results, entry["id"])
            if record is None:
                row = _unfinished(results, entry["id"], axes)
            else:
                row = _scores(record, axes)
                _add_observations(frames, entry, record)
        except RecordError as error:
            warnings.append(f"{error} It counts as missing.")
            row = {"status": "missing", "problem": str(error)}
        log = cell_folder(results, entry["id"]) / "log.txt"
        frames["cells"].append({**entry, **row, "log": str(log) if log.exists() else None})
    cells = pd.DataFrame(frames["cells"])
    return Study(
        name=manifest["name"],
        question=manifest["question"],
        axes=tuple(manifest["axes"]),
        groups=tuple(cells["group"].unique()),
        overrides=tuple(manifest.get("overrides", ())),
        folder=study_folder(results, manifest["name"]),
        cells=cells.reindex(columns=[*CELL_COLUMNS, *(c for c in cells if c not in CELL_COLUMNS)]),
        history=pd.DataFrame(frames["history"], columns=KEY_COLUMNS + HISTORY_COLUMNS),
        firing=pd.DataFrame(frames["firing"], columns=KEY_COLUMNS + FIRING_COLUMNS),
        operations=pd.DataFrame(frames["operations"], columns=KEY_COLUMNS + OPERATION_COLUMNS),
        warnings=tuple(warnings),
    )


def _manifest(results: Path, grid: str) -> dict[str, Any]:
    if not results.is_dir():
        raise RecordError(f"{results}: no such results folder")
    known = list_studies(results)
    if grid not in known:
        train = f"To run it: python studies/run.py --grid {grid}"
        if not known:
            raise RecordError(f"{results}: no study in this folder yet. {train}")
        raise RecordError(
            unknown(grid, known, f"{results}: no results of a study {grid!r}") + f". {train}"
        )
    manifest = read_study(results, grid)
    if not manifest["cells"]:
        raise RecordError(f"{study_folder(results, grid) / 'study.json'}: a study without cells")
    return manifest


def _unfinished(results: Path, cell_id: str, axes: Sequence[str]) -> dict[str, Any]:
    failure = read_failure(results, cell_id)
    if failure is None:
        return {"status": "missing", "problem": "not trained yet"}
    problem = f"{failure['error']}: {failure['message']}"
    return {**_options(failure["cell"], axes), "status": "failed", "problem": problem}


def _options(cell: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """``{"model": {"name": "msvit", "scales": [1, 3]}}`` as model, model.scales, ..."""
    row: dict[str, Any] = {}
    for part in SECTIONS:
        for key, value in cell[part].items():
            row[part if key == "name" else f"{part}.{key}"] = _hashable(value)
    for axis in axes:  # a value like the others, not a gap
        left_out = axis.removeprefix("training.") in TrainingOptions.model_fields
        if row.get(axis) is None and (axis in row or left_out):
            row[axis] = NONE
    return row


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return value


def _scores(record: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """The columns of ``cells`` that come from a record."""
    selected = [row for row in record["history"] if row["epoch"] == record["selected_epoch"]]
    if not selected or ENERGY_MODEL not in record["energy_mj"]:
        lacks = f"energy by {ENERGY_MODEL}" if selected else "history of the selected epoch"
        raise RecordError(f"record.json of cell {record['id']}: no {lacks}.")
    same = ["parameters", "selected_epoch", "firing_rate"]
    same += ["training_seconds", "images_per_second", "peak_memory_gb", "precision"]
    return {
        **_options(record["cell"], axes),
        **{column: record[column] for column in same},
        "status": "finished",
        "test_accuracy": record["test"]["accuracy"],
        "test_images": record["test"]["images"],
        "val_accuracy": selected[0]["val_accuracy"],
        "energy_mj": record["energy_mj"][ENERGY_MODEL],
    }


def _add_observations(
    frames: dict[str, list[Any]], entry: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    key = tuple(entry[column] for column in KEY_COLUMNS)
    for epoch in record["history"]:
        frames["history"].append((*key, *(epoch[column] for column in HISTORY_COLUMNS)))
    for frame, columns in (("firing", FIRING_COLUMNS), ("operations", OPERATION_COLUMNS)):
        positions: dict[str, int] = {}
        for row in record[frame]:
            row["position"] = positions.setdefault(row["layer"], len(positions))
            frames[frame].append((*key, *(row[column] for column in columns)))
