"""What happens in the process of one trial: its cells are run, Tune hears of every epoch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msvit.allotment import GPU_SHARE
from msvit.cells import Cell
from msvit.recipes import trained_epochs
from msvit.records.faults import is_of_surroundings
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder, has_record
from studies.packing import out_of_gpu_memory
from studies.worker import run_cell, trained_before

_WAIT_SECONDS = 2.0


def run_trial(config: Mapping[str, Any]) -> None:
    """Tune's trainable: run the cells of ``config["task"]``, JSON, one after the other.

    Reports ``{"epoch", "value"}`` after each epoch of the first cell but the last, and at the end
    ``{"epoch", "value", "records"}``, or ``{"epoch", "failure", "hindered"}``, or
    ``{"epoch", "broken"}`` where the results cannot be written. Epochs that an earlier process has
    trained are reported first. Where Tune stops the trial, ``report`` does not return.
    """
    from ray import tune

    task = json.loads(config["task"])
    os.environ[GPU_SHARE] = f"{task['gpus']:g}"
    first, *others = (Cell.from_dict(cell) for cell in task["cells"])
    results, key = Path(task["results"]), task["every_epoch"]
    epochs = trained_epochs(first.training)

    def report(progress: Mapping[str, Any]) -> None:
        # The last epoch is reported with the record: where the pruner would stop, all is done.
        if 0 < progress["epoch"] < epochs and key in progress:
            tune.report({"epoch": progress["epoch"], "value": progress[key]})

    reported = key is not None and not has_record(results, first.id)
    if reported:
        for progress in trained_before(cell_folder(results, first.id)):
            report(progress)
    records = []
    for cell in (first, *others):
        try:
            outcome = _run(cell, task, report if reported and cell is first else None)
        except RecordError as error:
            tune.report({"epoch": epochs, "broken": str(error)})
            return
        if "failure" in outcome:
            failure = outcome["failure"]
            message = f"{failure['error']}: {failure['message']}"
            if out_of_gpu_memory(outcome) and task["gpus"] < 1:
                message += " With --gpus-per-cell 1 a trial has a whole GPU."
            hindered = is_of_surroundings(failure)
            tune.report({"epoch": epochs, "failure": message, "hindered": hindered})
            return
        records.append(outcome["record"])
    last = {} if key is None else {"value": records[0]["history"][-1][key]}
    tune.report({"epoch": epochs, "records": records, **last})


def _run(cell: Cell, task: Mapping[str, Any], report: Callable[..., None] | None) -> dict[str, Any]:
    """The outcome of a cell, waited for where another process is running it."""
    while True:
        outcome = run_cell(cell.as_dict(), task["results"], task["data_dir"], on_epoch=report)
        if "busy" not in outcome:
            return outcome
        time.sleep(_WAIT_SECONDS)
