"""Curves for TensorBoard: ``tensorboard --logdir results/tensorboard/<study>``.

Each cell is a run of its own, ``results/tensorboard/<study>/<configuration>/seed <n>``: a file that
gains what the cell reports after each epoch and, when it has its record, a file of its results.
What is shown then is what the record holds. The driver writes them from what cells leave anyway, so
that no cell waits for them, and what cannot be written costs no result.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from analysis.observations import Observations
from msvit.records.schema import Epoch, Record
from msvit.records.store import Records, cell_folder
from studies.study import Study, StudyCell
from studies.worker import trained_before

RESULTS = ("test_accuracy", "firing_rate", "energy_mj")
"""Measures of a finished cell, shown at the epoch whose weights they are of."""

_LONGEST = 200  # bytes of a folder's name; file systems take 255


class Curves:
    """The event files of one study."""

    def __init__(self, study: Study, records: Records[Observations]) -> None:
        self.folder = records.results / "tensorboard" / study.name
        self._records = records
        self._entries = {entry.cell.id: entry for entry in study.cells}
        self._running: dict[str, tuple[Path, int]] = {}  # cell → its file, the last epoch there
        self._said = False

    def show_finished(self) -> None:
        """Write those of cells that were finished before this run, where there are none."""
        for cell_id, entry in self._entries.items():
            if not any(self._folder(entry).glob("*.results")):
                self._finish(cell_id)

    def epoch(self, entry: StudyCell, progress: Mapping[str, Any]) -> None:
        """A process has begun to train a cell (epoch 0), or has finished an epoch of it."""
        with self._or_without():
            # Where writing fails, the next epoch looks again at what is there.
            known = self._running.pop(entry.cell.id, None)
            if known is None or progress["epoch"] == 0:
                before = trained_before(cell_folder(self._records.results, entry.cell.id))
                path = self._show(entry, [_of_epoch(row, time.time()) for row in before])
                known = path, before[-1]["epoch"] if before else 0
            path, last = known
            if progress["epoch"] > last:
                _append(path, [_of_epoch(progress, time.time())])
                last = progress["epoch"]
            self._running[entry.cell.id] = path, last

    def record(self, record: Record) -> None:
        """A cell has its record."""
        self._records.add(record)
        self._finish(record["id"])

    def _finish(self, cell_id: str) -> None:
        observed = self._records.get(cell_id)
        if observed is None:
            return
        with self._or_without():
            path = cell_folder(self._records.results, cell_id) / "record.json"
            end = path.stat().st_mtime
            entry = self._entries[cell_id]
            self._show(entry, _epochs(observed, end))
            scores = observed.scores
            found = {f"result/{name}": scores[name] for name in RESULTS if name in scores}
            results = _event(end, scores["selected_epoch"], found)
            _append(self._new(entry, "results"), [results])

    def _show(self, entry: StudyCell, epochs: Sequence[Event]) -> Path:
        """The file that shows just these epochs of a cell.

        The one that is there gains those that it lacks: a TensorBoard that has it open goes on. One
        that shows others is of another training.
        """
        for path in self._folder(entry).glob("*.epochs"):
            shown = _read(path)
            if shown is not None and _begins_with(epochs, shown):
                _append(path, epochs[len(shown) :])
                return path
        for path in self._folder(entry).glob("events.*"):
            path.unlink()
        path = self._new(entry, "epochs")
        _append(path, epochs)
        return path

    def _new(self, entry: StudyCell, kind: str) -> Path:
        folder = self._folder(entry)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()  # TensorBoard reads files in the order of their names
        path = folder / f"events.out.tfevents.{now:.6f}.{kind}"
        _append(path, [Event(wall_time=now, file_version="brain.Event:2")])
        return path

    def _folder(self, entry: StudyCell) -> Path:
        return self.folder / _as_name(entry) / f"seed {entry.cell.seed}"

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._said:
                reason = error.strerror or type(error).__name__
                print(f"note: {self.folder}: curves are missing ({reason})", flush=True)
            self._said = True


def _as_name(entry: StudyCell) -> str:
    """The configuration as a folder is called: a cell's id behind what had to be changed of it."""
    name = re.sub(r"[/\x00-\x1f]", "_", entry.group).encode()[:_LONGEST].decode(errors="ignore")
    return name if name == entry.group else f"{name} {entry.cell.id}"


def _epochs(observed: Observations, end: float) -> list[Event]:
    """Those of a cell that ended at this time, one behind the other."""
    columns = observed.history
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    ends = list(accumulate(row["seconds"] for row in rows))
    return [_of_epoch(row, end - ends[-1] + at) for row, at in zip(rows, ends, strict=True)]


def _of_epoch(told: Mapping[str, Any], wall_time: float) -> Event:
    """All that is known of an epoch, by its names in a record."""
    known = {f"epoch/{key}": told.get(key) for key in Epoch.__annotations__ if key != "epoch"}
    return _event(wall_time, told["epoch"], {k: v for k, v in known.items() if v is not None})


def _event(wall_time: float, step: int, scalars: Mapping[str, float]) -> Event:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=values))


def _begins_with(events: Sequence[Event], first: Sequence[Event]) -> bool:
    """Whether the ``first`` are the same, but for the times at which they were seen."""
    told, shown = ([(e.step, e.summary) for e in which] for which in (events, first))
    return told[: len(shown)] == shown


_FRAME = 16  # bytes around every event: its length, and two sums of them


def _append(path: Path, events: Sequence[Event]) -> None:
    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def _read(path: Path) -> list[Event] | None:
    """The scalars of a file; None where its end is broken off, so that nothing can follow."""
    found = list(RawEventFileLoader(str(path)).Load())
    if sum(_FRAME + len(event) for event in found) != path.stat().st_size:
        return None
    events = map(Event.FromString, found)
    return [event for event in events if event.HasField("summary")]
