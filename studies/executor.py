"""Runs cells as Ray tasks, one fresh process each, and decides what each ending means.

Retries are ours, not Ray's: a process that died (crash, lost node) is started again and goes
on from the cell's checkpoint, at most :data:`RESUBMISSIONS` times; an exception or an
out-of-memory kill would come again and is recorded as the cell's failure. Other cells go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msvit.options import ConfigError
from msvit.records.schema import Failure, Record, RecordError
from msvit.records.store import (
    cell_folder,
    clear_failure,
    has_record,
    read_failure,
    read_record,
    write_failure,
    write_record,
)
from studies.cluster import LOST, Place, RayLost, connected, packing, resources, slots
from studies.packing import Packing, out_of_gpu_memory, run_on_share
from studies.progress import Display, Tail
from studies.study import StudyCell
from studies.worker import Train, failure_of, is_locked

RESUBMISSIONS = 2
BACKLOG = 1  # tasks that wait in Ray, so that their processes start ahead of time
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Task:
    entry: StudyCell
    attempt: int
    gpus: float = 0.0  # that it runs with


def run_cells(
    entries: Sequence[StudyCell],
    results: Path,
    place: Place,
    display: Display,
    *,
    data_dir: Path | None = None,
    train: Train | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> None:
    """Run cells until each has a record or a failure under ``results``.

    ``train`` is by default :func:`msvit.training.train_cell`; ``on_record`` is given the record of
    every cell that ends well, also where another driver has run it.

    Raises:
        ConfigError: where Ray cannot be reached or no machine is large enough for a cell.
        RecordError: where the results cannot be written.
        RayLost: where Ray dies.
        KeyboardInterrupt: on Ctrl-C; what was running has kept its last checkpoint.
    """
    with connected(place):
        shares = packing(place, results.resolve())
        gpus = max((shares.gpus(entry.cell) for entry in entries), default=0.0)
        if not slots(place.cpus_per_cell, gpus):
            raise ConfigError(
                "",
                "",
                f"no machine has the {place.cpus_per_cell:g} CPUs and {gpus:g} GPUs that one "
                f"cell is to get; Ray sees {resources()}",
            )
        with display:
            _Loop(
                entries, results.resolve(), place, shares, display, data_dir, train, on_record
            ).run()


class _Loop:
    """The driver's side of all cells: waiting, running here, or running elsewhere."""

    def __init__(
        self,
        entries: Sequence[StudyCell],
        results: Path,
        place: Place,
        shares: Packing,
        display: Display,
        data_dir: Path | None,
        train: Train | None,
        on_record: Callable[[Record], None],
    ) -> None:
        import ray

        self._waiting = deque(_Task(entry, 1) for entry in entries)
        self._running: dict[Any, tuple[_Task, Tail]] = {}
        self._elsewhere: list[_Task] = []
        self._results = results
        self._display = display
        self._on_record = on_record
        self._arguments = (str(data_dir.resolve()) if data_dir else None, train)
        self._cpus, self._shares = place.cpus_per_cell, shares
        self._remote = ray.remote(num_cpus=place.cpus_per_cell, max_calls=1, max_retries=0)(
            run_on_share
        )

    def run(self) -> None:
        import ray

        while self._waiting or self._running or self._elsewhere:
            self._submit()
            if self._running:
                ready, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
            else:
                ready = []
                time.sleep(POLL_SECONDS)
            for task, tail in self._running.values():
                for progress in tail.lines():
                    beside = min(len(self._running), int(1 / (task.gpus or 1)))
                    self._shares.learn(task.entry.cell, progress, max(1, beside))
                    self._display.epoch(task.entry, progress)
            for reference in ready:
                task, _ = self._running.pop(reference)
                self._settle(task, reference)
            self._revisit()
            self._display.update()

    def _submit(self) -> None:
        while self._waiting:
            gpus = self._shares.gpus(self._waiting[0].entry.cell)
            # Asked each time: nodes of a cluster come and go, and shares are learned.
            if len(self._running) >= max(1, slots(self._cpus, gpus)) + BACKLOG:
                return
            task = replace(self._waiting.popleft(), gpus=gpus)
            cell = task.entry.cell
            folder = cell_folder(self._results, cell.id)
            if is_locked(folder):
                self._leave(task)
                continue
            clear_failure(self._results, cell.id)
            tail = Tail(folder / "progress.jsonl")
            reference = self._remote.options(num_gpus=gpus).remote(
                gpus, cell.as_dict(), str(self._results), *self._arguments, task.attempt
            )
            self._running[reference] = (task, tail)

    def _settle(self, task: _Task, reference: Any) -> None:
        """Decide what the end of a task means for its cell."""
        import ray
        from ray import exceptions

        try:
            outcome = ray.get(reference)
        except RecordError as error:
            raise getattr(error, "cause", error) from None  # Ray's copy drags a traceback along
        except exceptions.LocalRayletDiedError:
            raise RayLost(LOST) from None
        except (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
        ) as error:
            if task.attempt <= RESUBMISSIONS:
                self._display.note(task.entry, "its process died; going on from its checkpoint")
                self._waiting.appendleft(_Task(task.entry, task.attempt + 1))
                return
            outcome = {"failure": _failure(task, error)}
        except exceptions.RayError as error:
            outcome = {"failure": _failure(task, error)}
        if "busy" in outcome:
            self._leave(task)
            return
        if out_of_gpu_memory(outcome):
            if task.gpus < 1:
                self._display.note(task.entry, "out of GPU memory; again with a whole GPU")
                self._shares.give_all(task.entry.cell)
                self._waiting.appendleft(task)
                return
            outcome["failure"]["message"] += _TOO_LARGE
            write_failure(self._results, outcome["failure"])
        cell_id = task.entry.cell.id
        # The worker has written these, unless it has no disk in common with us.
        if "record" in outcome:
            if not has_record(self._results, cell_id):
                write_record(self._results, outcome["record"])
            self._finished(task.entry, outcome["record"])
        else:
            if read_failure(self._results, cell_id) is None:
                write_failure(self._results, outcome["failure"])
            self._display.failed(task.entry, outcome["failure"])

    def _finished(self, entry: StudyCell, record: Record) -> None:
        self._on_record(record)
        self._display.finished(entry, record)

    def _leave(self, task: _Task) -> None:
        self._display.note(task.entry, "another process is running it; waiting for its result")
        self._elsewhere.append(task)

    def _revisit(self) -> None:
        """See what became of the cells that another driver's processes are running."""
        still = []
        for task in self._elsewhere:
            cell_id = task.entry.cell.id
            if is_locked(cell_folder(self._results, cell_id)):
                still.append(task)
            elif record := read_record(self._results, cell_id):
                self._finished(task.entry, record)
            elif failure := read_failure(self._results, cell_id):
                self._display.failed(task.entry, failure)
            else:
                self._waiting.append(task)
        self._elsewhere = still


_TOO_LARGE = (
    " The cell had a whole GPU: a smaller training.batch_size (or eval_batch_size), "
    "training.precision=bf16, or a GPU with more memory may help."
)


_ENDINGS = {
    "OutOfMemoryError": "the machine's memory was nearly full and Ray ended the process; "
    "with more --cpus-per-cell fewer cells run at once",
    "WorkerCrashedError": f"the process died {1 + RESUBMISSIONS} times",
    "NodeDiedError": f"the machine under the process was lost {1 + RESUBMISSIONS} times",
}


def _failure(task: _Task, error: Exception) -> Failure:
    name, detail = type(error).__name__, str(error).strip()
    message = _ENDINGS.get(name) or next(iter(detail.splitlines()), "")
    return failure_of(task.entry.cell, name, message, detail, task.attempt)
