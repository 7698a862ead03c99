"""The sentences under the comparison table: what its numbers are, and what they do not say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pandas as pd

from analysis.collect import StudyResults
from analysis.comparisons import MOST_SEEDS, Outlook, compare_with_best
from analysis.statistics import CONFIDENCE, POWER, image_error, summarize
from analysis.view import telling
from msvit.data import DATASETS
from msvit.records.energy_choice import EnergyChoice


def notes(study: StudyResults, sources: Mapping[str, str], energy: EnergyChoice) -> list[str]:
    """All that belongs beside the numbers; ``sources`` of published ones by configuration."""
    finished, unfinished = study.finished, study.unfinished
    found = []
    if len(unfinished):
        failed = int((unfinished["status"] == "failed").sum())
        found.append(
            f"Unfinished: {len(unfinished)} of {len(study.cells)} cells have no result "
            f"({failed} failed, {len(unfinished) - failed} missing)."
        )
    if study.overrides:
        settings = ", ".join(study.overrides)
        found.append(f"Run with {settings} in place of the grid's own settings.")
    if finished.empty:
        return found
    found.append(verdict(study))
    images = ", ".join(f"{int(n):,}" for n in sorted(finished["test_images"].unique()))
    fewest = int(finished["test_images"].min())
    several = finished["group"].duplicated().any()
    how = "mean ± standard deviation over seeds" if several else "of one seed each"
    highest = float(finished.groupby("group")["test_accuracy"].mean().max())
    found.append(
        f"Accuracy: {how}, on {images} test images (one image is {100 / fewest:.2g} points), with "
        "the weights of the epoch that was best on the validation images. That test images are a "
        f"sample is in none of these numbers: alone it makes ± {_points(highest, fewest)} points "
        f"({CONFIDENCE:.0%}) of the highest accuracy."
    )
    told = telling(study, energy)
    found.append(f"Firing rate: spikes per neuron and time step. {told.note()}")
    found += _lacking(finished, energy, told)
    found += _which_images(finished)
    found += _at_chance(finished)
    found += _mixed_precisions(finished)
    found += _mixed_workers(finished)
    found += _origin(finished)
    if sources:
        which = "; ".join(f"{group}: {source}" for group, source in sources.items())
        found.append(f"† published, not measured here. {which}.")
    return found


def _lacking(finished: pd.DataFrame, energy: EnergyChoice, told: EnergyChoice) -> list[str]:
    """What an energy model cannot tell: cells of earlier versions, and networks of other kinds."""
    named = zip(energy.models, energy.measures, strict=True)
    missing = [model for model, measure in named if finished[measure].isna().any()]
    of_none = [model for model in missing if model not in told.models]
    of_some = [model for model in missing if model in told.models]
    return [
        f"{which}: energy by {', '.join(models)}. It is not defined for them, or an earlier "
        "version has counted less: studies/run.py --remeasure counts again."
        for which, models in (("Of no cell", of_none), ("Not of all cells", of_some))
        if models
    ]


def _at_chance(finished: pd.DataFrame) -> list[str]:
    """Networks that guess: a configuration of which nothing can be said but that."""
    by_group = finished.groupby("group", sort=False)
    chance = 1 / by_group["model.num_classes"].first()
    # Two standard deviations of who guesses; the seeds have all been asked the same images.
    luck = 2 * (chance * (1 - chance) / by_group["test_images"].min()) ** 0.5
    guessing = by_group["test_accuracy"].mean() <= chance + luck
    if not guessing.any():
        return []
    return [
        f"No better than chance, so that nothing follows from their other measures: "
        f"{'; '.join(guessing.index[guessing])}."
    ]


def _which_images(finished: pd.DataFrame) -> list[str]:
    """What was found under the name of a data set, where that is not what the name says."""
    remarks = (DATASETS[name].remark for name in finished["data"].unique() if name in DATASETS)
    found = [f"{remark[0].upper()}{remark[1:]}." for remark in remarks if remark]
    if "images.counts" not in finished:
        return found
    told = finished.dropna(subset=["images.counts"])
    for counts, rows in told.groupby("images.counts", sort=False):
        for name in rows["data"].unique():
            options = DATASETS.get(name)
            note = options.unlike_published(json.loads(counts)) if options else None
            found += [f"{note[0].upper()}{note[1:]}."] if note else []
    chosen = ["data", *(column for column in told if column.startswith("data."))]
    for _, rows in told.groupby(chosen, sort=False, dropna=False):
        if rows["images.digest"].nunique() > 1:
            found.append(
                f"Not all cells have seen the same images of {rows['data'].iloc[0]}: digests "
                f"{', '.join(sorted(rows['images.digest'].unique()))}. They cannot be compared."
            )
    return found


def _mixed_precisions(finished: pd.DataFrame) -> list[str]:
    """``auto`` is another precision on another processor, and was another one before."""
    by_group = finished.groupby("group", sort=False)["precision"].agg(lambda p: sorted(set(p)))
    mixed = [f"{group} ({'; '.join(found)})" for group, found in by_group.items() if len(found) > 1]
    if mixed:
        return [f"Their seeds were trained in different precisions: {', '.join(mixed)}."]
    asked = finished.get("training.precision", pd.Series("auto", index=finished.index))
    if (finished["precision"].groupby(asked).nunique() > 1).any():
        which = "; ".join(f"{group}: {found[0]}" for group, found in by_group.items())
        return [f"Configurations were trained in different precisions. {which}."]
    return []


def _mixed_workers(finished: pd.DataFrame) -> list[str]:
    """Workers that normalise their own images are as many recipes as there are numbers of them."""
    columns = finished.reindex(columns=["group", "workers", "training.sync_batchnorm"])
    own = columns[columns["training.sync_batchnorm"].ne(True)]
    numbers = own.groupby("group", sort=False)["workers"].agg(lambda of: sorted(set(of.dropna())))
    mixed = [
        f"{group} ({'; '.join(f'{n:g}' for n in found)})"
        for group, found in numbers.items()
        if len(found) > 1
    ]
    if not mixed:
        return []
    return [
        "Their seeds were trained by different numbers of workers, each of which has normalised "
        "its own images (training.sync_batchnorm is off), and are not of one recipe: "
        f"{', '.join(mixed)}."
    ]


_VERSIONS = ("torch", "spikingjelly")


def _origin(finished: pd.DataFrame) -> list[str]:
    """What the cells were trained with: another processor or version gives other numbers."""
    keys = ["processor", "device", "threads", *_VERSIONS, "commit"]
    named = ["precision", "workers", *(f"environment.{key}" for key in keys)]
    columns = finished.reindex(columns=named)
    if columns["environment.processor"].isna().all():
        return []
    columns = columns.rename(columns=lambda name: name.removeprefix("environment."))
    words = columns.map(_word)
    each = "cell" if (words["workers"] == "1").all() else "worker"
    if each == "cell":
        words["workers"] = ""  # of which nothing is said
    differs = [name for name in words if words[name].nunique() > 1]
    nothing = dict.fromkeys(words, "")
    if "device" in differs:  # which decides what of the rest is told
        told, places = list(words), []
    else:
        told, places = differs, [_place({**words.iloc[0], **dict.fromkeys(differs, "")}, each)]
    for values, count in words[told].value_counts(sort=False).items() if differs else ():
        own = _place(nothing | dict(zip(told, values, strict=True)), each)
        places.append(f"{own or 'not known'} ({count} cell{'s' * (count > 1)})")
    return [
        f"Trained on {'; '.join(places)}. Another processor, precision or version gives other "
        "numbers from the same seeds, and may order configurations otherwise where they are close."
    ]


def _word(value: object) -> str:
    """As it was recorded: a column with a gap has made floats of whole numbers."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _place(said: dict[str, str], each: str) -> str:
    """What is ``said``; ``each`` is the process that has so many threads."""
    on_cpu = said["device"] in ("", "cpu")
    workers = f"{said['workers']} worker{'s' * (said['workers'] != '1')} a cell"
    threads = f"{said['threads']} thread{'s' * (said['threads'] != '1')} a {each}"
    commit = said["commit"].partition("-")
    parts = [
        said["processor"] if on_cpu else said["device"],
        threads if on_cpu and said["threads"] else "",
        workers if said["workers"] else "",
        said["precision"],
        *(f"{key} {said[key]}" for key in _VERSIONS if said[key]),
        f"commit {commit[0][:12]}{''.join(commit[1:])}" if commit[0] else "",
    ]
    return ", ".join(part for part in parts if part)


