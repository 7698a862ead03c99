"""A contributor's jobs at run time (measure, energy model, figure), and what follows alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.canvas import canvas
from analysis.collect import collect
from analysis.figures import FIGURES
from analysis.report import main as report
from analysis.search import collect_search
from analysis.search_figures import pareto
from analysis.search_report import write_search_report
from msvit.cells import Cell, resolve_cell
from msvit.records import store
from msvit.records.energy import ENERGY_MODELS, sop_spikformer
from msvit.records.measures import MEASURES, Measure, mean_measures
from msvit.records.store import iter_records, search_folder, write_search, write_study
from msvit.training import train_cell
from msvit.yaml_files import parse_yaml
from studies.hpo import manifest
from studies.run import main as run
from studies.search.ledger import Ledger
from studies.search.space import load_space

pytestmark = pytest.mark.slow

GRID = """
question: Does a newcomer's addition show?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8, train_per_class: 13}
  training: {epochs: 1, batch_size: 16, warmup_epochs: 0}
axes:
  model.scales: [[1], [1, 3]]
"""
SPACE = """
question: Does a newcomer's objective work?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8, train_per_class: 13}
  training: {epochs: 1, batch_size: 16, warmup_epochs: 0}
parameters:
  model.scales: {categorical: [[1], [1, 3]]}
