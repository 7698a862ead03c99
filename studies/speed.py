"""Measure a step of ours against plain spikingjelly modules, and both against the machine.

python studies/speed.py
python studies/speed.py --models msvit --sizes cifar --rounds 3
python studies/speed.py --growth

**On a CPU** every measurement runs in a fresh process, and the variants take turns, round after
round. Written to ``--out`` (default results/speed): ``step.csv``, ``ratios.md``, ``operators.csv``
(how the time of a training step of MSVIT splits) and figures; with ``--growth`` also
``growth.csv`` and its figure (MSVIT over time steps, batch, width, image size and firing rate).

**On a GPU** all ends within ``--minutes`` (default 8): first the cases, in one process, the most
wanted first, then whole grids, packed and one cell at a time. Written to ``--out`` (default
results/speed-gpu), anew after every case: ``speed.md``, ``step.csv``, ``kernels.csv``,
``grids.csv``. ``--sizes``, ``--rounds`` and ``--growth`` have no part in it. To measure the CPU of
such a machine: CUDA_VISIBLE_DEVICES= in the environment.

Nothing else should run on the machine meanwhile. The terms of the roofline:
studies/timing/roofline.py.
Exit code: 0 done, 2 a wrong option or a failed measurement, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys

if not __package__:
    # As a script: this folder's modules are found as studies.*, wherever it is started.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Ctrl-C while modules load: there is nothing to save, and nothing to say.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import itertools
import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from msvit.commands import Parser, command
from msvit.options import ConfigError, unknown
from msvit.printing import print_error
from studies.command_line import positive
from studies.packing import look_at_machine
from studies.timing.cases import (
    INPUT_RATE,
    MODELS,
    SIZES,
    VARIANTS,
    Case,
    growth_cases,
    step_cases,
)
from studies.timing.gpu_cases import gpu_cases, quick_cases
from studies.timing.gpu_measure import GRIDS, NoLimits
from studies.timing.gpu_measure import run as measure_gpu
from studies.timing.kinds import kind_of, split
from studies.timing.report import (
    Machine,
    kinds_table,
    machine,
    ratios,
    step_row,
    summary,
    write_csv,
)

DEFAULT_OUT = Path("results/speed")
GPU_OUT = Path("results/speed-gpu")
QUICK_OUT = Path("results/speed-quick")
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}  # whatever the locale is


class MeasurementError(RuntimeError):
    """A worker process ended without a result."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.task:
        from studies.timing.worker import run

        print(json.dumps(run(json.loads(options.task))))
        return 0
    try:
        _check(options)
        if gpu_here():
            _measure_gpu(options)
        else:
            _measure(options)
    except (ConfigError, MeasurementError, NoLimits, OSError) as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; step.csv holds what was complete.")
        raise
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="NAME")
    parser.add_argument(
        "--rounds", type=int, default=5, help="processes per measurement (default 5)"
    )
    parser.add_argument(
        "--growth", action="store_true", help="also: cost over T, batch, width and image size"
    )
    parser.add_argument(
        "--minutes", type=positive(float), default=8.0, help="on a GPU: time for all (default 8)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, one round: does it run at all?"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"default {DEFAULT_OUT}, or {GPU_OUT}"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)  # a worker process
    return parser


def _check(options: argparse.Namespace) -> None:
    for given, valid, what in (
        (options.models, MODELS, "--models"),
        (options.sizes, SIZES, "--sizes"),
    ):
        for name in given:
            if name not in valid:
                raise ConfigError(what, "", unknown(name, valid, f"unknown {name!r}"))
    if options.rounds < 1:
        raise ConfigError("--rounds", "", f"at least 1, not {options.rounds}")
    options.models = list(dict.fromkeys(options.models))
    options.sizes = list(dict.fromkeys(options.sizes))
    if options.quick:
        options.rounds = 1
    # Tiny models say nothing about speed: they never replace what was measured.
    if options.quick and options.out is None:
        options.out = QUICK_OUT
    if options.out is None:
        options.out = GPU_OUT if gpu_here() else DEFAULT_OUT
    options.out.mkdir(parents=True, exist_ok=True)


