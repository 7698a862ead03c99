"""Tables, frames and figures of a study beside its main comparison."""

from __future__ import annotations

import io
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.drawn import Drawn
from analysis.figures import FIGURES, difference_forest, over_axis
from analysis.formats import latex, latex_text, markdown, narrowed, terminal, write_table
from analysis.frames import write_frames
from analysis.layers import in_reading_order, layer_names, layers, outline, parts
from analysis.report import ALL, main, write_report
from analysis.series import joined
from analysis.study_tables import study_tables
from analysis.view import USUAL, View
from msvit.records.energy_choice import EnergyChoice
from msvit.records.schema import RecordError
from tests.results_folder import Results, fill_scales, make_cell, make_record
from tests.test_analysis import has_booktabs
from tests.test_statistics import deltas


@pytest.fixture(scope="module")
def scales(tmp_path_factory) -> Results:
    """Six configurations, three seeds, all finished. Read only."""
    return fill_scales(Results(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Results:
    """The eight configurations of a 2×2×2 grid, of which the first axis matters."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("deltas")
    return deltas(folder, lambda a, b, c, seed: 0.9 + 0.02 * a + 0.002 * random.normal())


def row(text: str, start: str) -> list[str]:
    """The fields of the only row of Markdown that starts so."""
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [field.strip() for field in found.strip("| ").split(" | ")]


# Layers in words

PATHS = {
    "embeddings.0.units.1": "embedding 1, convolution 2",
    "stages.0.0.attention.branches.wide.scale3": "stage 1, multi-scale attention, branch 3",
    "stages.0.0.attention.branches.scale1": "stage 1, multi-scale attention, branch 1",
    "stages.0.0.attention.attn_neuron": "stage 1, multi-scale attention, mask",
    "stages.0.0.mlp.fc1": "stage 1, MLP 1",
    "stages.1.0.attention.branches.scale1": "stage 2, token attention, branch 1",
    "stages.2.0.attention.q": "stage 3, block 1, self-attention, query",
    "stages.2.1.attention.attend.first": "stage 3, block 2, self-attention, query × key",
    "stages.2.1.attention.qkv": "stage 3, block 2, self-attention, query + key + value",
    "head": "head",
}


def test_layers_are_named_in_the_words_of_the_paper():
    assert {path: name.words for path, name in layer_names(PATHS).items()} == PATHS
    other = ["stem.0", "blocks.0.mlp.fc2", "encoder.patch_embed.proj", "something.new_here.2"]
    assert [name.words for name in layer_names(other).values()] == [
        *("stem, convolution 1", "block 1, MLP 2", "patch embedding", "something new here 2")
    ]


def test_an_outline_names_each_part_once():
    names = list(layer_names(PATHS).values())
    assert outline(names)[1:5] == [
        "stage 1, multi-scale attention, branch 3",
        *("branch 1", "mask", "stage 1, MLP 1"),
    ]


def test_parts_add_up_to_the_energy_of_a_configuration(scales):
    study = scales.study()
    energy = study.finished.groupby("group")["energy_mj"].mean()
    for found in (layers(study), parts(study)):
        total = found.groupby("group")
        assert total["energy_mj"].sum()[energy.index].tolist() == pytest.approx(energy.tolist())
        assert total["share"].sum().tolist() == pytest.approx([1] * 6)
    rate = parts(study)["rate"]
    assert rate.between(0.03, 0.45).all()


# Tables


def test_differences_to_a_baseline_say_what_they_are_and_what_they_need(scales):
    table = study_tables(scales.study(), View("qkformer"))["differences"]
    text = markdown(table)
    assert "Differences to qkformer, paired by seed." in text
    fields = row(text, "spikformer")
    assert re.fullmatch(r"\*\*−1\.97\*\*", fields[1])
    assert re.fullmatch(r"\[−\d\.\d\d, −\d\.\d\d\]", fields[2])
    assert fields[-1] == "3"
    assert "Less accurate than qkformer: spikformer." in text
    assert "Dunnett's test" in text
    assert re.search(r"It would take, for .* points: about \d+ seeds", text)
    numbers = table.numbers.set_index("configuration")
    assert numbers.loc["spikformer", "test_accuracy_difference"] == pytest.approx(
        -0.0196667, rel=1e-4
    )
    assert numbers.loc["spikformer", "test_accuracy_high"] < 0


def test_too_few_seeds_are_a_sentence(tmp_path):
    results = Results(tmp_path)
    results.add_seeds("a", {"name": "msvit", "scales": [1]}, [0.9], [1e-3])
    results.add_seeds("b", {"name": "spikformer"}, [0.97], [2e-3])
    study = results.study()
    text = markdown(study_tables(study, View("a"))["differences"])
    assert "Too few seeds to say anything" in text
    assert row(text, "b")[1:5] == ["+7.00", "—", "—", "—"]
    assert difference_forest(study, View("a")) is not None
    with pytest.raises(RecordError, match="did you mean 'a'"):
        study_tables(study, View("A"))


def test_effects_of_a_grid_have_a_table_and_others_have_none(grid, scales):
    text = markdown(study_tables(grid.study())["effects"])
    assert row(text, "scales 1 → 1,3")[1].startswith("**+")
    assert row(text, "scales 1,3 × attn threshold 1")[1].startswith(("+", "−"))
    assert "effects" not in study_tables(scales.study())


def test_every_run_is_in_the_table_of_seeds(tmp_path):
    results = Results(tmp_path)
    cell = make_cell({"name": "msvit", "scales": [1]}, 0)
    results.add("a", cell, make_record(cell, 0.97, 1e-3))
    results.add("a", make_cell({"name": "msvit", "scales": [1]}, 1), "loss is nan")
    results.add("a", make_cell({"name": "msvit", "scales": [1]}, 2), None)
    table = study_tables(results.study())["seeds"]
    states = [entries[-1].text for entries in table.rows]
    assert states == ["finished", "failed", "missing"]
    assert list(table.numbers["status"]) == states


def test_published_results_stand_below_a_rule_and_are_marked(tmp_path, scales):
    results = Results(tmp_path)
    cell = make_cell({"name": "msvit_10_384"}, 0, data="imagenet")
    results.add("ours", cell, make_record(cell, 0.8, 14.0, parameters=17_690_000))
    study = results.study()
    table = study_tables(study)["published"]
    assert table.blocks == (1,)
    marked = [entries[0].text.endswith("†") for entries in table.rows]
    assert marked == [False] + [True] * (len(marked) - 1)
    assert list(table.numbers["measured"]) == [not mark for mark in marked]
    coupled = table.numbers.set_index("model")["coupled_batches"]
    assert coupled["msvit-10-384"] == coupled["qkformer-10-512"] == "yes"
    assert coupled["ours"] == coupled["spikformer-8-384"] == "no"
    figure = FIGURES["accuracy_energy"](study, USUAL)
    assert "†: published" in figure.axes[0].get_title(loc="left")
    assert "published" not in study_tables(scales.study())


@pytest.mark.slow
@pytest.mark.skipif(not has_booktabs(), reason="needs pdflatex with booktabs")
def test_all_tables_fit_a_page_of_one_and_of_two_columns(scales, grid, tmp_path):
    cell = make_cell({"name": "msvit_10_384"}, 0, data="imagenet")
    ours = Results(tmp_path / "results")
    ours.add("ours", cell, make_record(cell, 0.8, 14.0, parameters=17_690_000))
    body = []
    for study, baseline in ((scales, "qkformer"), (grid, None), (ours, None)):
        for stem, table in study_tables(study.study(), View(baseline)).items():
            name = f"{len(body)}{stem}"
            write_table(table, tmp_path, name, ["tex"])
            body += [f"\\input{{{name}}}", f"\\input{{{name}_column}}", "\\clearpage"]
    page = (
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}"
        "\\begin{document}\n%s\n\\end{document}"
    )
    (tmp_path / "paper.tex").write_text(page % "\n".join(body), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout
    assert "Float too large" not in run.stdout


def test_long_tables_go_on_in_another_float(scales):
    table = study_tables(scales.study())["layers"]
    text = latex(table)
    floats = text.count(r"\begin{table*}")
    assert floats == text.count(r"\end{table*}") == text.count("Continued.") + 1 > 1
    assert text.count(r"\label") == 1
    shown = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(shown) == len(table.rows) + 2 * floats  # each has its two rows of headings
    assert set(narrowed(table).headers) < set(table.headers)


# Frames and figures


def test_frames_are_parquet_that_pandas_reads(scales, tmp_path):
    study = scales.study()
    paths = write_frames(study, tmp_path)
    assert {path.stem for path in paths} == {
        *("cells", "history", "firing", "operations", "layers")
    }
    cells = pd.read_parquet(tmp_path / "cells.parquet")
    assert cells["test_accuracy"].tolist() == study.cells["test_accuracy"].tolist()
    assert cells["model.scales"][3].tolist() == [1, 3]
    firing = pd.read_parquet(tmp_path / "firing.parquet")
    pd.testing.assert_frame_equal(firing, study.firing)


def test_options_of_several_types_become_text(tmp_path):
    results = Results(tmp_path, "mixed", ("model.scales",))
    for scales in ([1, 3], "none"):
        cell = make_cell({"name": "msvit", "scales": scales}, 0)
        results.add(str(scales), cell, make_record(cell, 0.9, 1e-3, layers=2))
    write_frames(results.study(), tmp_path)
    assert pd.read_parquet(tmp_path / "cells.parquet")["model.scales"].tolist() == ["1,3", "none"]


def test_energy_over_an_axis_is_in_its_unit(scales):
    (axes,) = over_axis(scales.study(), "model.scales", "energy_mj").axes
    assert axes.get_ylabel() == "energy per image (µJ, by sop_spikformer)"
    means = [container.lines[0].get_ydata()[0] for container in axes.containers]
    assert means == pytest.approx([5.13, 6.0, 6.87, 7.73], abs=0.01)


def test_forests_have_a_filled_point_where_something_is_told_apart(scales, grid):
    figure = difference_forest(scales.study(), View("qkformer"))
    accuracy, energy = figure.axes
    assert [t.get_text() for t in accuracy.get_yticklabels()][-1] == "spikformer"
    faces = [container.lines[0].get_markerfacecolor() for container in accuracy.containers]
    assert faces == ["white"] * 4 + ["#0072B2"]
    assert len(energy.containers) == 5
    effects = FIGURES["effects"](grid.study(), USUAL)
    assert len(effects.axes[0].get_yticklabels()) == 6
    assert FIGURES["effects"](scales.study(), USUAL) is None


def test_learning_curves_have_a_panel_per_configuration(scales):
    figure = FIGURES["learning"](scales.study(), USUAL)
    assert [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes][4:] == [
        *("spikformer", "qkformer")
    ]
    band = figure.axes[0].collections[0]
    assert band.get_paths()[0].get_extents().ymax <= 100
    assert figure.axes[0].get_ylim()[1] <= 100  # no axis of what cannot be


def test_bars_of_energy_are_as_long_as_the_energy(scales):
    (axes,) = FIGURES["layers"](scales.study(), USUAL).axes
    ends: dict[float, float] = {}
    for patch in axes.patches:
        height = patch.get_y() + patch.get_height() / 2
        ends[round(height)] = max(ends.get(round(height), 0), patch.get_x() + patch.get_width())
    assert [ends[place] for place in range(6)] == pytest.approx(
        [5.13, 6.0, 6.87, 7.73, 10.17, 4.6], abs=0.01
    )


@pytest.fixture
def models():
    """Three energy models that tell of every record."""
    return EnergyChoice(("sop_spikformer", "exact_synops", "lemaire"))


@pytest.fixture
def counted(tmp_path) -> Results:
    """Two configurations of two seeds whose rows have all that energy models need."""
    results = Results(tmp_path, "counted")
    for scales in ([1], [1, 3]):
        for seed in (0, 1):
            cell = make_cell({"name": "msvit", "scales": scales}, seed)
            record = make_record(cell, 0.9, 1e-3, layers=4)
            synops = 1e4 * (seed + len(scales))
            record["operations"] = [counted_row(row, synops) for row in record["operations"]]
            results.add(str(scales), cell, record)
    return results


def counted_row(row: dict, synops: float) -> dict:
    """A convolution of which everything is known."""
    known = {"steps": 4, "synapses": 1e5, "synops": synops, "active_synops": synops}
    known |= {"inputs": 1e3, "active_inputs": 2e2, "input_peak": 1.0, "outputs": 2e3}
    known |= {"additions": 2e3, "weights": 400, "zero_weights": 0, "biases": 16}
    return row | known | {"kernel": [3, 3], "stride": 1, "fan_out": 16}


def test_layers_add_up_under_every_model_that_was_asked_for(counted, models):
    study, names = counted.study(), models.measures
    total = layers(study, names).groupby("group")[list(names)].sum()
    means = study.finished.groupby("group")[list(names)].mean()
    pd.testing.assert_frame_equal(total, means, check_names=False)
    text = markdown(study_tables(study, View(energy=models))["layers"])
    assert "energy by lemaire (" in text
    drawn = FIGURES["layers"](study, View(energy=models))
    assert len([axes for axes in drawn.axes if axes.patches]) == len(names)


def test_energies_have_one_unit_in_all_tables(counted, models):
    tables = study_tables(counted.study(), View("[1]", models))
    headings = [h for name in tables for h in tables[name].columns if h.startswith("energy")]
    assert len(headings) == 4 * len(models.models)
    assert len({heading.rsplit("(", 1)[1] for heading in headings}) == 1


def test_every_table_names_constants_of_ones_own(counted):
    own = EnergyChoice(("exact_synops",), ("exact_synops.ac = 90",))
    tables = study_tables(counted.study(), View("[1]", own))
    assert tables.keys() >= {"table", "differences", "layers", "seeds"}
    for name, table in tables.items():
        said = " ".join(table.notes).count("Constants of our own choice: exact_synops.ac = 90.")
        assert said == 1, name
    usual = study_tables(counted.study(), View("[1]"))
    assert not any("of our own" in note for table in usual.values() for note in table.notes)


def test_energy_models_stand_beside_each_other_and_their_ratios_to_a_baseline(counted, scales):
    assert FIGURES["models"](scales.study(), USUAL) is None  # of earlier versions: one model
    study = counted.study()
    (axes,) = FIGURES["models"](study, USUAL).axes
    assert axes.get_xscale() == "log"
    shown = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert "quantised_twin" not in shown
    for name in ("exact_synops", "lemaire", "memory_aware"):
        means = study.finished.groupby("group", sort=False)[f"energy_mj:{name}"].mean()
        unit = shown[name][0] / means.iloc[0]
        assert unit in (1, pytest.approx(1e3), pytest.approx(1e6))
        assert shown[name] == pytest.approx((unit * means).tolist())
    looks = {(line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(shown)  # told apart in grey
    _, ratios = FIGURES["models"](study, View("[1]")).axes
    found = {line.get_label(): list(line.get_xdata()) for line in ratios.lines}
    by_seed = np.sqrt((2 / 1) * (3 / 2))  # the geometric mean
    assert found["exact_synops"] == pytest.approx([1, by_seed])


def test_branches_of_an_attention_stand_by_their_size():
    attention = "stages.0.0.attention.branches"
    paths = ["patch_embed.proj", f"{attention}.wide.scale5", f"{attention}.wide.scale3"]
    paths += [f"{attention}.scale1", f"{attention}.k", "stages.0.1.attention.branches.scale1"]
    shown = in_reading_order(paths)
    assert shown == [paths[0], paths[3], paths[2], paths[1], *paths[4:]]


def test_lines_join_what_lies_along_an_ordered_axis_only(scales, grid):
    one, two, three, four, *others = scales.study().groups
    runs = joined(scales.study(), [one, two, three, four, *others])
    assert runs == [[one, two, three, four], *([other] for other in others)]
    assert joined(scales.study(), [two, one]) == [[two], [one]]


def test_tables_of_many_energies_are_parted_where_they_are_too_wide(counted):
    every = EnergyChoice(("sop_spikformer", "spikingformer_code", "exact_synops", "lemaire"))
    table = study_tables(counted.study(), View("[1]", every))["differences"]
    for width in (60, 80, 120):
        with (shown := Console(width=width, file=io.StringIO())).capture() as caught:
            shown.print(terminal(table))
        text = caught.get()
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        words = text.split()
        for header, fields in table.columns.items():
            assert words.count(header.split()[-1]) >= 1
            for word in f"{header} {fields[0].text} {fields[0].detail}".split():
                assert word in words, (width, header)
    floats = latex(table, wide=False).split(r"\end{table}")[:-1]
    assert len(floats) > 1
    assert [text.count(r"\label") for text in floats] == [1] + [0] * (len(floats) - 1)
    assert all("\n[1, 3] & " in text for text in floats)  # each with the names of its rows
    together = "".join(floats)
    for model in every.models:
        assert together.count(latex_text(f"energy by {model}")) == 1


def test_a_long_baseline_leaves_both_axes_their_names(tmp_path):
    results, name = Results(tmp_path), "msvit scales=1 attn_threshold=0.5 widths=0.25,0.5,1.0"
    for label, scales in ((name, [1]), ("other", [1, 3])):
        cell = make_cell({"name": "msvit", "scales": scales}, 0)
        record = make_record(cell, 0.9, 1e-3, layers=4)
        record["operations"] = [counted_row(row, 1e4) for row in record["operations"]]
        results.add(label, cell, record)
    figure = FIGURES["models"](results.study(), View(name))
    figure.draw_without_rendering()
    left, right = (axes.xaxis.label.get_window_extent() for axes in figure.axes)
    assert left.x1 < right.x0
    assert right.x1 <= figure.bbox.x1


def test_figures_show_the_energy_that_was_asked_for(counted, models):
    study, view = counted.study(), View("[1]", EnergyChoice(("lemaire",)))
    for name in ("accuracy_energy", "differences", "layers"):
        labels = [a.get_xlabel() for a in FIGURES[name](study, view).axes]
        assert any("lemaire" in label for label in labels), name
    (axes,) = FIGURES["energy"](study, view)["scales"].axes
    assert "lemaire" in axes.get_ylabel()


# The command


def test_a_report_writes_what_is_asked_for_where_it_is_asked_for(scales, tmp_path, capsys):
    asked = ["--grid", "scales", "--results", str(scales.folder), "--out", str(tmp_path / "out")]
    assert main([*asked, "--baseline", "qkformer", "--format", "csv,parquet"]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"table.csv", "differences.csv", "layers.csv", "seeds.csv", "frames"}
    assert "Differences to qkformer" in capsys.readouterr().out
    assert main([*asked, "--format", "cvs"]) == 2
    assert "did you mean 'csv'?" in capsys.readouterr().err
    assert main([*asked, "--baseline", "qkforme"]) == 2
    assert "did you mean 'qkformer'?" in capsys.readouterr().err


def test_tables_of_an_earlier_baseline_do_not_stay(scales):
    tables = [name for name in ALL if name not in ("figures", "parquet")]
    folder = write_report(Drawn(scales.study(), View("qkformer")), tables)
    assert (folder / "differences.md").exists()
    write_report(Drawn(scales.study()), tables)
    assert not list(folder.glob("differences*"))
    assert (folder / "table.md").exists()
