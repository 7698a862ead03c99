"""``python -m msvit.metrics``, counting again, and what published energies imply."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from analysis import published_energy
from msvit.cells import resolve_cell
from msvit.metrics import measure
from msvit.metrics.__main__ import main
from msvit.metrics.assumed import assume, assumed_operations
from msvit.metrics.costs import measured_costs
from msvit.metrics.sources import Network, network_of
from msvit.records.energy import ENERGY_MODELS, sop_spikformer
from msvit.records.energy_by_row import energy_by_row
from msvit.records.energy_constants import use_constants
from msvit.records.schema import Operations, lacking
from msvit.records.store import cell_folder, read_record, write_record
from msvit.training import train_cell
from msvit.training.remeasure import lacks_counts, remeasured
from studies.remeasure import remeasure
from studies.run import main as run
from tests.image_sets import class_folders, pixels
from tests.small import fire, small_input, small_model
from tests.test_training import tiny_cell


@pytest.fixture(autouse=True)
def shipped_constants():
    yield
    use_constants(None)


RATES = (0.2, 0.4, 0.6, 0.3, 0.1)
CELL = tiny_cell(precision="fp32")
OLD = ("layer", "kind", "input", "dense_macs", "input_rate", "macs", "acs")


def as_an_earlier_version(record):
    rows = [row for row in record["operations"] if row["kind"] != "neuron"]
    return {**record, "operations": [{key: row[key] for key in OLD} for row in rows]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    record = train_cell(CELL, cell_folder(results, CELL.id))
    write_record(results, record)
    return results, read_record(results, CELL.id)


@pytest.fixture
def results(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "results")
    return tmp_path / "results"


class OneCell:
    """As much of a study as counting again asks of it."""

    class _Entry:
        cell, group = CELL, "tiny"

    cells = (_Entry,)


def test_counting_again_adds_what_an_earlier_version_lacked(finished, results, capsys):
    record = finished[1]
    old = as_an_earlier_version(record)
    assert lacks_counts(old)
    assert not lacks_counts(record)
    write_record(results, old)
    assert remeasure(OneCell, results, None) == 0
    assert "1 of 1 records counted again" in capsys.readouterr().out
    again = read_record(results, CELL.id)
    assert again == record
    untouched = (cell_folder(results, CELL.id) / "record.json").stat().st_mtime_ns
    assert remeasure(OneCell, results, None) == 0
    assert (cell_folder(results, CELL.id) / "record.json").stat().st_mtime_ns == untouched


def test_images_are_counted_as_the_recipe_scores_them(tmp_path):
    images = tmp_path / "images"
    for split, count in (("train", 4), ("test", 2)):
        labels = np.repeat(np.arange(2), count)
        class_folders(images, pixels(len(labels), 16, count), labels, split)
    spec = {
        "model": {**CELL.model, "in_channels": 3, "num_classes": 2},
        "data": {"name": "image_folder", "image_size": 8, "num_classes": 2},
        "training": {"epochs": 1, "batch_size": 4, "precision": "fp32", "crop_pct": 0.5},
    }
    cell = resolve_cell(spec, "test")
    results = tmp_path / "results"
    record = train_cell(cell, cell_folder(results, cell.id), data_dir=images)
    assert remeasured(results, as_an_earlier_version(record), images) == record
    table = tmp_path / "costs.csv"
    arguments = [str(cell_folder(results, cell.id)), "--data", "image_folder", "--csv", str(table)]
    assert main([*arguments, "--data-dir", str(images)]) == 0
    shown = [float(row["synops"] or 0) for row in csv.DictReader(table.open(encoding="utf-8"))]
    counted = [row.get("synops") or 0 for row in record["operations"]]
    assert shown == pytest.approx(counted)
    assert sum(counted) > 0


@pytest.mark.parametrize("lost", ["bias_additions", "mean_macs", "votes", "other_rate", "states"])
def test_counting_again_adds_the_one_count_that_is_lacking(finished, results, lost):
    record = finished[1]
    rows = [{k: v for k, v in row.items() if k != lost} for row in record["operations"]]
    assert rows != record["operations"]
    old = {**record, "operations": rows}
    assert lacks_counts(old)
    assert remeasured(results, old) == record


def test_every_count_of_a_row_is_missed_or_depends_on_its_layer():
    depends = {"input_bits", "other_bits", "kernel", "stride", "fan_out", "averaged", "folded_into"}
    depends |= {"output_peak", *OLD}
    missed = set()
    for name in ("msvit", "sdt", "metaspikeformer", "vit"):
        model = small_model(name)
        for row in measure(model, [small_input(model, 1, torch.float32)]).operations:
            assert not lacking(row)
            missed |= set(lacking({"layer": "", "kind": row["kind"], "averaged": 1}))
            assert set(row) - set(lacking({"kind": row["kind"], "averaged": 1})) <= depends
    assert missed == set(Operations.__annotations__) - depends


def test_counting_again_changes_nothing_that_a_record_says(finished, results):
    record = finished[1]
    rows = [{**row, "steps": 77} for row in record["operations"]]
    told = [{k: v for k, v in row.items() if k not in ("votes", "states")} for row in rows]
    assert remeasured(results, {**record, "operations": told})["operations"] == rows


def test_other_weights_and_missing_ones_leave_a_record_as_it_is(finished, results, capsys):
    old = as_an_earlier_version(finished[1])
    write_record(results, old)
    folder = cell_folder(results, CELL.id)
    weights = folder / "weights.safetensors"
    with safe_open(weights, "pt") as content:
        facts = content.metadata()
    tensors = load_file(weights)
    silent = {n: t - 9 if n.endswith("norm.bias") else t for n, t in tensors.items()}
    save_file(silent, weights, facts)
    assert remeasure(OneCell, results, None) == 1
    assert "are not those that were measured" in capsys.readouterr().out
    weights.unlink()
    (folder / "checkpoint.pt").unlink()
    assert remeasure(OneCell, results, None) == 1
    assert "left as it is" in capsys.readouterr().out
    assert read_record(results, CELL.id) == old


def test_remeasure_is_an_option_of_the_study_runner(finished, results, tmp_path, capsys):
    write_record(results, as_an_earlier_version(finished[1]))
    grid = tmp_path / "mine.yaml"
    base = {part: getattr(CELL, part) for part in ("model", "data", "training")}
    grid.write_text(json.dumps({"question": "?", "base": base, "axes": {}, "seeds": [CELL.seed]}))
    code = run(["--grid", str(grid), "--results", str(results), "--remeasure"])
    assert (code, "1 of 1 records counted again" in capsys.readouterr().out) == (0, True)
    assert read_record(results, CELL.id) == finished[1]


def test_a_trained_cell_costs_what_its_record_says(finished, tmp_path, capsys):
    results, record = finished
    table = tmp_path / "costs.csv"
    folder = str(cell_folder(results, CELL.id))
    assert main([folder, "--data", "digits", "--most", "9999", "--csv", str(table)]) == 0
    text = capsys.readouterr().out
    assert "test images of digits" in text
    assert "assumed" not in text
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    total = sum(float(row["energy_mj:sop_spikformer"]) for row in rows)
    assert total == pytest.approx(sop_spikformer(record["operations"]))
    assert [row["layer"] for row in rows] == [row["layer"] for row in record["operations"]]


def test_a_cell_is_measured_in_the_precision_of_its_record(tmp_path, capsys):
    cell = tiny_cell(precision="bf16")
    folder = cell_folder(tmp_path, cell.id)
    record = train_cell(cell, folder)
    write_record(tmp_path, record)
    table = tmp_path / "costs.csv"
    arguments = ["--data", "digits", "--most", "9999", "--csv", str(table)]
    assert main([str(folder), *arguments]) == 0
    assert "in bf16, measured on" in capsys.readouterr().out
    shown = [float(row["synops"] or 0) for row in csv.DictReader(table.open(encoding="utf-8"))]
    assert shown == [row.get("synops") or 0 for row in record["operations"]]


def test_without_data_rates_are_assumed_and_said_to_be(capsys):
    assert main(["spikformer", "--rate", "0.1", "--energy", "all"]) == 0
    text = capsys.readouterr().out
    assert "Rates are assumed, not measured: 0.1" in text
    assert "Not defined for this network: sdt." in text
    assert "Quantised twin: 3 bits for 4 time steps, a MAC as 3.00 accumulates" in text
    assert "below a rate of 0.750; here it is 0.100, 0.400 spikes a synapse" in text
    assert "as much as a twin with 86.7% zeros" in text
    assert "60.0% to 90.0% zeros: its zeros decide" in text
    assert all(f"{name} (mJ)" in text for name in ENERGY_MODELS)


def test_no_rate_is_assumed_of_what_does_not_spike():
    costs = measured_costs(Network(small_model("vit"), "it"), None, None, ["exact_synops"])
    assert costs.notes[0] == "it."


@pytest.mark.parametrize(
    ("timesteps", "rate", "said"),
    [
        (4, 0.9, "more than a twin without zeros. With this activity it has 0.0% to 10.0% zeros: "
                 "spikes cost more, whatever its zeros"),
        (2, 0.3, "as much as a twin with 70.0% zeros. With this activity it has 40.0% to 70.0% "
                 "zeros: spikes cost no more, whatever its zeros"),
    ],
)  # fmt: skip
def test_a_network_stands_on_a_side_of_its_twin(timesteps, rate, said):
    network = Network(small_model("spikformer", timesteps, image_size=16), "it")
    assert said in " ".join(measured_costs(network, None, rate, ["quantised_twin"]).notes)


def test_images_of_a_folder_are_brought_to_size(tmp_path, capsys):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    arguments = ["qkformer", "--images", str(tmp_path), "--most", "2"]
    constants = tmp_path / "constants.yaml"
    constants.write_text("sop_spikformer: {ac: 0.5}")
    assert main([*arguments, "--energy-constants", str(constants)]) == 0
    text = capsys.readouterr().out
    assert "measured on 2 of 3 images" in text
    assert "Constants of our own choice: sop_spikformer.ac = 0.5." in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["spikformr"], "did you mean 'spikformer'"),
        (["spikformer", "--data", "digit"], "did you mean 'digits'"),
        (["spikformer", "--data", "digits"], "takes (3, 32, 32)"),
        (["spikformer", "--images", "/nowhere"], "no images"),
        (["qkformer_dvs128", "--images", "tests"], "takes frames of events"),
        (["spikformer", "--weights", "/nowhere"], "/nowhere"),
        (["spikformer", "--data", "digits", "--rate", "0.1"], "--rate: rates are measured"),
        (["spikformer", "--images", "tests", "--rate", "0"], "--rate: rates are measured"),
        (["spikformer", "--data-dir", "tests"], "--data-dir: it tells where --data is"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--energy", "sop"], ["--rate", "2"], ["--most", "0"]])
def test_wrong_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["spikformer", *arguments])
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["sdt", "msvit", "metaspikeformer"])
def test_the_parts_of_an_energy_are_the_whole(name):
    model = small_model(name)
    fire(model)
    operations = measure(model, [small_input(model, 2, torch.float32)]).operations
    for energy, compute in ENERGY_MODELS.items():
        whole, parts = compute(operations), energy_by_row(operations, energy)
        if whole is None:
            assert set(parts) == {None}
        else:
            assert sum(parts) == pytest.approx(whole, rel=1e-6)
            assert min(parts) >= -1e-12


def test_an_assumed_rate_is_that_of_all_spikes():
    model = small_model("msvit", image_size=16)
    rows = assumed_operations(model, 0.25)
    for row in rows:
        if row["kind"] in ("conv", "linear") and row["input"] != "analog":
            assert row["synops"] == row["active_synops"] == 0.25 * row["synapses"]
            assert row["acs"] == 0.25 * row["dense_macs"]
    assert [r["layer"] for r in rows if r["input"] == "analog"] == ["embeddings.0.units.0"]
    assert rows[0]["macs"] > 0
    head = next(row for row in rows if "averaged" in row)
    assert head["averaged"] > 1
    some = 1 - 0.75 ** head["averaged"]  # of so many values one is a spike
    assert head["mean_macs"] == pytest.approx(some * head["dense_macs"])


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
    ("name", "neuron", "of_update", "of_spike"),
    [
        ("msvit", {"neuron": "ilif"}, 1, 1),
        ("msvit", {"hard_reset": False}, 1, 1),
        ("sdt", {}, 1, 0),
        ("qkformer", {"neuron": "glif"}, 2, 2),
    ],
)
def test_an_assumed_rate_is_that_of_votes_and_neurons_too(rate, name, neuron, of_update, of_spike):
    rows = assumed_operations(small_model(name, image_size=16, **neuron), rate)
    of_neurons = [row for row in rows if row["kind"] == "neuron"]
    for row in of_neurons:
        additions = row["updates"] * of_update + rate * row["outputs"] * of_spike
        assert row["additions"] == pytest.approx(additions)
        assert row["output_peak"] == 1
    masks = [row for row in rows if row["kind"] == "mask"]
    votes = [row for row in masks if row["votes"]]
    columns = [row for row in masks if row["layer"].endswith(".gather")]
    assert of_neurons
    assert bool(votes) == (name != "sdt")
    assert bool(columns) == (name == "sdt")
    for row in votes:
        assert row["additions"] == rate * row["votes"]
    for row in columns:
        assert row["additions"] == rate**2 * row["outputs"]


def test_a_product_of_spikes_is_assumed_to_meet_by_chance():
    rows = assumed_operations(small_model("spikformer", image_size=16), 0.25)
    products = [row for row in rows if row["kind"] == "product" and "joint_synops" in row]
    assert products
    for row in products:
        share = 0.25 if row["other_input"] == "analog" else 0.25**2
        assert row["joint_synops"] == share * row["synapses"]


def test_events_are_spikes_and_images_of_two_channels_are_not():
    model = small_model("spikformer", image_size=16, in_channels=2)
    for events in (False, True):
        first = next(r for r in assumed_operations(model, 0.25, events) if r["kind"] == "conv")
        assert first["input"] == ("spikes" if events else "analog")
    assert network_of("qkformer_dvs128", None).events
    assert not network_of("qkformer", None).events


def test_a_published_energy_gives_back_the_rate_that_made_it():
    operations = assumed_operations(small_model("qkformer", image_size=16), 1.0)
    for model in published_energy.MODELS:
        energy = ENERGY_MODELS[model](assume(operations, 0.3))
        found = published_energy.implied_rate(operations, model, energy)
        assert found == pytest.approx(0.3)


def test_padding_alone_is_left_out_of_a_published_energy():
    model = small_model("spikformer", image_size=16)
    padded = assume(assumed_operations(model, 1.0), 0.3)
    found = published_energy.without_padding(padded)
    changed = {old["layer"] for old, new in zip(padded, found, strict=True) if old != new}
    assert changed == {
        row["layer"] for row in padded if row["kind"] == "conv" and row["kernel"] == [3, 3]
    }
    for old, new in zip(padded, found, strict=True):
        if old["layer"] in changed:
            side = round((old["outputs"] / old["biases"] / old["steps"]) ** 0.5)
            share = ((3 * side - 2) / (3 * side)) ** 2  # of taps: those at both edges see nothing
            assert new["macs"] == pytest.approx(share * old["macs"])
            assert new["acs"] == pytest.approx(share * old["acs"])
            assert new["macs"] + new["acs"] > 0


@pytest.mark.slow
def test_the_page_says_what_its_numbers_say(tmp_path):
    rows = [
        {
            "model": f"{family.lower()}_{dim}",
            "family": family,
            "dim": dim,
            "energy_mj": 10.0,
            "gmac": 20.0,
            "unpadded_mj": 9.0,
            **{f"rate:{model}": rate for model in published_energy.MODELS},
            **{f"least_mj:{model}": 2.0 for model in published_energy.MODELS},
        }
        for family, rate in zip(published_energy.FAMILIES.values(), RATES, strict=True)
        for dim in (384, 512, 768)
    ]
    published_energy.write(pd.DataFrame(rows), tmp_path)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "(0.50, 0.50, 0.50 at\n  384" in page
    assert "would cost 18.0, 18.0, 18.0 mJ" in page
    assert "by factors of 6.0, 6.0, 6.0" in page
    assert "at most 10.0%" in page
    assert (tmp_path / "implied_rates.png").read_bytes().startswith(b"\x89PNG")


def test_inner_factors_are_assumed_to_see_what_they_see_when_neurons_fire():
    model = small_model("metaspikeformer", image_size=16)
    rows = {row["layer"]: row for row in assumed_operations(model, 0.2)}
    analog = {name for name, row in rows.items() if row["input"] == "analog"}
    assert {"stages.3.0.attention.qkv.mix", "stages.0.0.attention.reduce"} <= analog
    assert "stages.3.0.attention.qkv.point" not in analog


def test_a_silent_network_has_an_energy_under_every_model():
    model = small_model("metaspikeformer", image_size=16).eval()  # fresh: no neuron fires
    found = measure(model, [small_input(model, 1, torch.float32)]).energy_mj
    assert set(found) == set(ENERGY_MODELS) - {"sdt"}