def gpu_here() -> bool:
    """Whether CUDA would find a device, asked without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return Path("/dev/nvidiactl").exists() or look_at_machine()[0] is not None


def _measure_gpu(options: argparse.Namespace) -> None:
    cases = quick_cases() if options.quick else gpu_cases()
    cases = [case for case in cases if case.model.partition("_")[0] in options.models]
    grids = {} if options.quick else GRIDS
    measure_gpu(options.out, cases, options.minutes, _say, grids, quick=options.quick)
    print("\n" + (options.out / "speed.md").read_text(encoding="utf-8"))
    print(f"written to {options.out}")


def _measure(options: argparse.Namespace) -> None:
    rows: list[dict] = []
    machines: dict[str, Machine] = {}
    for size in options.sizes:
        measured, machines[size] = _measure_size(options, size, rows)
        rows += measured
    print("\n" + summary(rows, machines))
    table = ratios(rows, machines)
    (options.out / "ratios.md").write_text(table, encoding="utf-8")
    print(table)
    limits = next(iter(machines.values()))
    if "msvit" in options.models:
        _split_time(options, tuple(limits.peaks))
    if options.growth:
        _grow(options, limits)
    from studies.timing.figures import draw_steps

    draw_steps(rows, options.out)
    print(f"written to {options.out}")


def _measure_size(
    options: argparse.Namespace, size: str, before: list[dict]
) -> tuple[list[dict], Machine]:
    """Rows of one size; ``step.csv`` is written after every round, ``before`` in front."""
    cases = step_cases(options.models, size, options.quick)
    found: dict[tuple, list[dict]] = defaultdict(list)
    limits: list[dict] = []
    for number in range(1, options.rounds + 1):
        limits.append(measure(_limits_task(cases, options), cases[0].threads))
        if number == 1:
            cases = _in_earnest(cases, limits[0])
        for case in cases:
            result = measure(case.task("step"), case.threads)
            found[case.key].append(result)
            name = " ".join(case.key)
            _say(f"round {number}/{options.rounds} {name}: {median(result['seconds']):.4f} s")
        known = machine(limits, cases[0].threads)
        rows = [step_row(c, found[c.key], known.work[MODELS[c.model]], known) for c in cases]
        write_csv(options.out / "step.csv", before + rows)
    return rows, known


def _in_earnest(cases: list[Case], limits: dict[str, Any]) -> list[Case]:
    """The cases in precisions that the machine computes in (:mod:`msvit.processor`)."""
    left_out = {case.precision for case in cases} - set(limits["peaks"])
    for precision in sorted(left_out):
        _say(f"left out: {precision}, for which this processor has no instructions")
    return [case for case in cases if case.precision not in left_out]


def _limits_task(cases: list[Case], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "kind": "limits",
        "quick": options.quick,
        "models": [MODELS[model] for model in options.models],
        "options": cases[0].options,
    }


def _split_time(options: argparse.Namespace, precisions: Sequence[str]) -> None:
    from studies.timing.figures import draw_kinds

    rows = []
    for size in options.sizes:
        base = step_cases(["msvit"], size, options.quick)[0]
        profiles: dict[str, dict[str, float]] = {}
        for variant, precision in itertools.product(VARIANTS, precisions):
            case = replace(base, variant=variant, precision=precision, mode="train")
            found = measure(case.task("profile"), case.threads)["operators"]
            profiles[f"{variant}, {precision}"] = split(found)
            common = {"model": case.model, "size": size, "variant": variant, "precision": precision}
            for operator, seconds in found:
                row = {"kind": kind_of(operator), "operator": operator}
                rows.append(common | row | {"seconds": round(seconds, 6)})
        print(f"Where a training step of msvit at {size} size goes (under the profiler):")
        print(kinds_table(profiles) + "\n")
        draw_kinds(profiles, size, options.out)
    write_csv(options.out / "operators.csv", rows, rows[0])


def _grow(options: argparse.Namespace, limits: Machine) -> None:
    rows: list[dict[str, Any]] = []
    rates: dict[float, float] = {}  # by the bias that makes them, of ours: plain ones fire alike
    for axis, value, case in growth_cases(options.quick):
        if case.precision not in limits.peaks:
            continue
        result = measure(case.task("step"), case.threads)
        seconds = median(result["seconds"])
        _say(f"growth {axis} {value} {case.variant} {case.precision}: {seconds:.4f} s")
        if case.variant == "ours" and case.precision == "fp32":
            rates[case.norm_bias] = round(result["input_rate"], 4)
        row = {"axis": axis, "value": value, "variant": case.variant, "precision": case.precision}
        row |= {"seconds_median": round(seconds, 5), "peak_gb": round(result["peak_gb"], 3)}
        rows.append(row | {"processor": limits.processor, "threads": case.threads})
    for written in rows:
        if written["axis"] == INPUT_RATE:
            written["value"] = rates[written["value"]]
    write_csv(options.out / "growth.csv", rows, rows[0])
    from studies.timing.figures import draw_growth

    draw_growth(rows, options.out)


def measure(task: dict[str, Any], threads: int) -> dict[str, Any]:
    """The result of a task, done by this script in a fresh process."""
    worker = [sys.executable, str(Path(__file__).resolve()), "--task", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(worker, capture_output=True, env=environment, **_TEXT)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        what = " ".join(
            str(task[k]) for k in ("model", "size", "variant", "precision", "mode") if k in task
        )
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        if done.returncode == -9:
            reason = "it was killed, probably for want of memory"
        raise MeasurementError(f"{task['kind']} {what} failed ({done.returncode}): {reason}")
    return json.loads(lines[-1])


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
