"""Statistics against scipy, against known truths, and by simulation: do they hold what they say?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.comparisons import Outlook, differences_to, outlook, paired_differences
from analysis.contrasts import Largest, fit, judge
from analysis.effects import effects, why_none
from analysis.statistics import MANY, interquartile, on_new_images
from tests.results_folder import Results

STUDIES = 300
MOST = stats.binom(STUDIES, 0.05).ppf(0.999) / STUDIES
"""What chance makes of 5 % in so many studies."""
AXES = ("model.scales", "model.attn_threshold", "model.widths")


def study_values(random, configurations: int, seeds: int, truth=0.0) -> pd.DataFrame:
    """Accuracies of one study: what is true, what a seed does to all, and noise of 0.01."""
    noise = random.normal(size=(seeds, configurations)) + 2 * random.normal(size=(seeds, 1))
    return pd.DataFrame(0.9 + truth + 0.01 * noise)


def deltas(folder, accuracy, seeds: int = 3) -> Results:
    """A 2×2×2 grid whose accuracies are ``accuracy(scales, threshold, widths, seed)``, each 0/1."""
    results = Results(folder, "deltas", AXES)
    for a, scales in enumerate(([1], [1, 3])):
        for b, threshold in enumerate((0.5, 1.0)):
            for c, widths in enumerate(([0.25, 1.0], [0.5, 1.0])):
                model = {"name": "msvit", "scales": scales, "attn_threshold": threshold}
                scores = [accuracy(a, b, c, seed) for seed in range(seeds)]
                energies = [1e-3 * (1 + a)] * seeds
                label = f"msvit {a}{b}{c}"
                results.add_seeds(label, {**model, "widths": widths}, scores, energies)
    return results


# One model, one family


def test_two_configurations_are_a_paired_t_test():
    random = np.random.default_rng(2)
    values = study_values(random, 2, 5, np.array([0, 0.02]))
    found = differences_to(values, baseline=0).loc[1]
    expected = stats.ttest_rel(values[1], values[0])
    low, high = expected.confidence_interval(0.95)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["difference"] == pytest.approx((values[1] - values[0]).mean())
    assert found["n"] == 5


@pytest.mark.parametrize(("others", "freedom"), [(2, 4), (5, 10), (7, 16)])
def test_the_bound_of_a_family_is_that_of_scipys_multivariate_t(others, freedom):
    correlation = (np.eye(others) + 1) / 2
    found = Largest.of(correlation, freedom)
    box = np.full(others, found.bound)
    inside = stats.multivariate_t.cdf(
        box, shape=correlation, df=freedom, lower_limit=-box, random_state=0
    )
    assert inside == pytest.approx(0.95, abs=2e-3)
    assert found.beyond(found.bound) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.slow
def test_effect_size_is_the_difference_in_unbiased_standard_deviations():
    random = np.random.default_rng(3)
    truth = np.array([0, 0, 0.02])  # two standard deviations of the noise
    sizes = [
        differences_to(study_values(random, 3, 4, truth), 0).loc[2, "effect"]
        for _ in range(STUDIES)
    ]
    assert np.mean(sizes) == pytest.approx(2, abs=0.15)


def test_what_no_common_seed_connects_is_not_judged():
    values = pd.DataFrame(
        {"a": [0.9, 0.91, np.nan], "b": [0.8, 0.82, np.nan], "c": [np.nan, np.nan, 0.1]}
    )
    found = differences_to(values, "a")
    assert found.loc["b", ["difference", "low", "high"]].notna().all()
    assert found.loc["c", ["difference", "low", "high", "p"]].isna().all()


def test_measures_without_noise_differ_or_do_not():
    values = pd.DataFrame({"a": [1e-3] * 3, "b": [1e-3] * 3, "c": [3e-3] * 3})
    found = differences_to(values, "a")
    assert list(found["p"]) == [1, 0]
    assert found.loc["c", ["low", "high"]].tolist() == pytest.approx([2e-3, 2e-3])


# By simulation: false alarms, coverage, power


@pytest.mark.parametrize(("configurations", "seeds"), [(2, 3), (6, 3), (6, 5)])
def test_a_baseline_is_seldom_told_from_its_equals(configurations, seeds):
    random, alarms = np.random.default_rng(0), 0
    for _ in range(STUDIES):
        found = differences_to(study_values(random, configurations, seeds), 0)
        alarms += ((found["low"] > 0) | (found["high"] < 0)).any()
    assert 0.02 <= alarms / STUDIES <= MOST


@pytest.mark.slow
def test_accuracies_of_few_images_alarm_no_more_often():
    random, alarms = np.random.default_rng(0), 0
    for _ in range(STUDIES):
        images = np.round(0.7 * random.normal(size=(3, 4)))
        found = differences_to(pd.DataFrame((333 + images) / 340), 0, step=1 / 340)
        alarms += (found["p"] < 0.05).any()
    assert alarms / STUDIES <= MOST


def test_the_intervals_of_a_family_all_hold_the_truth_in_95_of_100_studies(tmp_path):
    random, missed = np.random.default_rng(1), 0
    truth = np.array([0, 0.01, -0.02, 0.005, 0.1])
    for _ in range(STUDIES):
        found = differences_to(study_values(random, 5, 3, truth), 0)
        missed += ((found["low"] > truth[1:]) | (found["high"] < truth[1:])).any()
    assert 0.02 <= missed / STUDIES <= MOST


@pytest.mark.slow
def test_noise_that_is_not_alike_makes_false_alarms_a_little_likelier():
    random, alarms = np.random.default_rng(4), 0
    spread = np.linspace(1, 3, 6)
    for _ in range(STUDIES):
        values = pd.DataFrame(random.normal(size=(3, 6)) * spread)
        found = differences_to(values, 0)
        alarms += ((found["low"] > 0) | (found["high"] < 0)).any()
    assert alarms / STUDIES <= 0.1


@pytest.mark.slow
def test_so_many_seeds_as_are_said_to_be_needed_see_the_difference():
    random, seen = np.random.default_rng(5), 0
    needed = Outlook(noise=0.01, visible=np.nan, configurations=4).seeds_for(0.012)
    assert 8 <= needed <= 20
    truth = np.array([0, 0, 0, 0.012])
    for _ in range(STUDIES):
        found = differences_to(study_values(random, 4, needed, truth), 0)
        seen += found.loc[3, "low"] > 0
    assert 0.74 <= seen / STUDIES <= 0.86
    assert Outlook(0.01, np.nan, 4).seeds_for(1e-6) is None


@pytest.mark.slow
def test_intervals_on_new_images_hold_the_truth_where_those_of_the_seeds_do_not(tmp_path):
    """Images are easy or hard to all seeds alike; the truth is over all images there could be."""
    random = np.random.default_rng(6)
    studies, seeds, images = 60, 5, 360
    results = Results(tmp_path)
    for study in range(studies):
        hard = random.random(images) ** 8  # a few images that most networks miss
        right = random.random((seeds, images)) < 1 - hard
        model = {"name": "msvit", "dim": 8 * (study + 1)}
        results.add_seeds(str(study), model, list(right.mean(axis=1)), [1e-3] * seeds)
    truth = 1 - 1 / 9
    found = on_new_images(results.study())
    held = ((found["low"] <= truth) & (truth <= found["high"])).mean()
    assert held >= stats.binom(studies, 0.95).ppf(0.001) / studies
    assert found["high"].max() <= 1


# Effects of a grid


def test_main_effects_and_interactions_are_those_that_were_put_in(tmp_path):
    def accuracy(a, b, c, seed):
        return 0.8 + 0.04 * a + 0.02 * a * b + 0.001 * seed

    study = deltas(tmp_path, accuracy).study()
    found = effects(study, "test_accuracy")
    told = {tuple(axis for axis, _ in row.changes): row.difference for row in found.itertuples()}
    scales, threshold, widths = AXES
    assert told[scales,] == pytest.approx(0.05)  # half of the grid has the interaction
    assert told[threshold,] == pytest.approx(0.01)
    assert told[widths,] == pytest.approx(0, abs=1e-9)
    assert told[scales, threshold] == pytest.approx(0.02)
    assert len(told) == 6
    assert found["changes"][0] == (("model.scales", (1, 3)),)
    energy = effects(study, "energy_mj")
    assert energy["difference"][0] == pytest.approx(1e-3)
    assert energy["difference"][1:].abs().max() < 1e-12


def test_effects_of_three_values_are_against_the_first(tmp_path):
    results = Results(tmp_path, "two", ("model.scales", "model.timesteps"))
    for number, scales in enumerate(([1], [1, 3], [1, 3, 5])):
        for timesteps in (1, 4):
            model = {"name": "msvit", "scales": scales}
            score = [0.8 + 0.01 * number + 0.002 * timesteps + 0.001 * s for s in range(2)]
            label = f"msvit {number} {timesteps}"
            results.add_seeds(label, model, score, [1e-3] * 2, timesteps=timesteps)
    found = effects(results.study(), "test_accuracy")
    assert list(found["difference"]) == pytest.approx([0.01, 0.02, 0.006, 0, 0], abs=1e-9)


def test_a_grid_without_effects_says_why(tmp_path):
    one = Results(tmp_path / "one")
    one.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.9], [1e-3])
    assert "two or more axes" in why_none(one.study())
    results = deltas(tmp_path / "deltas", lambda a, b, c, seed: 0.9)
    entry = results.entries[-1]
    (results.folder / "cells" / entry["id"] / "record.json").unlink()
    assert why_none(results.study()) == ""  # two seeds of it are left
    for entry in results.entries[-3:-1]:
        (results.folder / "cells" / entry["id"] / "record.json").unlink()
    assert "7 of 8" in why_none(results.study())
    assert effects(results.study(), "test_accuracy").empty
    study = results.study()
    second = {entry["group"] for entry in results.entries[12:]}  # of one axis, all of one value
    for cell in study.cells.itertuples():
        if cell.group in second:
            (results.folder / "cells" / cell.id / "record.json").unlink(missing_ok=True)
    assert "4 of 8" in why_none(results.study())  # and not: of a grid of two axes


@pytest.mark.slow
def test_effects_that_are_none_are_seldom_seen():
    random, alarms = np.random.default_rng(7), 0
    signs = np.array([[(-1) ** (i >> k & 1) / 4 for i in range(8)] for k in range(3)])
    rows = [*signs, *(4 * signs[i] * signs[j] for i, j in ((0, 1), (0, 2), (1, 2)))]
    family = {str(n): dict(enumerate(row)) for n, row in enumerate(rows)}
    for _ in range(STUDIES):
        alarms += (judge(fit(study_values(random, 8, 3)), family)["p"] < 0.05).any()
    assert 0.02 <= alarms / STUDIES <= MOST


# What a study says of itself


def test_a_study_says_what_it_could_have_seen_and_what_that_would_need(tmp_path):
    random = np.random.default_rng(8)
    results = Results(tmp_path)
    for number in range(4):
        model = {"name": "msvit", "scales": [1] * (number + 1)}
        results.add_seeds(str(number), model, list(0.9 + 0.01 * random.normal(size=6)), [1e-3] * 6)
    study = results.study()
    found = outlook(study, "test_accuracy", "0")
    assert found.noise == pytest.approx(0.01, rel=0.4)
    # The seeds that the visible difference needs are those of the study.
    assert found.seeds_for(1.001 * found.visible) == 6
    assert list(paired_differences(study, "test_accuracy", "0").index) == ["1", "2", "3"]
    few = Results(tmp_path / "few")
    few.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.9, 0.91], [1e-3] * 2)
    few.add_seeds("b", {"name": "spikformer"}, [0.9, 0.92], [1e-3] * 2)
    assert outlook(few.study(), "test_accuracy", "a") is None


def test_a_failed_run_of_many_does_not_move_the_interquartile_mean(tmp_path):
    scores = list(0.9 + 0.01 * np.random.default_rng(9).normal(size=MANY))
    results = Results(tmp_path)
    results.add_seeds("all well", {"name": "msvit", "scales": [1]}, scores, [1e-3] * MANY)
    broken = [0.1, *scores[1:]]
    results.add_seeds("one broken", {"name": "msvit", "scales": [3]}, broken, [1e-3] * MANY)
    results.add_seeds("few", {"name": "spikformer"}, scores[:5], [1e-3] * 5)
    found = interquartile(results.study(), "test_accuracy")
    assert list(found.index) == ["all well", "one broken"]
    assert found.loc["all well", "mean"] == pytest.approx(stats.trim_mean(scores, 0.25))
    assert found.loc["one broken", "mean"] == pytest.approx(0.9, abs=0.01)
    assert (found["low"] < found["mean"]).all()
    assert (found["mean"] < found["high"]).all()
