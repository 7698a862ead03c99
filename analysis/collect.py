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
    one column per measure    by its name in :mod:`msvit.records.measures`, which tells the
                              unit; empty where a record has no such number
    test_images               number of test images
    selected_epoch            1-based
    precision                 what products were computed in
    workers                   processes that have shared every batch
    environment.*             processor, device, threads, versions, commit, time
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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.observations import (
    FIRING_COLUMNS,
    HISTORY_COLUMNS,
    OPERATION_COLUMNS,
    Observations,
    observe,
    options,
)
from msvit.options import unknown
from msvit.recipes import TrainingOptions
from msvit.records.measures import all_measures
from msvit.records.schema import Manifest, RecordError
from msvit.records.store import (
    Records,
    cell_folder,
    list_studies,
    read_failure,
    read_study,
    study_folder,
)

NONE = "none"

KEY_COLUMNS = ["id", "group", "seed"]


@dataclass(frozen=True)
class StudyResults:
    """All that is known of one study, finished or not.

    Attributes:
        name: name of the grid.
        question: what the study asks, one sentence.
        axes: dotted names of the options that vary, such as ``("model.scales",)``.
        groups: configuration labels in grid order.
        grid_file: the file that the grid was read from.
        overrides: settings given on the command line in place of the grid's own.
        folder: where tables and figures of this study go.
        warnings: one line per file that could not be used.
        cells, history, firing, operations: see the head of this module.
    """

    name: str
    question: str
    axes: tuple[str, ...]
    groups: tuple[str, ...]
    grid_file: str
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


def cell_columns() -> list[str]:
    """The columns of ``cells`` that every study has; those of options follow."""
    known = ["id", "group", "label", "seed", "status", "model", "data"]
    return [
        *known,
        *all_measures(),
        *("test_images", "selected_epoch", "precision"),
        "problem",
        "log",
    ]


def collect(results: Path, grid: str, records: Records[Observations] | None = None) -> StudyResults:
    """Read one study from its manifest and the records of its cells.

    ``records`` are those of this folder that have been read already; the others are read now.
    A cell without a usable record is a row with status ``failed`` or ``missing``; a file that
    cannot be used becomes one line in :attr:`StudyResults.warnings`.

    Raises:
        RecordError: if the folder or the study's manifest is not there or cannot be used.
    """
    results = Path(results)
    manifest = _manifest(results, grid)
    records = records or Records(results, observe)
    rows: list[dict[str, Any]] = []
    observations: list[tuple[tuple[Any, ...], Observations]] = []
    warnings: list[str] = []
    axes = manifest["axes"]
    for entry in manifest["cells"]:
        try:
            observed = records.get(entry["id"])
            if observed is None:
                row = _unfinished(results, entry["id"])
            else:
                row = {**observed.scores, "status": "finished"}
                observations.append((itemgetter(*KEY_COLUMNS)(entry), observed))
        except RecordError as error:
            warnings.append(f"{error} It counts as missing.")
            row = {"status": "missing", "problem": str(error)}
        log = cell_folder(results, entry["id"]) / "log.txt"
        row = _with_axes(row, axes)
        rows.append({**entry, **row, "log": str(log) if log.exists() else None})
    cells = pd.DataFrame(rows)
    first = cell_columns()
    return StudyResults(
        name=manifest["name"],
        question=manifest["question"],
        axes=tuple(manifest["axes"]),
        groups=tuple(cells["group"].unique()),
        grid_file=manifest["grid_file"],
        overrides=tuple(manifest.get("overrides", ())),
        folder=study_folder(results, manifest["name"]),
        cells=cells.reindex(columns=[*first, *(c for c in cells if c not in first)]),
        history=_long(observations, "history", HISTORY_COLUMNS),
        firing=_long(observations, "firing", FIRING_COLUMNS),
        operations=_long(observations, "operations", OPERATION_COLUMNS),
        warnings=tuple(warnings),
    )


def _long(
    observations: Sequence[tuple[tuple[Any, ...], Observations]], kind: str, names: Sequence[str]
) -> pd.DataFrame:
    """One frame of what each cell has of ``kind``, every row with the cell's own key."""
    columns = [getattr(observed, kind) for _, observed in observations]
    counts = [len(values[names[0]]) for values in columns]
    keys = pd.DataFrame([key for key, _ in observations], columns=KEY_COLUMNS)
    frame = keys.loc[keys.index.repeat(counts)].reset_index(drop=True)
    for name in names:
        frame[name] = list(chain.from_iterable(values[name] for values in columns))
    return frame


def _manifest(results: Path, grid: str) -> Manifest:
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


def _unfinished(results: Path, cell_id: str) -> dict[str, Any]:
    failure = read_failure(results, cell_id)
    if failure is None:
        return {"status": "missing", "problem": "not trained yet"}
    problem = f"{failure['error']}: {failure['message']}"
    return {**options(failure["cell"]), "status": "failed", "problem": problem}


def _with_axes(row: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """``row`` where null is a value like the others, not a gap, of options that are varied."""
    row = dict(row)
    if row["status"] == "missing":
        return row
    for axis in axes:
        section, _, option = axis.partition(".")
        if axis not in row and section == "training":
            # Left out where it is at its default, or, of an earlier version, null.
            known = TrainingOptions.model_fields.get(option)
            row[axis] = None if known is None else known.get_default()
        if axis in row and row[axis] is None:
            row[axis] = NONE
    return row
