"""How far a study has come, seen from another terminal: files and locks only, nothing is run.

Records are not read, only seen to be there, so that thousands of cells take a moment.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from msvit.records.faults import is_of_surroundings
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder, has_record, read_failure
from studies.progress import clock, first_line
from studies.worker import is_locked

STATES = ("done", "running", "stopped", "failed", "to do")
"""``stopped`` has a checkpoint that the same command goes on from."""
WATCH_SECONDS = 5.0


@dataclass(frozen=True)
class CellStatus:
    """One cell: its state, and the epochs of it that are done, of as many (0: not known yet)."""

    label: str
    state: str
    problem: str = ""
    epoch: int = 0
    epochs: int = 0
    pace: float | None = None  # seconds an epoch, of its last process


@dataclass(frozen=True)
class Status:
    """A study at this moment; ``cells`` in its order."""

    name: str
    cells: Sequence[CellStatus] = field(default=())

    def count(self, state: str) -> int:
        return sum(cell.state == state for cell in self.cells)

    @property
    def over(self) -> bool:
        """Whether nothing is left to be run."""
        return all(cell.state in ("done", "failed") for cell in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """About: epochs left at the pace of those that were run, by as many as run now.

        None where nothing runs, or no epoch is done yet.
        """
        running = self.count("running")
        paces = [cell.pace for cell in self.cells if cell.pace is not None]
        known = [cell.epochs for cell in self.cells if cell.epochs]
        if not running or not paces:
            return None
        usual = Counter(known).most_common(1)[0][0]  # of cells that have not said how many
        left = sum(
            (cell.epochs or usual) - cell.epoch
            for cell in self.cells
            if cell.state in ("running", "stopped", "to do")
        )
        return left * sum(paces) / len(paces) / running


def status_of(name: str, cells: Sequence[tuple[str, str]], results: Path) -> Status:
    """Look at the ``cells``, pairs of id and label."""
    return Status(name, [_look(label, cell_id, results) for cell_id, label in cells])


def _look(label: str, cell_id: str, results: Path) -> CellStatus:
    folder = cell_folder(results, cell_id)
    if not folder.is_dir():
        return CellStatus(label, "to do")
    epoch, epochs, run = _progress(folder / "progress.jsonl")
    if has_record(results, cell_id):
        pace = _pace(folder, "record.json", run)
        return CellStatus(label, "done", epoch=epoch, epochs=epochs, pace=pace)
    if is_locked(folder):
        pace = _pace(folder, "progress.jsonl", run)
        return CellStatus(label, "running", epoch=epoch, epochs=epochs, pace=pace)
    try:
        failure = read_failure(results, cell_id)
    except RecordError as error:
        return CellStatus(label, "failed", problem=str(error))
    if failure is not None:
        again = "; the same command runs it again" if is_of_surroundings(failure) else ""
        problem = f"{failure['error']}: {first_line(failure['message'])}{again}"
        return CellStatus(label, "failed", problem=problem)
    if (folder / "checkpoint.pt").exists():
        return CellStatus(label, "stopped", epoch=epoch, epochs=epochs)
    return CellStatus(label, "to do", epochs=epochs)


def _progress(path: Path) -> tuple[int, int, int]:
    """Epochs that are done, of as many, and how many of them the last process has run."""
    epoch = epochs = run = 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0, 0, 0
    for line in lines:
        try:
            told = json.loads(line)
            now, epochs = int(told["epoch"]), int(told["epochs"])
        except (ValueError, KeyError, TypeError):
            continue  # half written
        # A process begins with epoch 0, also where it goes on from a checkpoint.
        run = run + 1 if now else 0
        epoch = now or epoch
    return epoch, epochs, run


def _pace(folder: Path, last: str, epochs: int) -> float | None:
    """Seconds an epoch from the process's start, when it wrote its lock, to its ``last`` file."""
    try:
        seconds = (folder / last).stat().st_mtime - (folder / "lock").stat().st_mtime
    except OSError:
        return None
    return seconds / epochs if epochs and seconds > 0 else None


def told(status: Status) -> list[str]:
    """The lines of a study: counts, time left, cells that run, cells that failed and why."""
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := status.count(state)))
    seconds = status.seconds_left
    left = "" if seconds is None else f"; about {clock(seconds)} left"
    idle = "" if status.over or status.count("running") else "; nothing is running"
    lines = [f"{status.name}: {counts} of {len(status.cells)} cells{left}{idle}"]
    for cell in status.cells:
        if cell.state == "running":
            lines.append(f"  running: {cell.label}, epoch {cell.epoch}/{cell.epochs or '?'}")
    lines += [
        f"  failed: {cell.label}: {cell.problem}" for cell in status.cells if cell.state == "failed"
    ]
    return lines


def show(studies: Mapping[str, Sequence[tuple[str, str]]], results: Path) -> None:
    """Print how far ``studies`` are: cells (id, label) by the study's name."""
    print("\n".join(_lines(_look_at(studies, results))))


def watch(studies: Mapping[str, Sequence[tuple[str, str]]], results: Path) -> None:
    """:func:`show` until nothing is left to be run.

    On a terminal in its place, elsewhere again whenever something has changed.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    before: list[str] = []
    shown: AbstractContextManager[Live | None] = nullcontext()
    if console.is_terminal:
        shown = Live(console=console, auto_refresh=False)
    with shown as live:
        while True:
            seen = _look_at(studies, results)
            lines = _lines(seen)
            if live is not None:
                live.update(Text("\n".join(lines)), refresh=True)
            elif lines != before:
                print("\n".join(lines), flush=True)
            if all(status.over for status in seen):
                return
            before = lines
            time.sleep(WATCH_SECONDS)


def _look_at(studies: Mapping[str, Sequence[tuple[str, str]]], results: Path) -> list[Status]:
    return [status_of(name, cells, results) for name, cells in studies.items()]


def _lines(seen: Sequence[Status]) -> list[str]:
    return [line for status in seen for line in told(status)]
