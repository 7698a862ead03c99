"""Shows a running study: bars on a terminal, sparse plain lines anywhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from msvit.recipes import trained_epochs
from studies.study import StudyCell

QUIET_SECONDS = 20.0  # between two plain lines about cells that are still running


class Tail:
    """The JSON lines that a file gains from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """What was appended since the last call; a half-written line waits for its rest."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                *complete, _ = file.read().split(b"\n")
        except FileNotFoundError:
            return
        for line in complete:
            self._offset += len(line) + 1
            yield json.loads(line)


class Display:
    """Plain lines: one per finished cell, and now and then one about those that run."""

    def __init__(self, entries: Sequence[StudyCell], done: int, total: int) -> None:
        """``entries`` are run; with ``done`` finished earlier they make ``total`` cells."""
        self._left = {e.cell.id: trained_epochs(e.cell.training) for e in entries}
        self._done, self._total = done, total
        self._epochs_run = 0
        self._running: dict[str, tuple[StudyCell, Mapping[str, Any]]] = {}
        self._start: float | None = None  # of the first cell: Ray's own start is no pace
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def epoch(self, entry: StudyCell, progress: Mapping[str, Any]) -> None:
        """A cell started (epoch 0) or finished an epoch."""
        self._start = self._start or time.monotonic()
        if progress["epoch"] > 0:
            self._epochs_run += 1
            self._left[entry.cell.id] = progress["epochs"] - progress["epoch"]
        self._running[entry.cell.id] = (entry, progress)

    def finished(self, entry: StudyCell, record: Mapping[str, Any]) -> None:
        """A cell has its record."""
        accuracy, seconds = record["test"]["accuracy"], record["training_seconds"]
        self._ended(entry, f"test accuracy {accuracy:.1%}, trained in {seconds:.0f} s")

    def failed(self, entry: StudyCell, failure: Mapping[str, Any]) -> None:
        """A cell has ended without a record."""
        self._ended(entry, f"FAILED, {failure['error']}: {first_line(failure['message'])}")

    def note(self, entry: StudyCell, text: str) -> None:
        """Something worth a line happened to a cell that goes on."""
        self._running.pop(entry.cell.id, None)
        self._line(f"{entry.label}: {text}")

    def update(self) -> None:
        """Called about twice a second."""
        if self._running and time.monotonic() - self._said > QUIET_SECONDS:
            cells = "; ".join(f"{e.label} {_epoch(p)}" for e, p in self._running.values())
            self._line(f"[{self._count()}] running: {cells}{self._remaining()}")

    def _ended(self, entry: StudyCell, text: str) -> None:
        self._running.pop(entry.cell.id, None)
        self._left.pop(entry.cell.id, None)
        self._done += 1
        left = self._remaining() if self._left else ""
        self._line(f"[{self._count()}] {entry.label}: {text}{left}")

    def _count(self) -> str:
        return f"{self._done:{len(str(self._total))}d}/{self._total}"

    def _remaining(self) -> str:
        """Epochs left at the pace of this run, once it has one; cells differ: about right."""
        if self._start is None or not self._epochs_run:
            return ""
        pace = (time.monotonic() - self._start) / self._epochs_run
        return f"; about {clock(pace * sum(self._left.values()))} left"

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, flush=True)


class Bars(Display):
    """On a terminal: a bar for the study and one for each running cell."""

    def __init__(self, entries: Sequence[StudyCell], done: int, total: int) -> None:
        super().__init__(entries, done, total)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            transient=True,
        )
        self._study = self._bars.add_task("cells", total=total, completed=done, detail="")
        self._cells: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self) -> None:
        for cell_id, (entry, progress) in self._running.items():
            if cell_id not in self._cells:
                self._cells[cell_id] = self._bars.add_task(
                    f"  {entry.label}", total=progress["epochs"], detail=""
                )
            self._bars.update(
                self._cells[cell_id], completed=progress["epoch"], detail=_epoch(progress)
            )
        for cell_id in self._cells.keys() - self._running.keys():
            self._bars.remove_task(self._cells.pop(cell_id))
        detail = f"{self._count()}{self._remaining()}"
        self._bars.update(self._study, completed=self._done, detail=detail)

    def _line(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


def display_for(entries: Sequence[StudyCell], done: int, total: int) -> Display:
    """Bars where a person watches, lines where the output goes to a file or a log."""
    kind = Bars if Console().is_terminal else Display
    return kind(entries, done, total)


def clock(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def first_line(message: str) -> str:
    """What an error says, without its details."""
    return (message.strip().splitlines() or [""])[0]


def _epoch(progress: Mapping[str, Any]) -> str:
    text = f"epoch {progress['epoch']}/{progress['epochs']}"
    accuracy = progress.get("val_accuracy")
    return text if accuracy is None else f"{text}, validation accuracy {accuracy:.1%}"
