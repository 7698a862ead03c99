"""From measurements to ``step.csv``, the table of ratios and the printed summary."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from studies.timing.cases import VARIANTS, Case, say_threads
from studies.timing.roofline import Peaks, Work, roofline_seconds, step_flops

COLUMNS = (
    *("model", "size", "variant", "precision", "mode"),
    *("seconds_median", "seconds_min", "seconds_max", "peak_gb", "gflops", "roofline_share"),
    *("rounds", "processor", "threads", "batch", "input_rate"),
)


@dataclass
class Machine:
    """Limits at one size, each the median over the rounds."""

    processor: str
    amx: bool
    bf16_faster: bool
    threads: int
    kernels: bool
    labels: dict[str, str]
    peaks: dict[str, Peaks]
    work: dict[str, Work]

    @property
    def title(self) -> str:
        return f"{self.processor}, {say_threads(self.threads)}"


def machine(limits: list[dict[str, Any]], threads: int) -> Machine:
    """From what the ``limits`` tasks of all rounds found."""
    first = limits[0]
    peaks = {
        precision: Peaks(
            **{name: median(found["peaks"][precision][name] for found in limits) for name in values}
        )
        for precision, values in first["peaks"].items()
    }
    return Machine(
        processor=first["processor"],
        amx=first["amx"],
        bf16_faster=first["bf16_faster"],
        threads=threads,
        kernels=first["kernels"],
        labels={precision: first[precision] for precision in first["peaks"]},
        peaks=peaks,
        work={name: Work(**values) for name, values in first["work"].items()},
    )


def step_row(case: Case, found: list[dict[str, Any]], work: Work, limits: Machine) -> dict:
    """A row of ``step.csv`` from what all processes of a case found.

    Seconds are median, least and greatest over processes, of each the median of its steps;
    ``peak_gb`` is the median of the processes' peaks (10⁹ bytes), ``gflops`` the counted
    FLOPs of dense products over the median time (10⁹ per second). ``input_rate``: the spikes per
    input element of a product, weighted by its work; empty for plain models.
    """
    times = [median(process["seconds"]) for process in found]
    seconds = median(times)
    rates = [process["input_rate"] for process in found if "input_rate" in process]
    bound = roofline_seconds(
        work, case.batch, case.precision, case.mode, limits.peaks[case.precision]
    )
    return {
        **dict(zip(COLUMNS, case.key, strict=False)),
        "seconds_median": round(seconds, 5),
        "seconds_min": round(min(times), 5),
        "seconds_max": round(max(times), 5),
        "peak_gb": round(median(process["peak_gb"] for process in found), 3),
        "gflops": round(sum(step_flops(work, case.batch, case.mode)) / seconds / 1e9, 2),
        "roofline_share": round(bound / seconds, 4),
        "rounds": len(found),
        "processor": limits.processor,
        "threads": case.threads,
        "batch": case.batch,
        "input_rate": round(median(rates), 4) if rates else "",
    }


def write_csv(path: Path, rows: list[dict], columns: Iterable[str] = COLUMNS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def summary(rows: list[dict], machines: dict[str, Machine]) -> str:
    """All rows as a table for the terminal, the machine's limits above them."""
    lines = []
    for size, limits in machines.items():
        lines.append(f"{size}: {limits.title}")
        if not limits.kernels:
            lines.append("  no compiled kernels: ours runs on the plain path")
        for precision, p in limits.peaks.items():
            lines.append(
                f"  {precision}: products {p.product:,.0f} GFLOP/s, convolutions "
                f"{p.convolution:,.0f} GFLOP/s, memory {p.bandwidth:.0f} GB/s "
                f"({limits.labels[precision]})"
            )
        head = f"  {'model':<11}{'mode':<7}{'':<9}{'':<6}{'s per step':>11}{'min – max':>19}"
        lines.append(head + f"{'GB':>7}{'GFLOP/s':>9}{'roofline s':>12}{'share':>7}")
        for r in (row for row in rows if row["size"] == size):
            spread = f"{r['seconds_min']:.4f} – {r['seconds_max']:.4f}"
            bound = r["seconds_median"] * r["roofline_share"]
            lines.append(
                f"  {r['model']:<11}{r['mode']:<7}{r['variant']:<9}{r['precision']:<6}"
                f"{r['seconds_median']:>11.4f}{spread:>19}{r['peak_gb']:>7.2f}"
                f"{r['gflops']:>9.0f}{bound:>12.4f}{r['roofline_share']:>7.0%}"
            )
        lines.append("")
    return "\n".join(lines)


# ---- Ratios ----------------------------------------------------------------------------------

#: (ours, plain) → bars for training, inference and memory on a CPU, without and with AMX.
PAIRS = {
    ("fp32", "fp32"): ("fp32 against plain fp32", (2.7, 2.7), (3.0, 3.0), 0.5),
    ("bf16", "bf16"): ("bf16 against plain under bf16 autocast", (2.0, 4.0), (3.0, 3.0), 0.45),
    ("bf16", "fp32"): ("bf16 against plain fp32", (5.0, 10.0), (None, 12.0), 0.3),
}
SHARES = {"fp32": 0.9, "bf16": 0.75}
SMALL_BAR = 5.0
MISSED = " ✗"


