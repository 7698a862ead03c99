"""From what was measured on a GPU to tables: ``speed.md``, and step, kernels and grids as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median
from typing import Any

from studies.timing.gpu_cases import PLAIN, GpuCase
from studies.timing.roofline import Peaks, Work, roofline_seconds, step_bytes, step_flops

Found = dict[str, Any]

STEP_COLUMNS = (
    *("model", "size", "batch", "precision", "mode", "variant"),
    *("ms_median", "ms_min", "ms_max", "images_per_second", "peak_gb", "held_gb"),
    *("roofline_ms", "roofline_share", "times_plain", "how", "kernels", "warm_up_seconds"),
    *("device", "problem"),
)
KERNEL_COLUMNS = ("case", "kind", "kernel", "launches", "ms")
GRID_COLUMNS = ("way", "cells", "seconds", "seconds_per_cell", "device", "problem")

#: Kind → parts of kernel names, in small letters; the first that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("adam", "multi_tensor_apply"),
    "products, convolutions": (
        *("gemm", "cutlass", "xmma", "nvjet", "cublas", "splitk", "wgrad", "dgrad", "fprop"),
        *("conv", "cudnn", "::mm", "::addmm", "::bmm"),
    ),
    "copies, casts": ("copy", "memcpy", "memset", "fill", "catarray", "transpose", "nchw", "nhwc"),
    "torch's reductions": ("reduce", "norm_kernel"),
    "torch's elementwise": ("elementwise", "softmax", "nll_loss", "scatter", "index", "aten::"),
}
PASSES = "spiking passes"  # whatever else there is: our Triton kernels


def kind_of(kernel: str) -> str:
    """The kind of a kernel, as the profiler names it."""
    name = kernel.lower()
    found = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(found, PASSES)


def peaks_for(case: GpuCase, limits: Found) -> Peaks:
    """Convolutions count at the peak of products: on a GPU they are the same units."""
    product = limits["products"][case.precision]
    return Peaks(product, product, limits["copy"])


def write(
    folder: Path, limits: Found, measured: list[tuple[GpuCase, Found]], grids: list[Found]
) -> None:
    """All files anew from what is known by now."""
    rows = step_rows(limits, measured)
    _write_csv(folder / "step.csv", STEP_COLUMNS, rows)
    profiles = [(case, found) for case, found in measured if "profile" in found]
    kernels = [
        {"case": case.name, "kind": kind_of(name), "kernel": name, "launches": n, "ms": ms(s)}
        for case, found in profiles
        for name, n, s in found["profile"]
    ]
    _write_csv(folder / "kernels.csv", KERNEL_COLUMNS, kernels)
    known = [{**grid, "device": limits["device"]} for grid in grids]
    _write_csv(folder / "grids.csv", GRID_COLUMNS, known)
    lines = [*_head(limits), *_steps(rows)]
    for case, found in profiles:
        lines += _kinds(case, found, limits)
    lines += _grids(grids)
    (folder / "speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def step_rows(limits: Found, measured: list[tuple[GpuCase, Found]]) -> list[Found]:
    """A row of ``step.csv`` per case; of one that could not be measured, its problem alone."""
    plain = {
        case.key[:-1]: median(found["seconds"])
        for case, found in measured
        if case.variant == PLAIN and "seconds" in found
    }
    rows = []
    for case, found in measured:
        row: Found = dict(zip(STEP_COLUMNS, case.key, strict=False)) | {"device": limits["device"]}
        if "seconds" not in found:
            rows.append(row | {"problem": found["problem"]})
            continue
        seconds = median(found["seconds"])
        work = Work(**found["work"])
        peaks = peaks_for(case, limits)
        bound = roofline_seconds(work, case.batch, case.precision, case.mode, peaks)
        row |= {
            "ms_median": ms(seconds),
            "ms_min": ms(min(found["seconds"])),
            "ms_max": ms(max(found["seconds"])),
            "images_per_second": round(case.batch / seconds, 1),
            "peak_gb": _rounded(found.get("peak_gb")),
            "held_gb": _rounded(found.get("held_gb")),
            "roofline_ms": ms(bound),
            "roofline_share": round(bound / seconds, 4),
            "how": found["how"],
            "kernels": found.get("kernels", ""),
            "warm_up_seconds": round(found["warm_up"], 1),
        }
        if case.variant != PLAIN and case.key[:-1] in plain:
            row["times_plain"] = round(plain[case.key[:-1]] / seconds, 2)
        rows.append(row)
    return rows


def ms(seconds: float) -> float:
    return round(1000 * seconds, 4)


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 2)


def _head(limits: Found) -> list[str]:
    peaks = ", ".join(
        f"{label} {limits['products'][precision] / 1e3:,.0f}"
        for precision, label in limits["labels"].items()
    )
    return [
        f"# Steps on {limits['device']}",
        "",
        f"Measured in the same run (torch {limits['torch']}; {limits['processor']}): products in "
        f"TFLOP/s: {peaks}; a copy reads and writes {limits['copy']:,.0f} GB/s. The roofline "
        "(`studies/timing/roofline.py`) is made of these, convolutions counted as products.",
        "",
    ]


def _steps(rows: list[Found]) -> list[str]:
    lines = [
        "| model | size | batch | precision | mode | variant | ms | min – max | images/s "
        "| peak GB | roofline ms | share | × plain | ran as |",
        "|---|---|--:|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        names = [str(row[column]) for column in STEP_COLUMNS[:6]]
        if "problem" in row:
            problem = row["problem"].replace("|", "/").splitlines()[0]
            lines.append("| " + " | ".join([*names, *[""] * 7, f"not measured: {problem}"]) + " |")
            continue
        cells = [
            f"{row['ms_median']:.2f}",
            f"{row['ms_min']:.2f} – {row['ms_max']:.2f}",
            f"{row['images_per_second']:,.0f}",
            str(row["peak_gb"]),
            f"{row['roofline_ms']:.2f}",
            f"{row['roofline_share']:.0%}",
            f"{row['times_plain']:.2f}" if "times_plain" in row else "",
            ", ".join(filter(None, (row["how"], row["kernels"]))),
        ]
        lines.append("| " + " | ".join([*names, *cells]) + " |")
    return [*lines, ""]


def _kinds(case: GpuCase, found: Found, limits: Found) -> list[str]:
    """The kernels of a step by kind, beside what products and memory alone would take."""
    totals: dict[str, list[float]] = {}
    for name, launches, seconds in found["profile"]:
        total = totals.setdefault(kind_of(name), [0, 0.0])
        total[0] += launches
        total[1] += seconds
    work, peaks = Work(**found["work"]), peaks_for(case, limits)
    flops = sum(step_flops(work, case.batch, case.mode))
    bounds = {
        "products, convolutions": flops / peaks.product / 1e9,
        PASSES: step_bytes(work, case.batch, case.precision, case.mode) / peaks.bandwidth / 1e9,
    }
    lines = [
        f"## Where the time goes: {case.name}",
        "",
        "Under the profiler, kernels by kind; the limit of the passes is all traffic of the "
        "roofline, that of products included. Every kernel: `kernels.csv`.",
        "",
        "| kind | launches | ms | limit, ms |",
        "|---|--:|--:|--:|",
    ]
    for kind, (launches, seconds) in sorted(totals.items(), key=lambda item: -item[1][1]):
        bound = f"{1000 * bounds[kind]:.2f}" if kind in bounds else ""
        lines.append(f"| {kind} | {launches:.0f} | {1000 * seconds:.2f} | {bound} |")
    busy = sum(seconds for _, seconds in totals.values())
    lines.append(f"| all | {sum(n for n, _ in totals.values()):.0f} | {1000 * busy:.2f} | |")
    return [*lines, ""]


def _grids(grids: list[Found]) -> list[str]:
    if not grids:
        return []
    lines = ["## Cells of the grid `scales`, whole", ""]
    lines += ["| way | cells | seconds | seconds a cell |", "|---|--:|--:|--:|"]
    for grid in grids:
        if "problem" in grid:
            lines.append(f"| {grid['way']} | {grid['cells']} | not measured: {grid['problem']} | |")
        else:
            cells = (grid["way"], grid["cells"], f"{grid['seconds']:.0f}")
            lines.append("| {} | {} | {} | {:.1f} |".format(*cells, grid["seconds_per_cell"]))
    return [*lines, "", "From the command to its report, Ray and all processes included."]


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[Found]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
