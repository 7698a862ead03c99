"""Curves of a study, as TensorBoard reads them."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis.observations import observe
from msvit.records.store import Records, cell_folder, write_record
from studies.grids import load_study
from studies.tensorboard import Curves
from tests.results_folder import make_record

GRID = """
question: Does it learn?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8}
  training: {epochs: 3}
axes:
  model.scales: [[1], [1, 3]]
seeds: 2
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "mine.yaml").write_text(GRID)
    return load_study(str(tmp_path / "mine.yaml"))


@pytest.fixture
def curves(study, tmp_path):
    return Curves(study, Records(tmp_path / "results", observe))


def shown(folder):
    """Tag → values by step, of all event files of a cell."""
    read = EventAccumulator(str(folder))
    read.Reload()
    tags = read.Tags()["scalars"]
    found = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in tags}
    return {
        tag: {step: pytest.approx(value) for step, value in rows} for tag, rows in found.items()
    }


def in_files(folder):
    """How many event files there are, and how often each epoch stands in them."""
    files = list(folder.iterdir())
    read = EventAccumulator(str(folder), purge_orphaned_data=False)
    read.Reload()
    return len(files), [event.step for event in read.Scalars("epoch/train_loss")]


class Worker:
    """The process of a cell: writes its progress, of which the driver hears."""

    def __init__(self, curves, entry, results):
        self.curves, self.entry = curves, entry
        self.folder = cell_folder(results, entry.cell.id)
        self.folder.mkdir(parents=True, exist_ok=True)

    def tells(self, epoch, row=None, heard=True):
        told = {"epoch": epoch, "epochs": 3}
        if epoch:
            told |= row or {"train_loss": 1 / epoch, "lr": 0.1, "val_accuracy": 0.5, "gpu": "X"}
            (self.folder / "checkpoint.pt").touch()
        with (self.folder / "progress.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
        if heard:
            self.curves.epoch(self.entry, told)


@pytest.fixture
def worker(curves, study, tmp_path):
    return Worker(curves, study.cells[0], tmp_path / "results")


@pytest.fixture
def place(tmp_path, study):
    return tmp_path / "results" / "tensorboard" / "mine" / study.cells[0].group / "seed 0"


def test_a_cell_that_trains_is_a_run_named_by_configuration_and_seed(worker, place):
    worker.tells(0)
    worker.tells(1)
    worker.tells(2)
    assert shown(place) == {
        "epoch/train_loss": {1: 1.0, 2: 0.5},
        "epoch/lr": {1: 0.1, 2: 0.1},
        "epoch/val_accuracy": {1: 0.5, 2: 0.5},
    }


def test_a_cell_that_goes_on_shows_each_epoch_once(worker, place, study, tmp_path):
    worker.tells(0)
    worker.tells(1)
    worker.tells(2, heard=False)  # and then driver and worker are killed
    later = Curves(study, Records(tmp_path / "results", observe))
    again = Worker(later, worker.entry, tmp_path / "results")
    again.tells(0)
    again.tells(3)
    assert in_files(place) == (1, [1, 2, 3])
    again.tells(0, heard=False)
    again.curves.epoch(again.entry, {"epoch": 3, "epochs": 3, "train_loss": 9.0})  # heard late
    assert in_files(place) == (1, [1, 2, 3])


def test_a_file_that_a_full_disk_has_cut_short_is_written_again(worker, place, study, tmp_path):
    worker.tells(0)
    worker.tells(1)
    (file,) = place.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    later = Curves(study, Records(tmp_path / "results", observe))
    again = Worker(later, worker.entry, tmp_path / "results")
    again.tells(0)
    again.tells(2)
    assert in_files(place) == (1, [1, 2])


def test_a_cell_that_begins_anew_shows_nothing_of_before(worker, place):
    worker.tells(0)
    worker.tells(1)
    worker.tells(2)
    (worker.folder / "checkpoint.pt").unlink()
    worker.tells(0)
    worker.tells(1, {"train_loss": 7.0})
    assert shown(place)["epoch/train_loss"] == {1: 7.0}


def test_what_is_in_the_record_is_what_is_shown(worker, curves, place):
    worker.tells(0)
    worker.tells(1, {"train_loss": 99.0})
    record = make_record(worker.entry.cell, 0.9, 2e-3)
    write_record(worker.folder.parents[1], record)
    curves.record(record)
    found = shown(place)
    for row in record["history"]:
        for key in ("lr", "train_loss", "val_loss", "val_accuracy", "seconds"):
            assert found[f"epoch/{key}"][row["epoch"]] == row[key]
    assert found["result/test_accuracy"] == {record["selected_epoch"]: 0.9}
    assert found["result/firing_rate"] == {record["selected_epoch"]: record["firing_rate"]}
    assert found["result/energy_mj"] == {record["selected_epoch"]: 2e-3}
    assert in_files(place) == (2, [1, 2, 3])


def test_an_open_tensorboard_goes_on_to_the_results(worker, curves, place, study, tmp_path):
    record = make_record(worker.entry.cell, 0.9, 2e-3)
    worker.tells(0)
    worker.tells(1, row=record["history"][0])
    reader = EventAccumulator(str(place))
    reader.Reload()
    worker.tells(2, row=record["history"][1], heard=False)
    later = Curves(study, Records(tmp_path / "results", observe))
    Worker(later, worker.entry, tmp_path / "results").tells(0)
    write_record(tmp_path / "results", record)
    later.record(record)
    reader.Reload()
    assert [event.step for event in reader.Scalars("epoch/train_loss")] == [1, 2, 3]
    assert [event.step for event in reader.Scalars("result/test_accuracy")] == [2]


def test_curves_that_cannot_be_written_are_said_once_and_cost_nothing(worker, place, capsys):
    place.parents[2].mkdir(parents=True)
    place.parents[1].write_text("a file in the way")
    worker.tells(0)
    worker.tells(1)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(place.parents[1]) in line
    place.parents[1].unlink()
    worker.tells(2)
    assert list(shown(place)["epoch/train_loss"]) == [1, 2]


def test_labels_that_are_no_names_of_folders_are_runs_of_their_own(tmp_path):
    names = ["a/b", "a_b", "語" * 90, "語" * 91]
    include = "".join(
        f"  - {{label: {name}, model: {{dim: {16 * (n + 1)}}}}}\n" for n, name in enumerate(names)
    )
    head = GRID.partition("axes:")[0]
    (tmp_path / "mine.yaml").write_text(f"{head}include:\n{include}seeds: 1\n")
    study = load_study(str(tmp_path / "mine.yaml"))
    curves = Curves(study, Records(tmp_path / "results", observe))
    for entry in study.cells:
        Worker(curves, entry, tmp_path / "results").tells(0)
    assert len(list(curves.folder.glob("*/seed 0/*tfevents*"))) == len(names)


def test_finished_studies_get_their_curves_once(study, tmp_path):
    results = tmp_path / "results"
    for entry in study.cells:
        write_record(results, make_record(entry.cell, 0.9, 2e-3))
    curves = Curves(study, Records(results, observe))
    curves.show_finished()
    runs = [curves.folder / entry.group / f"seed {entry.cell.seed}" for entry in study.cells]
    assert all(shown(run)["epoch/train_loss"] for run in runs)
    files = sorted(curves.folder.glob("*/*/*"))
    Curves(study, Records(results, observe)).show_finished()
    assert sorted(curves.folder.glob("*/*/*")) == files
