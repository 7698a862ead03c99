"""All measurements on a GPU within a given time: the most wanted first, each written at once.

A case that fails, or takes too long, is reported as such and the others go on.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.timing.gpu_cases import GpuCase
from studies.timing.gpu_report import Found, write

ROOT = Path(__file__).resolve().parents[2]

CASE_SECONDS = 75.0  # for one, its compilation included
LEAST_SECONDS = 15.0  # nothing is begun with less time left
CASES_SHARE = 0.62  # of the time; the rest is for whole grids

Say = Callable[[str], None]


class NoLimits(RuntimeError):
    """Not even the limits of the device could be measured."""


#: How the grid ``scales`` is run, by the name of the way.
GRIDS: dict[str, tuple[str, ...]] = {
    "18 cells, packed (--gpus-per-cell auto)": (),
    "6 of them, one at a time (--gpus-per-cell 1)": ("--seeds", "1", "--gpus-per-cell", "1"),
}


def run(
    out: Path,
    cases: Sequence[GpuCase],
    minutes: float,
    say: Say,
    grids: Mapping[str, tuple[str, ...]],
    grid: str = "scales",
    quick: bool = False,
) -> None:
    """Measure ``cases`` and ``grids`` into ``out``, which holds all that is known at any moment.

    ``grids`` are ways to run ``grid``: a name, and what else ``run.py`` is told.

    Raises:
        NoLimits: where the limits of the device cannot be measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    began, end = time.monotonic(), time.monotonic() + 60 * minutes
    until = began + 60 * minutes * (CASES_SHARE if grids else 1.0)
    server = Server()
    measured: list[tuple[GpuCase, Found]] = []
    done: list[Found] = []
    try:
        limits = server.ask({"kind": "limits", "quick": quick}, 2 * CASE_SECONDS)
        if "problem" in limits:
            raise NoLimits(limits["problem"])
        say(f"{limits['device']}: copy {limits['copy']:,.0f} GB/s")
        for case in cases:
            left = until - time.monotonic()
            if left < LEAST_SECONDS:
                found: Found = {"problem": "the time was up"}
            else:
                found = server.ask(case.task(), min(CASE_SECONDS, left))
            measured.append((case, found))
            write(out, limits, measured, done)
            say(f"{case.name}: {_said(found)}")
    finally:
        server.stop()
    for name, arguments in grids.items():
        done.append(_whole_grid(name, grid, arguments, end - time.monotonic()))
        write(out, limits, measured, done)
        say(f"{name}: {done[-1].get('problem') or format(done[-1]['seconds'], '.0f') + ' s'}")


def _said(found: Found) -> str:
    if "problem" in found:
        return found["problem"]
    return f"{1000 * found['seconds'][len(found['seconds']) // 2]:.2f} ms ({found['how']})"


def _whole_grid(name: str, grid: str, arguments: tuple[str, ...], seconds: float) -> Found:
    """Run a study from its command to its report, in a results folder of its own."""
    found: Found = {"way": name, "cells": 0}
    if seconds < LEAST_SECONDS:
        return found | {"problem": "the time was up"}
    with tempfile.TemporaryDirectory(prefix="msvit-speed-") as results:
        command = [sys.executable, str(ROOT / "studies" / "run.py"), "--grid", grid]
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--results", results, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # as Ctrl-C: Ray and its processes end with it
            try:
                process.communicate(timeout=LEAST_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            output = ""
        taken = time.monotonic() - began
        found["cells"] = len(list(Path(results).glob("cells/*/record.json")))
    if process.returncode != 0 or not output:
        last = (output.strip().splitlines() or ["the time was up"])[-1]
        return found | {"problem": last}
    return found | {"seconds": taken, "seconds_per_cell": round(taken / found["cells"], 2)}


class Server:
    """The process that measures; begun anew where it has died or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, task: dict[str, Any], seconds: float) -> Found:
        """Its answer, or the problem."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "studies.timing.gpu_worker"]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": _python_path()},
                bufsize=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = b""
        end = time.monotonic() + seconds
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            while not answer.endswith(b"\n"):
                left = max(0.0, end - time.monotonic())
                if not select.select([self._process.stdout], [], [], left)[0]:
                    self.stop()
                    return {"problem": f"took more than {seconds:.0f} s"}
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return {"problem": f"the process died ({self._process.wait()})"}
                answer += part
        except BrokenPipeError:
            return {"problem": f"the process died ({self._process.wait()})"}
        return json.loads(answer)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