def _points(share: float, images: int) -> str:
    return f"{100 * image_error(share, images):.2g}"


def verdict(study: StudyResults) -> str:
    """What the seeds allow to say about the order of the configurations."""
    seeds = summarize(study, "test_accuracy")["n"]
    found = compare_with_best(study)
    if found is None or (seeds > 0).sum() < 2:
        return "Only one configuration is finished: nothing to compare yet."
    if seeds.max() < 2:
        return "One seed per configuration: no spread is known, the order may be chance."
    how = (
        f"Tukey's range test by seed, {1 - CONFIDENCE:.0%} error for all comparisons together "
        "where the spread over seeds is alike"
    )
    best = found.best
    if not found.decided:
        return (
            "Too few seeds to say anything of the order: that takes configurations with several "
            "seeds that they share."
        )
    if not found.ties:
        told = f"{best} has the highest accuracy, apart from every other ({how})."
    elif not found.apart:
        told = f"No configuration can be told apart from the best, {best} ({how})."
    else:
        named = (f"{group} (one seed)" if seeds[group] == 1 else group for group in found.ties)
        told = f"Cannot be told apart from the best, {best}: {'; '.join(named)} ({how})."
    if found.seeds_differ:
        told += (
            " Configurations have finished different seeds: they are compared by those that they "
            "share, and their means are not."
        )
    if found.uneven > _UNEVEN:
        told += (
            f" One configuration varies {found.uneven:.0f} times as much over seeds as is usual "
            "here, which makes false alarms likelier."
        )
    if math.isnan(found.visible):
        return f"{told} There are too few seeds to say which difference could have been seen."
    return (
        f"{told} A difference of about {100 * found.visible:.2g} points between two "
        f"configurations would be seen by {POWER:.0%} of such studies."
    )


