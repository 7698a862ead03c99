"""Figures of ``studies/speed.py``, in the style of the project's other figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.canvas import style
from studies.timing.cases import INPUT_RATE, say_threads

_CURVES = {
    ("plain", "fp32"): ("plain, fp32", "0.55", "o"),
    ("plain", "bf16"): ("plain, bf16", "0.8", "D"),
    ("ours", "fp32"): ("ours, fp32", "C0", "s"),
    ("ours", "bf16"): ("ours, bf16", "C1", "^"),
}


_AXES = {
    "timesteps": "time steps",
    "batch": "images per batch",
    INPUT_RATE: "spikes per input of a product",
}


@contextmanager
def _figure(folder: Path, name: str, width: float, height: float) -> Iterator[Figure]:
    with style():
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure
        for ending in ("png", "pdf"):
            figure.savefig(folder / f"{name}.{ending}")


def draw_steps(rows: list[dict], folder: Path) -> None:
    """``step.png``: seconds per step of every variant, and the roofline of each as a line."""
    panels = list(dict.fromkeys((row["size"], row["mode"]) for row in rows))
    with _figure(folder, "step", 6.9, 2.4 * -(-len(panels) // 2)) as figure:
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False)
        for axes, (size, mode) in zip(grid.flat, panels, strict=False):
            shown = [row for row in rows if (row["size"], row["mode"]) == (size, mode)]
            models = list(dict.fromkeys(row["model"] for row in shown))
            by_key = {(row["model"], row["variant"], row["precision"]): row for row in shown}
            keys = [key for key in _CURVES if (models[0], *key) in by_key]
            for i, key in enumerate(keys):
                label, colour, _ = _CURVES[key]
                for x, model in enumerate(models):
                    place = x + 0.2 * (i - (len(keys) - 1) / 2) * 4 / len(keys)
                    width = 0.18 * 4 / len(keys)
                    row = by_key[(model, *key)]
                    _bar(axes, place, width, row, colour, label if x == 0 else None)
            axes.set_xticks(range(len(models)), models)
            axes.grid(visible=False, axis="x")
            axes.set_ylabel("seconds per step")
            row = shown[0]
            what = {"train": "training", "infer": "inference"}[mode]
            threads = say_threads(row["threads"])
            axes.set_title(f"{size}, {what}: batch {row['batch']}, {threads}")
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        handles, labels = grid.flat[0].get_legend_handles_labels()
        title = f"{rows[0]['processor']}. Black: dense roofline; whiskers: min to max"
        figure.legend(
            *(handles, labels), title=title, title_fontsize=7, loc="outside upper center", ncols=4
        )


def _bar(axes: Axes, x: float, width: float, row: dict, colour: str, label: str | None) -> None:
    seconds = row["seconds_median"]
    spread = [[seconds - row["seconds_min"]], [row["seconds_max"] - seconds]]
    axes.bar(x, seconds, width, yerr=spread, color=colour, label=label, error_kw={"lw": 0.6})
    bound = seconds * row["roofline_share"]
    axes.plot([x - width / 2, x + width / 2], [bound, bound], color="black", lw=1)


def draw_growth(rows: list[dict], folder: Path) -> None:
    """``growth.png``: a training step of MSVIT along every axis."""
    with _figure(folder, "growth", 6.9, 4.6) as figure:
        grid = figure.subplots(2, 3)
        for axes, axis in zip(grid.flat, dict.fromkeys(row["axis"] for row in rows), strict=False):
            on_axis = [row for row in rows if row["axis"] == axis]
            for (variant, precision), (label, colour, marker) in _CURVES.items():
                line = [
                    r for r in on_axis if (r["variant"], r["precision"]) == (variant, precision)
                ]
                if line:
                    x, y = [r["value"] for r in line], [r["seconds_median"] for r in line]
                    axes.plot(x, y, color=colour, marker=marker, label=label)
            if axis == INPUT_RATE:
                axes.set_xlim(left=0)
                axes.set_ylim(bottom=0)
            else:
                axes.set_yscale("log")
                axes.set_xscale("log", base=2)
                ticks = sorted({row["value"] for row in on_axis})
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xlabel(_AXES.get(axis, axis))
        for axes in grid[:, 0]:
            axes.set_ylabel("seconds per step")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        grid.flat[-1].legend(handles, labels, loc="center")
        grid.flat[-1].axis("off")
        figure.suptitle(f"MSVIT, training step; {rows[0]['processor']}", size=8)


def draw_kinds(profiles: dict[str, dict[str, float]], size: str, folder: Path) -> None:
    """``kinds_SIZE.png``: how the profiled steps split over kinds of operation."""
    with _figure(folder, f"kinds_{size}", 6.9, 1.1 + 0.45 * len(profiles)) as figure:
        axes = figure.subplots()
        colours = [f"C{i}" for i in range(7)] + ["#F0E442", "0.5", "0.8"]
        left = dict.fromkeys(profiles, 0.0)
        for kind, colour in zip(next(iter(profiles.values())), colours, strict=True):
            for title, kinds in profiles.items():
                first = title == next(iter(profiles))
                axes.barh(
                    title,
                    kinds[kind],
                    left=left[title],
                    color=colour,
                    label=kind if first else None,
                )
                left[title] += kinds[kind]
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"seconds of one training step of MSVIT, {size} size")
        figure.legend(loc="outside upper center", ncols=5)
