"""Runs cells as Ray tasks, one fresh process each, and decides what each ending means.

Retries are ours, not Ray's: a process that died (crash, lost node) is started again and goes
on from the cell's checkpoint, at most :data:`RESUBMISSIONS` times without a new one; an exception
or an out-of-memory kill would come again and is recorded as the cell's failure. Other cells go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from studies.cluster import LOST, Place, RayLost, connected, packing
from studies.packing import Packing, out_of_gpu_memory, run_on_share
from studies.progress import Display, Tail
from studies.room import Group, NoRoom, described, has_room, remove_abandoned
from studies.study import StudyCell
from studies.together import run_together
from studies.waiting import Task, Waiting
from studies.worker import LostPeers, Train, failure_of, is_locked

RESUBMISSIONS = 2
POLL_SECONDS = 0.5

OnEpoch = Callable[[StudyCell, Mapping[str, Any]], None]
OnRecord = Callable[[Record], None]


@dataclass(frozen=True)
class _Running:
    task: Task
    group: Group  # that it runs with
    tail: Tail  # of what it tells of its progress
    kept: int  # when its checkpoint was written, in ns; 0: there was none


def run_cells(
    entries: Sequence[StudyCell],
    results: Path,
    place: Place,
    display: Display,
    *,
    data_dir: Path | None = None,
    train: Train | None = None,
    on_epoch: OnEpoch = lambda entry, progress: None,
    on_record: OnRecord = lambda record: None,
) -> None:
    """Run cells until each has a record or a failure under ``results``.

    ``train`` is by default :func:`msvit.training.train_cell`. ``on_epoch`` hears of every cell that
    starts (epoch 0) and of every epoch, where its disk is ours too; ``on_record`` is given the
    record of every cell that ends well, also where another driver has run it.

    Raises:
        ConfigError: where Ray cannot be reached or no machine is large enough for a cell.
        RecordError: where the results cannot be written.
        RayLost: where Ray dies.
        KeyboardInterrupt: on Ctrl-C; what was running has kept its last checkpoint.
    """
    with connected(place):
        shares = packing(place, results.resolve())
        for group in {_group(entry, place, shares) for entry in entries}:
            if not has_room(group):
                needed = (
                    f"there is no room for {group}"
                    if group.count > 1
                    else f"no machine has the {group.cpus:g} CPUs and {group.gpus:g} GPUs"
                )
                message = f"{needed} that one cell is to get; Ray sees {described()}"
                raise ConfigError("", "", message)
        with display:
            heard = (on_epoch, on_record)
            _Loop(entries, results.resolve(), place, shares, display, data_dir, train, *heard).run()


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
        on_epoch: OnEpoch,
        on_record: OnRecord,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._waiting = Waiting([Task(entry) for entry in entries], self._group_of)
        self._running: dict[Any, _Running] = {}
        self._elsewhere: list[Task] = []
        self._results = results
        self._display = display
        self._on_epoch, self._on_record = on_epoch, on_record
        self._arguments = (str(data_dir.resolve()) if data_dir else None, train)
        self._place, self._shares = place, shares
        self._gathering: Any = None  # the task whose workers have not begun yet
        self._has_groups = any(entry.resources.count > 1 for entry in entries)
        self._alone = ray.remote(max_calls=1, max_retries=0)(run_on_share)
        # Beside this process: another machine's end then is that of workers, not of who leads them.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        lead = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(run_together)
        self._together = lead.options(scheduling_strategy=here)

    def run(self) -> None:
        import ray

        while self._waiting or self._running or self._elsewhere:
            self._submit()
            if self._running:
                ready, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
            else:
                ready = []
                time.sleep(POLL_SECONDS)
            for reference, running in self._running.items():
                for progress in running.tail.lines():
                    self._hear(reference, running, progress)
            for reference in ready:
                running = self._running.pop(reference)
                self._has_begun(reference)
                self._settle(running, reference)
            self._revisit()
            if self._has_groups:
                remove_abandoned()
                self._bound_waits()
            self._display.update()

    def _hear(self, reference: Any, running: _Running, progress: Mapping[str, Any]) -> None:
        """Take in a line of a cell on its progress."""
        self._has_begun(reference)
        if running.group.count == 1:
            beside = min(len(self._running), int(1 / (running.group.gpus or 1)))
            self._shares.learn(running.task.entry.cell, progress, max(1, beside))
        self._display.epoch(running.task.entry, progress)
        self._on_epoch(running.task.entry, progress)

    def _has_begun(self, reference: Any) -> None:
        if reference == self._gathering:
            self._gathering = None

    def _submit(self) -> None:
        while self._gathering is None and (found := self._take()) is not None:
            task, group = found
            cell = task.entry.cell
            folder = cell_folder(self._results, cell.id)
            if is_locked(folder):
                self._leave(task)
                continue
            clear_failure(self._results, cell.id)
            tail = Tail(folder / "progress.jsonl")
            given = (cell.as_dict(), str(self._results), *self._arguments, task.attempt)
            if group.count == 1:
                alone = self._alone.options(num_cpus=group.cpus, num_gpus=group.gpus)
                reference = alone.remote(group.gpus, *given)
            else:
                reference = self._gathering = self._together.remote(group, *given)
            self._running[reference] = _Running(task, group, tail, _kept(folder))

    def _take(self) -> tuple[Task, Group] | None:
        return self._waiting.take([running.group for running in self._running.values()])

    def _group_of(self, entry: StudyCell) -> Group:
        return _group(entry, self._place, self._shares)

    def _settle(self, running: _Running, reference: Any) -> None:
        """Decide what the end of a task means for its cell."""
        import ray
        from ray import exceptions

        task, group = running.task, running.group
        try:
            outcome = ray.get(reference)
        except RecordError as error:
            raise getattr(error, "cause", error) from None  # Ray's copy drags a traceback along
        except exceptions.LocalRayletDiedError:
            raise RayLost(LOST) from None
        except NoRoom:
            self._waiting.put(task)
            return
        except (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            LostPeers,
        ) as error:
            folder = cell_folder(self._results, task.entry.cell.id)
            losses = task.losses + 1 if _kept(folder) == running.kept else 1
            if losses <= RESUBMISSIONS:
                what = "it lost workers" if isinstance(error, LostPeers) else "its process died"
                self._display.note(task.entry, f"{what}; going on from its checkpoint")
                self._waiting.put(Task(task.entry, task.attempt + 1, losses))
                return
            outcome = {"failure": _failure(task, getattr(error, "cause", error))}
        except exceptions.RayError as error:
            outcome = {"failure": _failure(task, getattr(error, "cause", error))}
        if "busy" in outcome:
            self._leave(task)
            return
        if out_of_gpu_memory(outcome):
            if group.count == 1 and group.gpus < 1:
                self._display.note(task.entry, "out of GPU memory; again with a whole GPU")
                self._shares.give_all(task.entry.cell)
                self._waiting.put(task)
                return
            had = "a whole GPU" if group.count == 1 else f"{group.gpus:g} GPUs for each worker"
            outcome["failure"]["message"] += _TOO_LARGE.format(had)
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

    def _leave(self, task: Task) -> None:
        if task.attempt == 1:  # else it may be a worker of ours that is about to end
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
                self._waiting.put(task)
        self._elsewhere = still

    def _bound_waits(self) -> None:
        """Have cells told, and in the end failed, that wait for room though nothing else runs."""
        runs = self._running.keys() - {self._gathering}
        gathers = self._gathering is not None
        self._waiting.look(is_idle=not runs and (gathers or len(self._waiting) > 0))
        if gathers:
            return
        if (found := self._waiting.told()) is not None:
            task, text = found
            self._display.note(task.entry, text)
        for task, text in self._waiting.overdue():
            failure = failure_of(task.entry.cell, "NoRoom", text, text, task.attempt)
            write_failure(self._results, failure)
            self._display.failed(task.entry, failure)


def _group(entry: StudyCell, place: Place, shares: Packing) -> Group:
    """What a cell runs on: what it asks for, or the share that all get."""
    gpus = shares.gpus(entry.cell)
    if entry.resources.count > 1:
        gpus = float(gpus > 0) if place.gpus_per_cell is None else min(gpus, 1.0)
    return Group.of(entry.resources, place.cpus_per_cell, gpus)


_TOO_LARGE = (
    " The cell had {}: a smaller training.batch_size (or eval_batch_size), "
    "training.precision=bf16, or a GPU with more memory may help."
)


_TIMES = f"{1 + RESUBMISSIONS} times, with no new checkpoint between"
_ENDINGS = {
    "LostPeers": f"workers were lost {_TIMES}; log.txt, log-1.txt, … tell more",
    "OutOfMemoryError": "the machine's memory was nearly full and Ray ended the process; "
    "with more --cpus-per-cell fewer cells run at once",
    "WorkerCrashedError": f"the process died {_TIMES}",
    "NodeDiedError": f"the machine under the process was lost {_TIMES}",
}


def _failure(task: Task, error: Exception) -> Failure:
    name, detail = type(error).__name__, str(error).strip()
    message = _ENDINGS.get(name) or next(iter(detail.splitlines()), "")
    return failure_of(task.entry.cell, name, message, detail, task.attempt)


def _kept(folder: Path) -> int:
    """When a cell's checkpoint was written, in ns; 0 where there is none that we could see."""
    try:
        return (folder / "checkpoint.pt").stat().st_mtime_ns
    except OSError:
        return 0
