"""What a study answers, in sentences, each with how far it may be believed."""

from __future__ import annotations

from analysis.collect import StudyResults
from analysis.comparisons import compare_with_best, outlook, paired_differences
from analysis.effects import effects, why_none
from analysis.notes import verdict, verdict_on_differences
from analysis.statistics import CONFIDENCE, summarize
from analysis.study_tables import effect_label
from analysis.tables import energy_measures
from analysis.view import View
from msvit.records.measures import all_measures


def answer(study: StudyResults, view: View) -> list[str]:
    """Sentences, the main one first; they are those of the tables, where tables have them."""
    if study.finished.empty:
        return ["Nothing can be said yet: no cell is finished."]
    found = [verdict(study), *_highest(study, view)]
    baseline = view.baseline
    if baseline is not None:
        judged = paired_differences(study, "test_accuracy", baseline)
        future = outlook(study, "test_accuracy", baseline)
        found += verdict_on_differences(baseline, judged, future)
    found += _effects(study)
    if len(study.unfinished):
        found.append(
            f"This is not final: {len(study.unfinished)} of {len(study.cells)} cells have no "
            "result yet."
        )
    return found


def _highest(study: StudyResults, view: View) -> list[str]:
    """The highest mean with its interval, and what is cheapest of those that may be as good."""
    compared = compare_with_best(study)
    accuracy = summarize(study, "test_accuracy")
    if compared is None or accuracy["n"].max() < 2:
        return []
    best = compared.best
    mean, low, high = 100 * accuracy.loc[best, ["mean", "low", "high"]]
    interval = f" ({CONFIDENCE:.0%} interval over seeds {low:.2f} to {high:.2f})"
    shown = "" if accuracy["n"][best] < 2 else interval
    found = [f"Mean test accuracy of {best}: {mean:.2f} %{shown}."]
    if not compared.decided:
        return found
    name = energy_measures(study, view)[0]
    energy = summarize(study, name)["mean"][[best, *compared.ties]].dropna()
    if len(energy) < 2 or best not in energy:
        return found
    cheapest = str(energy.idxmin())
    cost = all_measures()[name].text(energy[cheapest])
    if cheapest == best:
        rest = "It has the least"
        return [*found, f"{rest} {cost} per image (computed) of all that may be as accurate."]
    less = 1 - energy[cheapest] / energy[best]
    return [
        *found,
        f"Of those that cannot be told apart from it, {cheapest} needs least: {cost} per image "
        f"(computed), {less:.0%} less than {best}.",
    ]


def _effects(study: StudyResults) -> list[str]:
    """Which changes of a factorial grid matter for accuracy."""
    if why_none(study):
        return []
    judged = effects(study, "test_accuracy").dropna(subset="low")
    if judged.empty:
        return ["Too few seeds to say what each change of the grid does."]
    apart = judged[judged["p"] < 1 - CONFIDENCE]
    if apart.empty:
        return [
            "No change of the grid has an effect on accuracy that can be told apart from 0, which "
            "does not say that there is none."
        ]
    told = [
        f"{effect_label(study, row.changes)}: {100 * row.difference:+.2f} points "
        f"({100 * row.low:+.2f} to {100 * row.high:+.2f})".replace("-", "−")
        for row in apart.itertuples()
    ]
    return [
        f"Effects on accuracy apart from 0, with {CONFIDENCE:.0%} intervals for all of them "
        f"together: {'; '.join(told)}."
    ]