objectives: [accuracy, spikes]
constraints: [spikes <= 1000000]
sampler: grid
"""


@pytest.fixture
def grid(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def results(tmp_path, trained) -> Path:
    """A results folder with two trained cells, as an earlier version has left them."""
    folder = tmp_path / "results"
    for record in trained:
        store.write_record(folder, record)
    entries = [
        {"id": r["id"], "label": f"{n} seed 0", "group": n, "seed": 0}
        for n, r in zip(("one", "two"), trained, strict=True)
    ]
    study = {"schema": 1, "name": "mine", "question": "?", "grid_file": "mine.yaml"}
    write_study(folder, study | {"axes": ["model.scales"], "cells": entries})
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[dict]:
    base = parse_yaml(GRID, "test")["base"]
    records = []
    for scales in ([1], [1, 3]):
        raw = {**base, "model": {**base["model"], "scales": scales}, "seed": 0}
        cell: Cell = resolve_cell(raw, "test")
        record = train_cell(cell, tmp_path_factory.mktemp("cell"))
        # Earlier versions kept the energy; it is the one that is computed now.
        kept = {"sop_spikformer": sop_spikformer(record["operations"])}
        records.append({**record, "energy_mj": kept})
    return records


def spikes(record) -> float:
    return sum(row["rate"] * row["neurons"] for row in record["firing"])


def test_a_new_energy_model_shows_on_old_records(results, grid, monkeypatch, capsys):
    def tenfold(operations):
        return 10 * sop_spikformer(operations)

    monkeypatch.setitem(ENERGY_MODELS, "tenfold", tenfold)
    before = {path: path.stat().st_mtime_ns for path in results.glob("cells/*/record.json")}
    arguments = ["--grid", str(grid), "--results", str(results)]
    assert run([*arguments, "--energy", "sop_spikformer,tenfold"]) == 0
    assert "2 done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in results.glob("cells/*/record.json")} == before
    cells = collect(results, "mine").cells
    assert cells["energy_mj:tenfold"].tolist() == pytest.approx((10 * cells["energy_mj"]).tolist())
    table = (results / "studies/mine/table.md").read_text(encoding="utf-8")
    assert "| energy by tenfold (" in table


def test_a_new_measure_is_an_objective_a_column_and_a_label(results, tmp_path, monkeypatch):
    monkeypatch.setitem(
        MEASURES,
        "spikes",
        Measure(spikes, "minimize", "spikes", units={"M": 1e-6, "k": 1e-3}, per="image"),
    )
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    space = load_space(str(path))
    assert space.objectives == {"accuracy": "maximize", "spikes": "minimize"}
    ledger = Ledger.open(space, str(search_folder(results, "mine") / "study.journal"), 0)
    records = {r["id"]: r for r in iter_records(results)}
    while proposal := ledger.propose():
        ledger.complete(proposal.number, mean_measures([records[c.id] for c in proposal.cells]))
    write_search(results, manifest(space, "study.journal"))
    search = collect_search(results, "mine")
    folder = write_search_report(search)
    table = (folder / "trials.md").read_text(encoding="utf-8")
    assert "| spikes (k/image) |" in table
    assert search.trials["spikes"].notna().all()
    assert pareto(search).axes[0].get_xlabel() == "spikes per image (k)"
    assert (folder / "figures/pareto.png").exists()


def test_a_measure_younger_than_a_search_is_read_off_its_records(results, tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(
        SPACE.replace("[accuracy, spikes]", "[accuracy]").replace("spikes <=", "acs <=")
    )
    space = load_space(str(path))
    ledger = Ledger.open(space, str(search_folder(results, "mine") / "study.journal"), 0)
    records = {r["id"]: r for r in iter_records(results)}
    while proposal := ledger.propose():
        ledger.complete(proposal.number, mean_measures([records[c.id] for c in proposal.cells]))
    write_search(results, manifest(space, "study.journal"))
    monkeypatch.setitem(MEASURES, "spikes", Measure(spikes, "minimize", "spikes"))
    trials = collect_search(results, "mine").trials
    assert sorted(trials["spikes"]) == sorted(map(spikes, records.values()))


@pytest.mark.slow
def test_a_new_figure_is_drawn_and_goes_when_it_is_taken_back(results, monkeypatch):
    folder = results / "studies/mine/figures"

    def mine(study, view):
        figure, axes = canvas()
        axes.plot(study.finished["energy_mj"], study.finished["test_accuracy"])
        return figure

    arguments = ["--grid", "mine", "--results", str(results)]
    with monkeypatch.context() as added:
        added.setitem(FIGURES, "mine", mine)
        assert report(arguments) == 0
        assert (folder / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert report(arguments) == 0
    assert not list(folder.glob("mine.*"))
    assert (folder / "accuracy_energy.png").exists()


def test_a_record_is_read_once_however_much_is_made_of_it(results, grid, monkeypatch):
    read = []

    def counted(folder, cell_id, real=store.read_record):
        read.append(cell_id)
        return real(folder, cell_id)

    monkeypatch.setattr(store, "read_record", counted)
    assert run(["--grid", str(grid), "--results", str(results)]) == 0
    assert sorted(read) == sorted(path.parent.name for path in results.glob("cells/*/record.json"))


@pytest.mark.slow
def test_a_grid_of_the_same_name_takes_no_study_away(results, grid, tmp_path, capsys, monkeypatch):
    arguments = ["--results", str(results)]
    assert run(["--grid", str(grid), *arguments]) == 0
    other = tmp_path / "elsewhere" / grid.name
    other.parent.mkdir()
    other.write_text(GRID)  # a copy that was moved: the same cells
    assert run(["--grid", str(other), *arguments]) == 0
    assert run(["--grid", str(grid), *arguments]) == 0
    kept = (results / "studies/mine/study.json").read_bytes()
    other.write_text(GRID.replace("[[1], [1, 3]]", "[[1], [3]]"))
    assert run(["--grid", str(other), *arguments]) == 2
    monkeypatch.chdir(other.parent)  # as it is typed, the name is the same
    assert run(["--grid", other.name, *arguments]) == 2
    assert "another study of this name" in capsys.readouterr().err
    assert (results / "studies/mine/study.json").read_bytes() == kept


def test_a_network_without_neurons_has_no_firing_rate(results):
    path = next(results.glob("cells/*/record.json"))
    record = json.loads(path.read_text()) | {"firing": [], "firing_rate": 0.0}
    path.write_text(json.dumps(record))
    study = collect(results, "mine")
    assert study.cells["firing_rate"].isna().sum() == 1
    assert report(["--grid", "mine", "--results", str(results)]) == 0
    rows = (results / "studies/mine/table.md").read_text(encoding="utf-8").splitlines()
    assert sum(" — |" in row for row in rows) == 1


def test_a_step_holds_no_more_images_than_there_are(trained):
    record = {**trained[0], "images_per_second": 200.0}
    assert MEASURES["step_time"].value(record) == pytest.approx(16 / 200)
    one = {**record["cell"], "data": {**record["cell"]["data"], "train_per_class": 1}}
    assert MEASURES["step_time"].value({**record, "cell": one}) == pytest.approx(10 / 200)
    assert MEASURES["step_time"].value({**record, "images_per_second": 0.0}) is None
