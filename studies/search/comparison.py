"""What repeated searches of two samplers say about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.canvas import canvas, style
from analysis.search import Search, collect_search
from analysis.statistics import CONFIDENCE, t_interval
from studies.search.space import Space


def report(results: Path, space: Space, names: Mapping[str, Sequence[str]], out: Path) -> None:
    """Write ``hypervolume.csv``, ``hypervolume.md`` and ``hypervolume.png`` and print the second.

    ``names`` are the searches of each sampler, repetition by repetition.
    """
    searches = {
        sampler: [collect_search(results, n) for n in own] for sampler, own in names.items()
    }
    worst, best = _corners([s for own in searches.values() for s in own])
    curves = pd.DataFrame(
        [
            {"sampler": sampler, "repeat": repeat, "trial": trial, "hypervolume": value}
            for sampler, own in searches.items()
            for repeat, search in enumerate(own)
            for trial, value in enumerate(_curve(search, worst, best), start=1)
        ]
    )
    out.mkdir(parents=True, exist_ok=True)
    curves.to_csv(out / "hypervolume.csv", index=False)
    text = _text(space, curves, searches, worst, best)
    (out / "hypervolume.md").write_text(text, encoding="utf-8")
    _draw(space, curves, out / "hypervolume.png")
    print(f"\n{text}\nwritten to {out}")


def hypervolume(losses: np.ndarray) -> float:
    """Share of the unit square that points ``[n, 2]`` (smaller is better) dominate."""
    volume, height = 0.0, 1.0
    for x, y in sorted(map(tuple, np.clip(losses, 0, 1))):
        if y < height:
            volume += (1 - x) * (height - y)
            height = y
    return volume


def _losses(search: Search) -> pd.DataFrame:
    """Both objectives of complete, allowed trials, smaller is better; index: trial number."""
    trials = search.trials.dropna(subset="rank").set_index("number")
    signs = {name: 1 if aim == "minimize" else -1 for name, aim in search.objectives.items()}
    return trials[list(signs)].astype(float).mul(signs)


def _corners(searches: Sequence[Search]) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the square: a tenth beyond the worst value that any search has seen, the best.

    Beyond it, so that the ends of a front count too.
    """
    values = np.concatenate([_losses(search).to_numpy() for search in searches])
    worst, best = values.max(0), values.min(0)
    return worst + 0.1 * (worst - best), best


def _curve(search: Search, worst: np.ndarray, best: np.ndarray) -> list[float]:
    """Hypervolume after each trial, in the square between the corners."""
    span = np.where(worst > best, worst - best, 1.0)
    losses = (_losses(search) - best) / span
    return [
        hypervolume(losses[losses.index <= number].to_numpy()) for number in search.trials["number"]
    ]


def _text(
    space: Space,
    curves: pd.DataFrame,
    searches: Mapping[str, Sequence[Search]],
    worst: np.ndarray,
    best: np.ndarray,
) -> str:
    last = curves.groupby(["sampler", "repeat"])["hypervolume"].last().unstack("sampler")
    ours, chance = searches
    difference = last[ours] - last[chance]
    low, high = t_interval(difference)
    lines = [
        f"Share of objective space dominated after {space.trials} trials of `{space.name}` "
        f"({len(last)} repetitions):",
        "",
        f"| repetition | {ours} | {chance} | difference |",
        "|---|--:|--:|--:|",
        *(
            f"| {repeat + 1} | {row[ours]:.3f} | {row[chance]:.3f} | {difference[repeat]:+.3f} |"
            for repeat, row in last.iterrows()
        ),
        f"| mean ± std | {last[ours].mean():.3f} ± {last[ours].std():.3f} | "
        f"{last[chance].mean():.3f} ± {last[chance].std():.3f} | "
        f"{difference.mean():+.3f} ± {difference.std():.3f} |",
        "",
        f"{CONFIDENCE:.0%} t interval of the difference: {low:+.3f} to {high:+.3f}: "
        + (
            f"{ours} is better than {chance} here."
            if low > 0
            else f"{chance} is better than {ours} here."
            if high < 0
            else "this does not tell the two apart."
        ),
    ]
    for sampler, own in searches.items():
        epochs = np.mean([search.trials["epochs"].sum() for search in own])
        complete = np.mean([len(search.complete) for search in own])
        lines.append(f"{sampler}: {complete:.1f} trials complete, {epochs:.0f} epochs a run.")
    corner = ", ".join(
        f"{name} {abs(w):.4g} to {abs(b):.4g}"
        for name, w, b in zip(space.objectives, worst, best, strict=True)
    )
    lines.append(
        f"The square goes from a tenth beyond the worst value of any run to the best: {corner}."
    )
    return "\n".join(lines) + "\n"


def _draw(space: Space, curves: pd.DataFrame, path: Path) -> None:
    with style():
        figure, axes = canvas()
        for sampler, own in curves.groupby("sampler", sort=False):
            wide = own.pivot_table(index="trial", columns="repeat", values="hypervolume")
            (line,) = axes.plot(wide.index, wide.mean(axis=1), label=f"{sampler}, mean")
            band = (wide.min(axis=1), wide.max(axis=1))
            axes.fill_between(wide.index, *band, color=line.get_color(), alpha=0.15, lw=0)
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("share of objective space dominated")
        axes.legend(loc="lower right")
        repeats = curves["repeat"].nunique()
        axes.set_title(f"{space.name}: {repeats} repetitions, band from the worst to the best")
        figure.savefig(path)
