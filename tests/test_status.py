"""How far a study is, seen from another terminal."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies.run import main
from studies.status import CellStatus, Status, status_of, told, watch
from tests.results_folder import Results, make_cell, make_record

ROOT = Path(__file__).parents[1]


def progress(folder: Path, *epochs: int, of: int) -> None:
    """Lines as a worker writes them, and half of one that it is writing now."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"epoch": epoch, "epochs": of}) for epoch in epochs]
    (folder / "progress.jsonl").write_text("\n".join([*lines, '{"epo']), encoding="utf-8")


def times(folder: Path, start: float, end: float, last: str = "progress.jsonl") -> None:
    """As if the cell's process had started and last written at these times (seconds)."""
    (folder / "lock").touch()
    os.utime(folder / "lock", (start, start))
    os.utime(folder / last, (end, end))


@pytest.fixture
def study(tmp_path) -> tuple[Results, list[tuple[str, str]]]:
    """Of ten epochs each: one cell done, one running, one stopped, two failed, one to do."""
    results = Results(tmp_path / "results", "mine")
    cells = [make_cell({"name": "msvit", "scales": [1]}, seed) for seed in range(6)]
    outcomes = [make_record(cells[0], 0.9, 1e-3), None, None, "loss nan\nsecond", None, None]
    for cell, outcome in zip(cells, outcomes, strict=True):
        results.add("msvit", cell, outcome)
    folders = [results.folder / "cells" / cell.id for cell in cells]
    progress(folders[0], 0, *range(1, 11), of=10)
    times(folders[0], 1000, 1100, "record.json")
    progress(folders[1], 0, 1, 2, 0, 3, 4, of=10)  # went on from a checkpoint
    times(folders[1], 2000, 2040)
    progress(folders[2], 0, 1, of=10)
    (folders[2] / "checkpoint.pt").touch()
    failure = json.loads((folders[3] / "failure.json").read_text())
    other = {"id": cells[4].id, "cell": cells[4].as_dict(), "error": "DataError"}
    folders[4].mkdir()
    (folders[4] / "failure.json").write_text(json.dumps({**failure, **other, "message": "no file"}))
    return results, [(entry["id"], entry["label"]) for entry in results.entries]


def test_every_state_is_told_apart(study):
    results, cells = study
    running = results.folder / "cells" / cells[1][0] / "lock"
    with running.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status = status_of("mine", cells, results.folder)
    states = ["done", "running", "stopped", "failed", "failed", "to do"]
    assert [cell.state for cell in status.cells] == states
    assert (status.cells[1].epoch, status.cells[1].epochs) == (4, 10)
    assert status.cells[3].problem == "TrainingDiverged: loss nan"
    assert status.cells[4].problem == "DataError: no file; the same command runs it again"
    # 10 and 20 seconds an epoch; 6, 9 and 10 epochs are left, for the one process that runs.
    assert status.cells[0].pace == 10
    assert status.cells[1].pace == 20
    assert status.seconds_left == 25 * 15
    assert told(status) == [
        "mine: 1 done, 1 running, 1 stopped, 2 failed, 1 to do of 6 cells; about 6:15 left",
        "  running: msvit seed 1, epoch 4/10",
        "  failed: msvit seed 3: TrainingDiverged: loss nan",
        "  failed: msvit seed 4: DataError: no file; the same command runs it again",
    ]


def test_without_a_process_no_time_is_told(study):
    results, cells = study
    status = status_of("mine", cells, results.folder)
    assert status.cells[1].state == "to do"  # its process has left no checkpoint
    assert status.seconds_left is None
    assert told(status)[0].endswith("of 6 cells; nothing is running")


def test_a_failure_that_cannot_be_read_is_told(study):
    results, cells = study
    (results.folder / "cells" / cells[3][0] / "failure.json").write_text("{")
    status = status_of("mine", cells, results.folder)
    assert status.cells[3].state == "failed"
    assert "not complete JSON" in status.cells[3].problem


def test_watching_tells_what_has_changed_and_ends_with_the_study(monkeypatch, capsys):
    running = [CellStatus("a", "running", epoch=epoch, epochs=2) for epoch in (0, 0, 1)]
    seen = iter([Status("mine", [cell]) for cell in (*running, CellStatus("a", "done"))])
    monkeypatch.setattr("studies.status.status_of", lambda *_: next(seen))
    monkeypatch.setattr("studies.status.WATCH_SECONDS", 0)
    watch({"mine": []}, Path())
    assert capsys.readouterr().out.splitlines() == [
        "mine: 1 running of 1 cells",
        "  running: a, epoch 0/2",
        "mine: 1 running of 1 cells",
        "  running: a, epoch 1/2",
        "mine: 1 done of 1 cells",
    ]


def test_the_command_shows_all_studies_or_one(study, tmp_path, capsys):
    results, _ = study
    assert main(["--status", "--results", str(results.folder)]) == 0
    assert capsys.readouterr().out.startswith("mine: 1 done, 1 stopped, 2 failed, 2 to do of 6")
    assert main(["--status", "--grid", "scales", "--results", str(results.folder)]) == 0
    assert capsys.readouterr().out == "scales: 18 to do of 18 cells; nothing is running\n"
    assert main(["--status", "--results", str(tmp_path / "none")]) == 2
    assert "no study in this folder yet" in capsys.readouterr().err
    assert main(["--status", "--seeds", "3"]) == 2
    assert "--grid" in capsys.readouterr().err


def test_the_command_loads_nothing_heavy(study):
    code = (
        "import sys; from studies.run import main\n"
        f"main(['--status', '--results', {str(study[0].folder)!r}])\n"
        "print(sorted({'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    given = [sys.executable, "-c", code]
    done = subprocess.run(given, check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n")