def told_of_differences(
    study: StudyResults, baseline: str, judged: pd.DataFrame, future: Outlook | None
) -> list[str]:
    """What the differences to a baseline say of accuracy, how they were judged, and their power."""
    found = verdict_on_differences(baseline, judged, future)
    if judged["low"].isna().all():
        return found
    return [
        f"Configuration minus {baseline}, by the seeds that both have finished; intervals and p by "
        "Dunnett's test on value = configuration + seed + noise, for all differences of a column "
        f"together ({1 - CONFIDENCE:.0%} error where the noise is alike). Effect size: Hedges' g, "
        "in standard deviations of that noise. Bold: apart from 0.",
        *found,
    ]


def verdict_on_differences(
    baseline: str, judged: pd.DataFrame, future: Outlook | None
) -> list[str]:
    """What the differences to a baseline say of accuracy, and which ones could have been seen."""
    known = judged.dropna(subset="low")
    if known.empty:
        return [
            "Too few seeds to say anything: a difference has no interval before two configurations "
            "have finished two seeds that they share."
        ]
    found = []
    apart = known[known["p"] < 1 - CONFIDENCE]
    better = list(apart.index[apart["difference"] > 0])
    worse = list(apart.index[apart["difference"] < 0])
    if better:
        found.append(f"More accurate than {baseline}: {'; '.join(better)}.")
    if worse:
        found.append(f"Less accurate than {baseline}: {'; '.join(worse)}.")
    if not better and not worse:
        found.append(
            f"No configuration can be told apart from {baseline} in accuracy, which does not say "
            "that they are equal."
        )
    if future is None:
        return [*found, "There are too few seeds to say which difference could have been seen."]
    found.append(
        f"One run varies by {100 * future.noise:.2g} points beside what its seed does to all. A "
        f"difference of about {100 * future.visible:.2g} points to {baseline} would be seen by "
        f"{POWER:.0%} of such studies. {_seeds_needed(future)}"
    )
    return found


def _seeds_needed(future: Outlook) -> str:
    """Seeds for round differences below what this study sees."""
    rounds = [d for d in _ROUND_POINTS if d < 100 * future.visible][:3] or [_ROUND_POINTS[-1]]
    needed = [(points, future.seeds_for(points / 100)) for points in rounds]
    told = [
        f"{points:g} point{'s' * (points != 1)}: "
        f"{f'about {seeds} seeds' if seeds else f'more than {MOST_SEEDS}'}"
        for points, seeds in needed
    ]
    return f"It would take, for {', '.join(told)}."


_ROUND_POINTS = (10, 5, 2, 1, 0.5, 0.2, 0.1)
_UNEVEN = 4  # times the usual spread; seldom exceeded by chance
