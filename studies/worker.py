"""What happens in the process of one cell: lock, train, write the record.

The process that runs a cell holds a lock on ``<cell folder>/lock`` for as long as it lives.
The kernel drops it however the process ends, so a cell is never trained by two processes at
once (two drivers, or a worker that outlives its killed driver for some seconds), and no dead
process blocks one. Everything that is printed goes to ``log.txt``, one JSON line per epoch
to ``progress.jsonl``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from msvit.cells import SCHEMA, Cell
from msvit.printing import forgiving, logged_to
from msvit.recipes import trained_epochs
from msvit.records.faults import disk_told
from msvit.records.schema import CellFields, Failure, RecordError
from msvit.records.store import (
    cell_folder,
    read_record,
    write_failure,
    write_record,
)

Train = Callable[..., Mapping[str, Any]]
"""What :func:`msvit.training.train_cell` is: ``(cell, folder, data_dir=, report=) -> record``."""


class LostPeers(RuntimeError):
    """Workers that trained the cell together with this process are gone, or do not answer.

    Like a process that dies, that says nothing of the cell.
    """


# File systems without locks: cells are then guarded by atomic writes alone.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def run_cell(
    cell: Mapping[str, Any],
    results: str,
    data_dir: str | None = None,
    train: Train | None = None,
    attempt: int = 1,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run one cell; called in a process of its own.

    ``on_epoch`` hears what training reports after each epoch; what it raises ends the cell.

    Returns ``{"record": ...}``, ``{"failure": ...}`` or, where another process is running the
    cell, ``{"busy": its owner}``. What is returned is written under ``results`` already, if
    that folder can be reached from here.

    Raises:
        RecordError: where the results cannot be written. That is not this cell's fault: no other
            one could be written either.
        LostPeers: as ``train`` raises it.
    """
    resolved = Cell.from_dict(cell)
    store = reachable(Path(results))
    folder = cell_folder(store, resolved.id)
    with disk_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return _run_locked(resolved, store, folder, data_dir, train, attempt, on_epoch)


def _run_locked(
    cell: Cell,
    store: Path,
    folder: Path,
    data_dir: str | None,
    train: Train | None,
    attempt: int,
    on_epoch: Callable[[Mapping[str, Any]], None] | None,
) -> dict[str, Any]:
    with _lock(folder / "lock") as owner:
        if owner is not None:
            return {"busy": owner}
        record = read_record(store, cell.id)  # another driver may just have finished it
        if record is not None:
            return {"record": record}
        with output_to(folder / "log.txt"):
            return _trained(cell, store, data_dir, attempt, train, on_epoch)


def is_locked(folder: Path) -> bool:
    """Whether some process is running the cell in ``folder``."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def failure_of(cell: Cell, error: str, message: str, trace: str, attempts: int) -> Failure:
    """The content of ``failure.json`` (:class:`msvit.records.schema.Failure`)."""
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "cell": cast(CellFields, cell.as_dict()),
        "error": error,
        "message": message,
        "traceback": trace,
        "attempts": attempts,
        "failed_at": _now(),
    }


def _trained(
    cell: Cell,
    store: Path,
    data_dir: str | None,
    attempt: int,
    train: Train | None,
    on_epoch: Callable[[Mapping[str, Any]], None] | None,
) -> dict[str, Any]:
    folder = cell_folder(store, cell.id)
    print(f"[{_now()}] cell {cell.id}, attempt {attempt}, {_owner()}", flush=True)
    _append(folder / "progress.jsonl", {"epoch": 0, "epochs": trained_epochs(cell.training)})

    def report(progress: Mapping[str, Any]) -> None:
        _append(folder / "progress.jsonl", progress)
        shown = ", ".join(f"{key} {_number(value)}" for key, value in progress.items())
        print(f"[{_now()}] {shown}", flush=True)
        if on_epoch is not None:
            on_epoch(progress)

    try:
        if train is None:
            from msvit.training import train_cell

            train = train_cell
        place = Path(data_dir) if data_dir else None
        with disk_told(folder):
            record = train(cell, folder, data_dir=place, report=report)
        write_record(store, record)
        print(f"[{_now()}] done", flush=True)
        return {"record": dict(record)}
    except (RecordError, LostPeers):
        raise
    except Exception as error:
        trace = traceback.format_exc()
        print(trace, flush=True)
        failure = failure_of(cell, type(error).__name__, str(error), trace, attempt)
        write_failure(store, failure)
        return {"failure": failure}


def trained_before(folder: Path) -> list[dict[str, Any]]:
    """What training has reported about the epochs that its checkpoint holds, in their order."""
    if not (folder / "checkpoint.pt").exists():
        return []
    try:
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        # A full disk cuts a line short, and the next attempt begins (epoch 0) behind it.
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if row["epoch"]:
                # Of an epoch that was trained again, nothing before counts, nor behind it.
                found = [one for one in found if one["epoch"] < row["epoch"]] + [row]
    return found


def reachable(results: Path) -> Path:
    """``results``, or a scratch folder on a node that cannot write there (no shared disk)."""
    try:
        (results / "cells").mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "msvit-results"
    return results


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[str | None]:
    """Hold ``path`` locked; yields None, or who holds it where it is taken."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(_owner())
        file.flush()
        yield None


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append all output of this process to ``path``, that of C++ code included."""
    kept = [os.dup(1), os.dup(2)]
    try:
        with path.open("ab") as log:
            _flush()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            with open(1, "w", buffering=1, encoding="utf-8", closefd=False) as file:
                out = forgiving(file)
                with (
                    contextlib.redirect_stdout(out),
                    contextlib.redirect_stderr(out),
                    logged_to(out),
                ):
                    yield
    finally:
        _flush()
        for number, handle in enumerate(kept, start=1):
            os.dup2(handle, number)
            os.close(handle)


def _flush() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        forgiving(stream).flush()


def _append(path: Path, value: Mapping[str, Any]) -> None:
    # One write per line, so that a reader never sees two lines mixed.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(value)) + "\n")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
