"""Analysis of a results folder written as studies write it: real files, known numbers."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.collect import cell_columns, collect
from analysis.comparisons import compare_with_best, paired_differences, tell_apart
from analysis.drawn import Drawn
from analysis.figures import (
    FIGURES,
    accuracy_energy,
    accuracy_over_axis,
    draw_figures,
    pareto_front,
    save_figures,
)
from analysis.formats import latex, latex_text, markdown
from analysis.heatmaps import firing_maps
from analysis.notes import verdict
from analysis.page.answer import answer
from analysis.report import main, print_summary, write_report
from analysis.statistics import image_error, summarize, t_interval
from analysis.tables import compare
from analysis.view import View
from msvit.records.energy_choice import EnergyChoice
from msvit.records.schema import RecordError
from tests.results_folder import LAYERS, SCALES, Results, fill_scales, make_cell, make_record

ROOT = Path(__file__).resolve().parent.parent
GROUPS = [*(f"msvit scales={','.join(map(str, s))}" for s in SCALES), "spikformer", "qkformer"]


@pytest.fixture(scope="module")
def scales(tmp_path_factory) -> Results:
    """Six configurations, three seeds, all finished. Read only."""
    return fill_scales(Results(tmp_path_factory.mktemp("results")))


@pytest.fixture
def partial(tmp_path) -> Results:
    """Three seeds planned: all finished with one scale, one with two, none with three."""
    results = Results(tmp_path)
    for seed in range(3):
        cell = make_cell({"name": "msvit", "scales": [1]}, seed)
        results.add(GROUPS[0], cell, make_record(cell, 0.97 + 0.002 * seed, 0.005))
    cell = make_cell({"name": "msvit", "scales": [1, 3]}, 0)
    results.add(GROUPS[1], cell, make_record(cell, 0.971, 0.006))
    for seed in (1, 2):
        results.add(GROUPS[1], make_cell({"name": "msvit", "scales": [1, 3]}, seed), None)
    for seed in range(3):
        cell = make_cell({"name": "msvit", "scales": [1, 3, 5]}, seed)
        results.add(GROUPS[2], cell, "loss is nan in epoch 1, step 3")
    return results


@pytest.fixture
def tiny(tmp_path) -> Results:
    """One finished cell of few layers: quick to report."""
    results = Results(tmp_path)
    cell = make_cell({"name": "msvit", "scales": [1]}, 0)
    results.add(GROUPS[0], cell, make_record(cell, 0.97, 0.005, layers=3))
    return results


def line(text: str, start: str) -> str:
    """The only line of ``text`` that starts so, spaces squeezed."""
    (found,) = [row for row in text.splitlines() if row.strip("| ").startswith(start)]
    return re.sub(r" +", " ", found)


# Data frames


def test_every_cell_is_a_row_with_its_options_and_scores(scales):
    cells = scales.study().cells
    assert len(cells) == 18
    assert list(cells.columns[: len(cell_columns())]) == cell_columns()
    row = cells[cells["label"] == "msvit scales=1,3 seed 1"].iloc[0]
    assert row["status"] == "finished"
    assert row["model"] == "msvit"
    assert row["model.scales"] == (1, 3)
    assert row["model.timesteps"] == 4
    assert row["training.lr"] == 2e-3
    assert row["test_accuracy"] == pytest.approx(0.982)
    assert row["accuracy"] == pytest.approx(0.92)
    assert row["energy_mj"] == pytest.approx(6.2e-3)
    assert cells[cells["model"] == "spikformer"]["model.scales"].isna().all()


def test_observations_keep_network_order_and_identity(scales):
    study = scales.study()
    one = study.firing[study.firing["id"] == study.cells["id"][0]]
    assert len(one) == len(LAYERS) * 4
    order = one.sort_values("position")["layer"].drop_duplicates()
    assert list(order) == LAYERS
    assert list(study.history.groupby("id").size().unique()) == [3]
    assert set(study.operations["group"]) == set(GROUPS)


def test_failed_and_missing_cells_are_rows(partial):
    study = partial.study()
    assert study.cells["status"].value_counts().to_dict() == {
        "finished": 4,
        "failed": 3,
        "missing": 2,
    }
    failed = study.cells[study.cells["status"] == "failed"].iloc[0]
    assert failed["problem"] == "TrainingDiverged: loss is nan in epoch 1, step 3"
    assert Path(failed["log"]).read_text() == "loss nan\n"
    assert failed["model.scales"] == (1, 3, 5)
    assert study.groups == tuple(GROUPS[:3])


@pytest.mark.parametrize("content", ["", '{"schema": 1, "id"', '{"schema": 1}', "[]", "\x00"])
def test_a_damaged_record_is_one_warning_that_names_the_file(partial, content):
    first = partial.study().cells["id"][0]
    path = partial.folder / "cells" / first / "record.json"
    path.write_text(content)
    study = partial.study()
    assert len(study.cells) == 9
    assert study.cells["status"][0] == "missing"
    (warning,) = study.warnings
    assert str(path) in warning
    assert "\n" not in warning


def test_a_record_in_the_wrong_folder_is_not_taken(partial):
    ids = partial.study().cells["id"]
    cells = partial.folder / "cells"
    shutil.copy(cells / ids[1] / "record.json", cells / ids[0] / "record.json")
    study = partial.study()
    assert study.cells["status"][0] == "missing"
    assert ids[1] in study.warnings[0]


# Statistics


def test_mean_spread_and_interval_by_hand(scales):
    summary = summarize(scales.study(), "test_accuracy").loc[GROUPS[0]]
    values = [0.975, 0.98, 0.983]
    mean = sum(values) / 3
    std = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    half = 4.302652729911275 * std / 3**0.5  # the 97.5 % quantile of Student's t, 2 degrees
    assert summary["mean"] == pytest.approx(mean)
    assert summary["std"] == pytest.approx(std)
    assert summary["low"] == pytest.approx(mean - half)
    assert summary["high"] == pytest.approx(mean + half)
    assert summary["n"] == 3


def test_one_seed_has_no_spread_and_none_has_no_mean(partial):
    summary = summarize(partial.study(), "test_accuracy")
    assert summary.loc[GROUPS[1], "mean"] == pytest.approx(0.971)
    assert summary.loc[GROUPS[1], ["std", "low", "high"]].isna().all()
    assert summary.loc[GROUPS[2], ["mean", "std", "low", "high"]].isna().all()
    assert list(summary["n"]) == [3, 1, 0]


def test_differences_are_paired_by_seed(tmp_path):
    results = Results(tmp_path)
    results.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.90, 0.95, 0.80], [1e-3] * 3)
    results.add_seeds("b", {"name": "msvit", "scales": [1, 3]}, [0.91, 0.97, 0.83], [1e-3] * 3)
    row = paired_differences(results.study(), "test_accuracy", "a").loc["b"]
    assert row["difference"] == pytest.approx(0.02)
    assert row["std"] == pytest.approx(0.01)
    # Far smaller than the spread of either: what the seeds share does not count.
    assert row["low"] == pytest.approx(0.02 - 4.302652729911275 * 0.01 / 3**0.5)
    with pytest.raises(KeyError, match="c"):
        paired_differences(results.study(), "test_accuracy", "c")


def test_the_seeds_tell_apart_what_is_far_enough_from_the_best(scales):
    found = compare_with_best(scales.study())
    assert found.best == GROUPS[3]
    assert "spikformer" in found.apart  # two points lower in each seed
    assert GROUPS[2] in found.ties
    assert {found.best, *found.apart, *found.ties} == set(GROUPS)


def test_two_configurations_are_compared_as_by_a_paired_t_test():
    values = pd.DataFrame({"a": [0.90, 0.95, 0.80, 0.86], "b": [0.91, 0.97, 0.83, 0.88]})
    p = stats.ttest_rel(values["a"], values["b"]).pvalue
    assert p < 0.05
    assert tell_apart(values).apart == ("a",)
    assert tell_apart(values, "minimize").apart == ("b",)
    noisy = values.assign(b=[0.91, 0.93, 0.83, 0.88])
    assert stats.ttest_rel(noisy["a"], noisy["b"]).pvalue > 0.05
    assert tell_apart(noisy).apart == ()


def test_seeds_that_only_some_have_still_count():
    values = pd.DataFrame(
        {"a": [0.90, 0.91, 0.92, 0.90, 0.90], "b": [0.801, np.nan, 0.82, 0.8, np.nan]}
    )
    found = tell_apart(values)
    assert (found.apart, found.seeds_differ) == (("b",), True)
    apart_in_time = pd.DataFrame({"a": [0.9, 0.91, np.nan], "b": [np.nan, np.nan, 0.1]})
    found = tell_apart(apart_in_time)  # no seed in common: nothing follows
    assert (found.apart, found.ties) == ((), ("b",))
    assert np.isnan(found.visible)


@pytest.mark.slow
def test_equal_configurations_are_seldom_told_apart():
    """Simulated, without any difference in truth: 5 % of studies see one, whatever their size."""
    random, studies, alarms = np.random.default_rng(0), 500, {}
    for configurations, seeds in product((2, 6, 8, 20), (3, 5, 10)):
        alarms[configurations, seeds] = 0
        for _ in range(studies):
            noise = random.normal(size=(seeds, configurations)) + 2 * random.normal(size=(seeds, 1))
            found = tell_apart(pd.DataFrame(0.9 + 0.01 * noise))
            alarms[configurations, seeds] += bool(found.apart)
    most = stats.binom(studies, 0.05).ppf(0.999)  # what chance makes of 5 % in one of the twelve
    assert max(alarms.values()) <= most, alarms
    assert sum(alarms.values()) / (studies * len(alarms)) <= 0.06, alarms


def test_lucky_seeds_make_no_winner(tmp_path):
    """A configuration that has finished the easy seeds only; on these, another one is better."""
    results = Results(tmp_path)
    scores = {
        "lucky": [0.98, 0.985],
        "best": [0.99, 0.996, 0.90, 0.91, 0.905],
        "other": [0.97, 0.972, 0.88, 0.885, 0.881],
    }
    for number, (group, accuracies) in enumerate(scores.items()):
        model = {"name": "msvit", "scales": [1] * (number + 1)}
        results.add_seeds(group, model, accuracies, [1e-3] * len(accuracies))
    found = compare_with_best(results.study())
    assert found.best == "best"
    assert set(found.apart) == {"lucky", "other"}
    assert "finished different seeds" in markdown(compare(results.study()))


def test_one_configuration_that_varies_far_more_is_said_so(tmp_path):
    results = Results(tmp_path)
    for number, spread in enumerate((0.01, 0.01, 0.01, 0.2)):
        model = {"name": "msvit", "scales": [1] * (number + 1)}
        accuracies = [0.7, 0.7 + spread, 0.7 - spread, 0.7]
        results.add_seeds(str(number), model, accuracies, [1e-3] * 4)
    assert "varies 20 times as much" in markdown(compare(results.study()))


def test_seeds_that_happen_to_agree_decide_nothing():
    """Accuracies are multiples of one test image: noise of exactly 0 is what chance makes of it."""
    values = pd.DataFrame({"a": [0.99, 0.99], "b": [0.985, 0.985]})
    found = tell_apart(values, step=1 / 340)
    assert (found.apart, found.ties) == ((), ("b",))
    assert np.isnan(found.visible)
    random, studies, alarms = np.random.default_rng(0), 500, 0
    for _ in range(studies):
        noise = np.round(0.7 * random.normal(size=(3, 3)))  # in images
        alarms += bool(tell_apart(pd.DataFrame((333 + noise) / 340), step=1 / 340).apart)
    assert alarms / studies <= stats.binom(studies, 0.05).ppf(0.999) / studies
    same = tell_apart(pd.DataFrame({"a": [0.99] * 5, "b": [0.98] * 5}), step=1 / 340)
    assert same.apart == ("b",)  # more than three images, in every seed
    assert same.visible > 0.5 / 340


def test_the_difference_that_is_called_visible_is_seen_by_four_of_five_studies():
    random = np.random.default_rng(1)
    called, seen, studies = [], 0, 400
    for _ in range(studies):
        values = pd.DataFrame(random.normal(size=(5, 4)))
        called.append(tell_apart(values).visible)
    difference = np.mean(called)  # in units of the noise
    for _ in range(studies):
        values = pd.DataFrame(random.normal(size=(5, 4)))
        values[0] -= difference / 2
        values[1] += difference / 2
        found = tell_apart(values)
        seen += found.best == 1 and 0 in found.apart
    assert 0.74 <= seen / studies <= 0.86


def test_intervals_of_shares_end_where_shares_do(tmp_path):
    results = Results(tmp_path)
    results.add_seeds("a", {"name": "msvit", "scales": [1]}, [1.0, 0.999, 0.96], [1e-3] * 3)
    results.add_seeds("b", {"name": "msvit", "scales": [1, 3]}, [0.01, 0.0, 0.04], [1e-3] * 3)
    study = results.study()
    summary = summarize(study, "test_accuracy")
    assert summary.loc["a", "high"] == 1
    assert summary.loc["b", "low"] == 0
    for figure in (accuracy_energy(study), accuracy_over_axis(study, "model.scales")):
        low, high = figure.axes[0].get_ylim()
        assert 0 <= low < high <= 100
        for bars in figure.axes[0].containers:
            for lines in bars[2]:
                ends = np.concatenate([segment[:, 1] for segment in lines.get_segments()])
                assert ends.min() >= 0
                assert ends.max() <= 100


def test_the_error_of_finitely_many_test_images_is_wilsons():
    low, high = stats.binomtest(352, 360).proportion_ci(method="wilson")
    assert image_error(352 / 360, 360) == pytest.approx((high - low) / 2)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_interval_holds_the_mean_and_agrees_with_scipy(values):
    low, high = t_interval(values)
    mean, error = np.mean(values), stats.sem(values)
    assert low <= mean + 1e-12
    assert high >= mean - 1e-12
    if error > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
        assert (low, high) == pytest.approx(expected)


# Tables


def test_markdown_shows_mean_spread_and_units(scales):
    text = markdown(compare(scales.study()))
    assert "| energy by sop_spikformer (µJ/image) |" in text
    assert "| 97.93 ± 0.40 |" in line(text, "msvit scales=1 ")
    best = line(text, "msvit scales=1,3,5,7 ")
    assert "| **98.43** ± 0.15 |" in best
    assert best.endswith("| 0.112 | 12.5 | 3/3 |")
    assert "| **4.60** |" in line(text, "qkformer ")
    rows = [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| ")][2:]
    assert rows == GROUPS


def test_images_that_are_not_those_of_their_name_are_told(tmp_path):
    results = Results(tmp_path)
    for seed, digest in enumerate(("a" * 16, "b" * 16)):
        cell = make_cell({"name": "msvit", "scales": [1]}, seed, "cifar10")
        images = {"counts": {"train": [30] * 10, "test": [10] * 10}, "digest": digest}
        results.add(GROUPS[0], cell, make_record(cell, 0.9, 0.1, data=images))
    cell = make_cell({"name": "msvit", "scales": [1]}, 2, "cifar10")
    results.add(GROUPS[0], cell, make_record(cell, 0.9, 0.1))  # of an earlier version
    notes = " ".join(compare(results.study()).notes)
    assert notes.count("Not the published cifar10: 300 train and 100 test images") == 1
    assert f"not all cells have seen the same images of cifar10: digests {'a' * 16}, b" in (
        notes.lower()
    )


def test_nothing_is_said_of_an_order_that_no_test_was_made_for(tmp_path):
    results = Results(tmp_path)
    results.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.93, 0.94], [2e-3] * 2)
    results.add_seeds("b", {"name": "spikformer"}, [0.82], [1e-3])
    study = results.study()
    assert verdict(study).startswith("Too few seeds to say anything of the order")
    told = " ".join(answer(study, View()))
    assert "Mean test accuracy of a" in told
    assert "needs least" not in told
    assert "told apart" not in told


def test_an_energy_that_no_cell_has_leaves_the_default_one(scales):
    view = View(energy=EnergyChoice(("sdt",)))
    study = scales.study()
    text = markdown(compare(study, view))
    assert "energy by sop_spikformer (" in text
    assert "by the model sop_spikformer" in text
    assert "Of no cell: energy by sdt." in text
    (figure,) = FIGURES["energy"](study, view).values()
    assert "by sop_spikformer" in figure.axes[0].get_ylabel()


def test_the_summary_lists_what_was_asked_for(scales, capsys):
    drawn = Drawn(scales.study())
    folder = write_report(drawn, ("md", "tex"))
    (folder / "report.html").touch()  # of then
    print_summary(drawn, ("md",))
    shown = "".join(capsys.readouterr().out.splitlines()[-2:])
    assert "table.md" in shown
    assert "table.tex" not in shown
    assert "report.html" not in shown


def test_seeds_of_another_precision_are_named(tmp_path):
    results = Results(tmp_path)
    for seed, precision in enumerate(("fp32", "bf16 autocast over fp32")):
        cell = make_cell({"name": "msvit", "scales": [1]}, seed)
        results.add(GROUPS[0], cell, make_record(cell, 0.9, 0.1, precision=precision))
    notes = " ".join(compare(results.study()).notes)
    assert "different precisions: msvit scales=1 (bf16 autocast over fp32; fp32)" in notes


def test_a_table_says_what_it_was_computed_with(tmp_path):
    results = Results(tmp_path)
    known = {"processor": "Zen 5", "device": "cpu", "threads": 1, "torch": "2.14"}
    known |= {"spikingjelly": "2.0", "commit": "0123456789abcdef" * 2 + "01234567-dirty"}
    gpu = known | {"device": "H100", "commit": None}
    results.add("missing", make_cell({"name": "msvit", "scales": [3]}, 0), None)  # no whole numbers
    for seed, environment in enumerate((known, known, gpu)):
        cell = make_cell({"name": "msvit", "scales": [1]}, seed)
        results.add(GROUPS[0], cell, make_record(cell, 0.9, 0.1, environment=environment))
    text = markdown(compare(results.study()))
    assert (
        "Trained on Zen 5, 1 thread a cell, float32, torch 2.14, spikingjelly 2.0, "
        "commit 0123456789ab-dirty (2 cells); H100, float32, torch 2.14, spikingjelly 2.0 (1 cell)"
    ) in text


def test_a_table_says_how_many_workers_shared_a_batch(tmp_path):
    results, cell = Results(tmp_path), make_cell({"name": "msvit", "scales": [1]}, 0)
    known = {"processor": "Zen 5", "device": "cpu", "threads": 4}
    shared = {"count": 8, "machines": 2, "joined_by": "gloo"}
    record = make_record(cell, 0.9, 0.1, environment=known, workers=shared)
    results.add(GROUPS[0], cell, record)
    assert "4 threads a worker, 8 workers a cell" in markdown(compare(results.study()))
    assert "different numbers of workers" not in markdown(compare(results.study()))

    alone = make_cell({"name": "msvit", "scales": [1]}, 1)
    results.add(GROUPS[0], alone, make_record(alone, 0.9, 0.1, environment=known))
    text = markdown(compare(results.study()))
    assert (
        "Zen 5, 4 threads a worker, float32; 8 workers a cell (1 cell); 1 worker a cell (1 " in text
    )
    assert (
        "(training.sync_batchnorm is off), and are not of one recipe: msvit scales=1 (1; 8)" in text
    )


def test_workers_that_share_statistics_are_of_one_recipe(tmp_path):
    results = Results(tmp_path)
    for seed, count in enumerate((1, 8)):
        cell = make_cell({"name": "msvit", "scales": [1]}, seed)
        cell.training["sync_batchnorm"] = True
        shared = {"count": count, "machines": 1, "joined_by": "gloo"}
        results.add(GROUPS[0], cell, make_record(cell, 0.9, 0.1, workers=shared))
    assert "different numbers of workers" not in markdown(compare(results.study()))


@pytest.mark.parametrize(("accuracy", "named"), [(0.1, True), (0.131, True), (0.133, False)])
def test_a_network_that_guesses_is_named(tmp_path, accuracy, named):
    """Of ten classes and 360 images, two standard deviations above chance are 13.16 %."""
    results = Results(tmp_path)
    results.add_seeds("good", {"name": "msvit", "scales": [1]}, [0.9, 0.9], [0.4, 0.4])
    results.add_seeds("mute", {"name": "msvit", "scales": [3]}, [accuracy] * 2, [0.0, 0.0])
    notes = " ".join(compare(results.study()).notes)
    assert ("No better than chance" in notes) == named
    assert ("their other measures: mute." in notes) == named


def test_energy_unit_fits_the_whole_column(tmp_path):
    results = Results(tmp_path)
    results.add_seeds("small", {"name": "msvit", "scales": [1]}, [0.9, 0.9], [0.4, 0.4])
    results.add_seeds("large", {"name": "msvit", "scales": [1, 3]}, [0.9, 0.9], [16.65, 16.65])
    text = markdown(compare(results.study()))
    assert "energy by sop_spikformer (mJ/image)" in text
    assert "**0.400** " in line(text, "small")
    assert " 16.650 " in line(text, "large")


@pytest.mark.slow
def test_the_command_writes_csv_in_full_precision(scales, capsys):
    study = scales.folder / "studies/scales"
    assert main(["--grid", "scales", "--results", str(scales.folder)]) == 0
    out = capsys.readouterr().out
    assert "98.43 ± 0.15" in out
    assert str(study) in out
    assert "98.43" in (study / "table.md").read_text(encoding="utf-8")
    assert "98.43" in (study / "table.tex").read_text(encoding="utf-8")
    assert (study / "figures/accuracy_energy.pdf").stat().st_size > 5000
    with (study / "table.csv").open(newline="") as file:
        rows = {row["configuration"]: row for row in csv.DictReader(file)}
    row = rows["msvit scales=1"]
    values = 100 * np.array([0.975, 0.98, 0.983])
    assert float(row["accuracy_percent_mean"]) == pytest.approx(values.mean(), rel=1e-12)
    assert float(row["accuracy_percent_std"]) == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert float(row["energy_mj_mean"]) == pytest.approx((5.1 + 5.3 + 5.0) / 3e3)
    assert row["parameters"] == "112000"
    assert (row["seeds"], row["seeds_planned"]) == ("3", "3")
    assert not any("±" in value for r in rows.values() for value in r.values())


def test_latex_marks_best_and_second_and_keeps_the_spread_outside(scales):
    text = latex(compare(scales.study()))
    assert r"\textbf{98.43} $\pm$ 0.15 &" in text
    assert r"\underline{98.27} $\pm$ 0.15 &" in text
    assert text.count(r"\textbf") == 2  # accuracy and energy
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:scales}"):
        assert text.count(command) == 1
    columns = re.search(r"\\begin{tabular}{@{}(l\w+)@{}}", text)[1]
    rows = [row for row in text.splitlines() if row.endswith(r"\\")]
    assert {row.count("&") + 1 for row in rows} == {len(columns)}
    (comment,) = re.findall(r"(?<!\\)%.*", text.split("\n", 1)[1])
    assert comment == "%"  # the end of a line
    layout = "begin end centering raggedright footnotesize setlength tabcolsep belowcaptionskip "
    layout += "scriptsize resizebox ifdim width linewidth else fi"
    content = "caption label toprule midrule bottomrule smallskip par pm mu textbf underline"
    used = set(re.findall(r"\\([A-Za-z]+)", text.split("\n", 1)[1]))
    assert used <= {*layout.split(), *content.split()}


@given(st.text("abz09 &%$#_{}\\~^<>|±†µ×—-", max_size=12))
def test_latex_text_leaves_no_command_of_the_text(text):
    escaped = latex_text(text)
    known = r"\\(?:[&%$#_{}]|text(?:backslash|asciitilde|asciicircum){}|pm|dagger|mu|times)"
    rest = re.sub(known, "", escaped)
    assert not set(rest.replace("$^", "").replace("$", "")) & set("&%#_{}\\~^±†µ×—")


def has_booktabs() -> bool:
    find = shutil.which("kpsewhich")
    return (
        bool(find) and subprocess.run([find, "booktabs.sty"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not has_booktabs(), reason="needs pdflatex with booktabs")
@pytest.mark.parametrize("which", ["scales", "partial"])
def test_latex_compiles(which, tmp_path, request):
    table = latex(compare(request.getfixturevalue(which).study()))
    packages = "\\usepackage{booktabs,graphicx}"
    page = f"\\documentclass{{article}}{packages}\\begin{{document}}\n%s\\end{{document}}"
    (tmp_path / "paper.tex").write_text(page % table, encoding="utf-8")
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:]


def test_a_single_seed_never_shows_a_spread(partial):
    table = compare(partial.study())
    for text in (markdown(table), latex(table)):
        row = line(text, "msvit scales=1,3 ")
        assert "97.10 (one seed)" in row.replace("*", "").replace(r"\underline{97.10}", "97.10")
        assert "±" not in row
        assert r"\pm" not in row
    assert "1/3" in line(markdown(table), "msvit scales=1,3 ")
    assert pd.isna(table.numbers["accuracy_percent_std"][1])


def test_unfinished_configurations_stay_in_the_table(partial):
    text = markdown(compare(partial.study()))
    assert re.sub(r"[| ]+", " ", line(text, "msvit scales=1,3,5")).split()[2:] == [
        *("—" * 5),
        "0/3",
    ]
    assert "5 of 9 cells have no result (3 failed, 2 missing)" in text


def test_a_sentence_says_what_cannot_be_told_apart(scales, tmp_path):
    text = markdown(compare(scales.study()))
    sentence = line(text, "Cannot be told apart")
    assert "from the best, msvit scales=1,3,5,7: " in sentence
    assert "qkformer" in sentence
    assert "spikformer" not in sentence
    clear = Results(tmp_path / "clear")
    clear.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.90, 0.91, 0.90], [1e-3] * 3)
    clear.add_seeds("b", {"name": "spikformer"}, [0.97, 0.98, 0.98], [2e-3] * 3)
    assert "b has the highest accuracy, apart from every other" in markdown(compare(clear.study()))
    single = Results(tmp_path / "single")
    single.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.9], [1e-3])
    single.add_seeds("b", {"name": "spikformer"}, [0.97], [2e-3])
    assert "no spread is known" in markdown(compare(single.study()))


def cifar10(results: Results, parameters: list[int]) -> str:
    for number, count in enumerate(parameters):
        cell = make_cell({"name": "msvit_cifar10", "dim": 384 + number}, 0, data="cifar10")
        results.add(f"size {number}", cell, make_record(cell, 0.95, 0.9, parameters=count))
    return markdown(compare(results.study()))


def test_published_figures_stand_apart_and_only_beside_the_same_model(tmp_path, scales):
    text = cifar10(Results(tmp_path), [7_558_762, 7_336_810])
    assert "top-1† (%)" in text
    assert line(text, "size 0").rstrip("| ").endswith("96.53")
    assert line(text, "size 1").rstrip("| ").endswith("—")  # an ablation is not the paper's model
    assert "† published, not measured here. size 0: msvit-4-384 (secondary" in text
    assert "95.00" in line(text, "size 0")
    assert "†" not in markdown(compare(scales.study()))  # nobody published on digits


def test_published_energy_is_in_the_unit_of_its_column(tmp_path):
    results = Results(tmp_path)
    cell = make_cell({"name": "msvit_10_384"}, 0, data="imagenet")
    results.add("ours", cell, make_record(cell, 0.8, 0.5, parameters=17_690_000))
    text = markdown(compare(results.study()))
    assert "energy† (µJ/image)" in text
    assert line(text, "ours").rstrip("| ").endswith("80.09 | 16650")  # 16.65 mJ in the paper


# Figures


def text_of(figure) -> str:
    (axes,) = figure.axes[:1]
    return axes.get_title(loc="left")


def bars_of(axes) -> list[int]:
    """Numbers of directions in which each point has an error bar."""
    return [c.has_xerr + c.has_yerr for c in axes.containers]


def test_accuracy_against_energy_has_a_named_point_with_bars_per_configuration(scales):
    figure = accuracy_energy(scales.study())
    (axes,) = figure.axes
    assert axes.get_xlabel() == "energy per image (µJ, by sop_spikformer)"
    assert axes.get_ylabel() == "test accuracy (%)"
    assert bars_of(axes) == [2] * 6
    labels = [text for text in axes.texts if text.get_text()]
    assert sorted(text.get_text() for text in labels) == sorted(GROUPS)
    point = axes.containers[5].lines[0]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((4.6, 98.0666667))
    (front,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(front.get_ydata()[::2]) == pytest.approx([98.0666667, 98.1, 98.2666667, 98.4333333])
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_crowded_points_get_numbers_and_a_key(tmp_path):
    results = Results(tmp_path)
    for i in range(14):
        name = f"a rather long name of configuration {i}"
        model = {"name": "msvit", "dim": 48 + i}
        results.add_seeds(name, model, [0.97 + 1e-4 * i, 0.98], [1e-3, 1.001e-3 + 1e-6 * i])
    figure = accuracy_energy(results.study())
    (key,) = figure.legends
    assert key.get_texts()[13].get_text() == "14  a rather long name of configuration 13"
    numbers = {text.get_text() for text in figure.axes[0].texts} - {""}
    assert numbers == {str(i) for i in range(1, 15)}
    assert figure.get_figwidth() >= 6
    # The title may be as wide as the axes and more: the key begins below it.
    assert key.get_window_extent().y1 <= figure.axes[0].get_window_extent().y1 + 1
    assert key.get_window_extent().y0 >= 0


def test_accuracy_over_scales_counts_them_and_names_baselines(scales):
    figure = accuracy_over_axis(scales.study(), "model.scales")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "number of scales"
    assert [t.get_text() for t in axes.get_xticklabels()][:2] == ["1\n(1)", "2\n(1, 3)"]
    assert [c.lines[0].get_xdata()[0] for c in axes.containers] == [1, 2, 3, 4]
    assert bars_of(axes) == [1] * 4
    assert {text.get_text() for text in axes.texts} == {"msvit", "spikformer", "qkformer"}
    levels = [li.get_ydata()[0] for li in axes.lines if list(li.get_xdata()) == [0, 1]]
    assert levels == pytest.approx([96.1, 98.0666667])
    assert "95% t interval over 3 seeds" in text_of(figure)


def test_other_axes_get_the_same_figure(tmp_path):
    results = Results(tmp_path, "timesteps", ("model.timesteps",))
    for timesteps, accuracy in ((4, 0.98), (1, 0.96), (2, 0.97)):
        model = {"name": "msvit", "scales": [1, 3]}
        group = f"msvit timesteps={timesteps}"
        results.add_seeds(group, model, [accuracy], [timesteps * 1e-3], timesteps=timesteps)
    figure = accuracy_over_axis(results.study(), "model.timesteps")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "timesteps"
    (curve,) = [li for li in axes.lines if len(li.get_xdata()) == 3]
    assert list(curve.get_xdata()) == [1, 2, 4]
    assert list(curve.get_ydata()) == pytest.approx([96, 97, 98])
    assert bars_of(axes) == [0, 0, 0]
    assert "one seed each: no spread is known" in text_of(figure)


def test_null_is_a_value_of_an_axis(tmp_path):
    axes = ("training.compile", "model.surrogate_alpha")
    results = Results(tmp_path, "unset", axes)
    for mode in ({}, {"compile": "default"}):  # of an earlier version; null was not named
        for alpha in (None, 2.0):
            cell = make_cell({"name": "msvit", "surrogate_alpha": alpha}, 0)
            cell = replace(cell, training={**cell.training, **mode})
            results.add(f"msvit {mode} {alpha}", cell, make_record(cell, 0.97, 1e-3))
    cell = make_cell({"name": "msvit", "surrogate_alpha": None}, 1)
    results.add("msvit failed", cell, "loss is nan")
    study = results.study()
    assert list(study.cells[axes[0]]) == ["none", "none", "default", "default", "none"]
    assert list(study.cells[axes[1]]) == ["none", 2.0, "none", 2.0, "none"]
    for axis, values in zip(axes, (["none", "default"], ["none", "2.0"]), strict=True):
        (drawn,) = accuracy_over_axis(study, axis).axes
        assert [t.get_text() for t in drawn.get_xticklabels()] == values
        assert len(drawn.texts) == 2  # a line for each value of the other axis


def test_an_option_that_is_not_written_down_is_at_its_default(tmp_path):
    axes = ("training.cooldown_epochs", "training.rand_augment")
    results = Results(tmp_path, "later", axes)
    for own in ({}, {"cooldown_epochs": 10, "rand_augment": "rand-m9"}):
        cell = make_cell({"name": "msvit"}, 0)
        cell = replace(cell, training={**cell.training, **own})
        results.add(f"msvit {own}", cell, make_record(cell, 0.97, 1e-3))
    study = results.study()
    assert list(study.cells[axes[0]]) == [0, 10]
    assert list(study.cells[axes[1]]) == ["none", "rand-m9"]


def test_two_axes_give_one_line_per_value_of_the_other(tmp_path):
    results = Results(tmp_path, "both", ("model.scales", "model.timesteps"))
    for timesteps in (1, 2):
        for scales in ([1], [1, 3], [1, 3, 5]):
            group = f"msvit scales={len(scales)} timesteps={timesteps}"
            model = {"name": "msvit", "scales": scales}
            results.add_seeds(group, model, [0.97], [1e-3], timesteps=timesteps)
    axes = accuracy_over_axis(results.study(), "model.scales").axes[0]
    assert {t.get_text() for t in axes.texts} == {"msvit timesteps=1", "msvit timesteps=2"}
    axes = accuracy_over_axis(results.study(), "model.timesteps").axes[0]
    assert len(axes.texts) == 3


def test_models_crossed_with_neurons_are_a_line_per_neuron(tmp_path):
    results = Results(tmp_path, "crossed", ("model.name", "model.neuron"))
    options = {"msvit": {"scales": [1, 3]}, "spikformer": {"attn_scale": 0.125}}
    for name, own in options.items():
        for neuron in ("lif", "plif"):
            model = {"name": name, "neuron": neuron, **own}
            results.add_seeds(f"{name} neuron={neuron}", model, [0.96, 0.97], [1e-3] * 2)
    axes = accuracy_over_axis(results.study(), "model.name").axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["msvit", "spikformer"]
    assert {t.get_text() for t in axes.texts} == {"neuron=lif", "neuron=plif"}
    axes = accuracy_over_axis(results.study(), "model.neuron").axes[0]
    assert {t.get_text() for t in axes.texts} == {"msvit", "spikformer"}


def test_firing_map_shows_mean_rates_in_network_order(scales):
    study = scales.study()
    maps = firing_maps(study)
    assert [name.partition("_")[2] for name in maps] == [
        *("msvit-scales-1", "msvit-scales-1-3", "msvit-scales-1-3-5", "msvit-scales-1-3-5-7"),
        *("spikformer", "qkformer"),
    ]
    axes, colorbar = maps["05_spikformer"].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == len(LAYERS)
    assert names[3:7] == ["stage 1, self-attention, query + key", "mask", "stage 1, MLP 1", "MLP 2"]
    assert axes.yaxis_inverted()  # the first layer stands on top
    shown = axes.images[0].get_array()
    rates = study.firing[(study.firing["group"] == "spikformer") & (study.firing["timestep"] == 2)]
    last = rates[rates["layer"] == LAYERS[-1]]["rate"]
    assert shown[len(LAYERS) - 1, 2] == pytest.approx(last.mean())
    (limits,) = {figure.axes[0].images[0].get_clim() for figure in maps.values()}
    highest = study.firing.groupby(["group", "layer", "timestep"])["rate"].mean().max()
    assert limits == pytest.approx((0, highest))
    assert colorbar.get_ylabel() == "spikes per neuron and time step"
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "0",
        "1",
        "2",
        "3",
    ]  # as in the frames


def test_few_layers_share_one_firing_figure(tmp_path):
    results = Results(tmp_path)
    for scales in SCALES[:2]:
        cell = make_cell({"name": "msvit", "scales": scales}, 0)
        results.add(str(scales), cell, make_record(cell, 0.9, 1e-3, layers=6))
    (figure,) = firing_maps(results.study()).values()
    assert len(figure.axes) == 3  # two maps and the colour scale
    assert "one seed" in text_of(figure)


def test_figures_of_unfinished_studies_say_so(partial, tmp_path):
    figure = accuracy_energy(partial.study())
    assert "5 of 9 cells are missing" in text_of(figure)
    assert "1 to 3 seeds (hollow: one seed)" in text_of(figure)
    filled, hollow = (c.lines[0].get_markerfacecolor() for c in figure.axes[0].containers)
    assert hollow == "white" != filled
    empty = Results(tmp_path / "empty")
    empty.add("a", make_cell({"name": "msvit", "scales": [1]}, 0), None)
    assert draw_figures(empty.study()) == {}


@pytest.mark.slow
def test_letters_that_no_font_has_are_one_line_and_no_warning(tmp_path, caplog, recwarn):
    results = Results(tmp_path)
    group = "odd \U0010fffd\U0010fffc"
    results.add_seeds(group, {"name": "msvit", "scales": [1]}, [0.9, 0.91], [1e-3] * 2)
    paths = save_figures(results.study(), tmp_path / "figures")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1, lines
    assert "no font here has the letters \U0010fffc\U0010fffd" in lines[0]
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    assert all(path.exists() for path in paths)


@pytest.mark.slow
def test_a_dollar_in_a_label_is_a_dollar(tmp_path):
    results = Results(tmp_path)
    for number, group in enumerate((r"cost $\frac$ of it", "a$b_{$c", "$x^2$")):
        model = {"name": "msvit", "scales": [1] * (number + 1)}
        results.add_seeds(group, model, [0.9 + 0.01 * number, 0.95], [1e-3 * (number + 1)] * 2)
    study = results.study()
    assert len(save_figures(study, tmp_path / "figures")) == 8
    assert "$x^2$" in {t.get_text() for t in accuracy_energy(study).axes[0].texts}


def test_labels_in_any_script_tell_files_apart(tmp_path):
    results = Results(tmp_path)
    for number, group in enumerate(("多尺度", "一尺度")):
        results.add_seeds(group, {"name": "msvit", "scales": [1] * (number + 1)}, [0.9], [1e-3])
    assert list(firing_maps(results.study())) == ["01_多尺度", "02_一尺度"]


def test_pareto_front_drops_what_is_dearer_and_no_better():
    cost = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0, "d": 1.0, "e": 4.0})
    value = pd.Series({"a": 5.0, "b": 5.0, "c": 7.0, "d": 4.0, "e": 6.0})
    assert pareto_front(cost, value) == ["a", "c"]


@pytest.mark.slow
def test_saved_figures_are_images_and_old_ones_go_away(partial, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("firing_07_gone.png", "notes.txt"):
        (folder / name).write_text("old")
    paths = save_figures(partial.study(), folder)
    assert {path.name for path in paths} == {
        *("accuracy_energy.png", "accuracy_scales.png", "energy_scales.png"),
        *("layers.png", "learning.png"),
        *("firing_01_msvit-scales-1.png", "firing_02_msvit-scales-1-3.png"),
    }
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert not (folder / "firing_07_gone.png").exists()
    assert (folder / "notes.txt").exists()


# The command


def test_the_summary_names_failed_and_missing_cells(partial, capsys):
    print_summary(Drawn(partial.study()))
    out = capsys.readouterr().out
    failed = re.findall(r"failed: msvit scales=1,3,5 seed (\d): Tr.*\(log: (.*)\)", out)
    assert [seed for seed, _ in failed] == ["0", "1", "2"]
    assert all(Path(log).exists() for _, log in failed)
    assert "missing: msvit scales=1,3, seeds: 1, 2" in out


@pytest.mark.slow
def test_the_script_runs_from_anywhere_without_torch(tiny, tmp_path):
    script = ROOT / "analysis/report.py"
    code = (
        "import runpy, sys; sys.argv[0] = sys.argv[1]; del sys.argv[1]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    arguments = [sys.executable, str(script), "--grid", "scales", "--results", str(tiny.folder)]
    run = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "97.00 (one seed)" in run.stdout
    light = [sys.executable, "-c", code, str(script), "--grid", "scals"]
    light += ["--results", str(tiny.folder)]
    run = subprocess.run(light, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "did you mean 'scales'?" in run.stderr
    assert "Assertion" not in run.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such results folder"),
        (lambda folder: shutil.rmtree(folder / "studies"), "no study in this folder yet"),
        (lambda folder: (folder / "studies/scales").rename(folder / "studies/scale"), "'scale'?"),
        (lambda folder: (folder / "studies/scales/study.json").write_text("{"), "study.json"),
        (
            lambda folder: (folder / "studies/scales/figures").write_text("in the way"),
            "figures: cannot be written",
        ),
    ],
)
def test_what_cannot_be_read_or_written_ends_in_one_line(tiny, capsys, damage, message):
    damage(tiny.folder)
    assert main(["--grid", "scales", "--results", str(tiny.folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_study_is_also_found_by_its_grid_file(tiny, capsys):
    assert main(["--grid", "grids/scales.yaml", "--results", str(tiny.folder)]) == 0
    with pytest.raises(RecordError, match="scales"):
        collect(tiny.folder, "scale")