def ratios(rows: list[dict], machines: dict[str, Machine]) -> str:
    """Markdown: how many times faster and how much smaller ours is, the bars beside.

    The bars of training, inference and memory are those of MSVIT; the shares are for all.
    """
    by_key = {tuple(row[c] for c in COLUMNS[:5]): row for row in rows}
    lines = ["# A step of ours against plain spikingjelly modules", ""]
    for size, limits in machines.items():
        batch = next(row["batch"] for row in rows if row["size"] == size)
        models = list(dict.fromkeys(row["model"] for row in rows if row["size"] == size))
        lines += [
            f"## {size}: batch {batch}, {limits.title}",
            "",
            "| model | ours against plain | training | bar | inference | bar | memory | bar |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
        ]
        for model in models:
            lines += [
                _ratio_row(by_key, model, size, pair, limits)
                for pair in PAIRS
                if set(pair) <= set(limits.peaks)
            ]
        lines += ["", "| share of the roofline | " + " | ".join(models) + " | bar |"]
        lines.append("|---|" + "--:|" * (len(models) + 1))
        for mode, precision in product(("train", "infer"), limits.peaks):
            held = mode == "train" and size == "cifar"
            least = SHARES[precision] if held else 0.0
            shares = []
            for model in models:
                plain, ours = (
                    by_key[model, size, variant, precision, mode]["roofline_share"]
                    for variant in VARIANTS
                )
                shares.append(f"{ours:.0%}{MISSED if ours < least else ''} (plain {plain:.0%})")
            bar = f"≥ {least:.0%}" if least else ""
            title = f"{'training' if mode == 'train' else 'inference'}, {precision}"
            lines.append(f"| {title} | " + " | ".join(shares) + f" | {bar} |")
        lines.append("")
    first = next(iter(machines.values()))
    return "\n".join([*lines, *_how_measured(rows, first), ""])


def _ratio_row(
    by_key: dict[tuple, dict], model: str, size: str, pair: tuple, limits: Machine
) -> str:
    ours, plain = pair
    title, train, infer, memory = PAIRS[pair]
    cells = [model, title]
    for mode, bar in (("train", train), ("infer", infer)):
        a, b = by_key[model, size, "ours", ours, mode], by_key[model, size, "plain", plain, mode]
        ratio = b["seconds_median"] / a["seconds_median"]
        least = _speed_bar(model, size, mode, plain, bar[limits.amx])
        cells.append(f"{ratio:.2f} ×{'' if least is None or ratio >= least else MISSED}")
        cells.append("" if least is None else f"≥ {least:g}")
    a, b = (by_key[model, size, v, p, "train"] for v, p in (("ours", ours), ("plain", plain)))
    ratio, held = a["peak_gb"] / b["peak_gb"], (model, size) == ("msvit", "cifar")
    cells.append(f"{ratio:.2f}{MISSED if held and ratio > memory else ''}")
    cells.append(f"≤ {memory}" if held else "")
    return "| " + " | ".join(cells) + " |"


def _how_measured(rows: list[dict], limits: Machine) -> list[str]:
    rounds = min(row["rounds"] for row in rows)
    lines = [
        "Training is forward, loss, backward and a fused AdamW step; memory is",
        f"the peak of the whole training process. Every number is a median over {rounds} fresh "
        "processes, the",
        "variants taking turns (`step.csv` has the spread). The plain models run in torch's",
        "defaults, ours in the process settings that training uses.",
    ]
    if "bf16" not in limits.peaks:
        lines += ["", "This processor has no instructions for bf16, which was left out."]
    elif not limits.bf16_faster:
        lines += [
            "",
            "This processor multiplies no faster in bf16 than in fp32: training chooses fp32 here.",
            "The bars of bf16 are those of processors that do.",
        ]
    return [
        *lines,
        "",
        "The roofline is that of dense arithmetic (`studies/timing/roofline.py`). Ours adds up the",
        "weights of what fired instead of multiplying zeros, and may pass it: how far depends on",
        f"the firing rate. Here products met {_rates(rows)} spikes per input; `--growth` tries",
        f"other rates. {MISSED.strip()}: the bar is missed.",
    ]


def _rates(rows: list[dict]) -> str:
    rates = [row["input_rate"] for row in rows if row["input_rate"] != ""]
    return f"{min(rates):.2f} to {max(rates):.2f}"


def _speed_bar(model: str, size: str, mode: str, plain: str, bar: float | None) -> float | None:
    if size == "digits":
        return SMALL_BAR if (mode, plain) == ("train", "fp32") else None
    return bar if model == "msvit" else None


def kinds_table(profiles: dict[str, dict[str, float]]) -> str:
    """Seconds and share of every kind of operation, a column per profiled step."""
    lines = [f"  {'':<24}" + "".join(f"{title:>22}" for title in profiles)]
    totals = {title: sum(kinds.values()) for title, kinds in profiles.items()}
    for kind in next(iter(profiles.values())):
        cells = (
            f"{kinds[kind]:>14.4f} s {kinds[kind] / totals[title]:>5.0%}"
            for title, kinds in profiles.items()
        )
        lines.append(f"  {kind:<24}" + "".join(cells))
    return "\n".join(lines)
