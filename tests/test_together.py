"""Cells on several workers through Ray: two machines, a worker that dies, one that hangs."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from msvit import kernels, workers
from msvit.cells import Cell
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder, read_record
from msvit.training import cell as cell_module
from msvit.training import train_cell
from studies import cluster, executor, together
from studies.cluster import Place
from studies.executor import run_cells
from studies.grids import load_study
from studies.packing import Packing
from studies.progress import Display
from studies.resources import Resources
from studies.study import StudyCell
from studies.worker import LostPeers
from tests.ray_cluster import ENVIRONMENT, ray_of
from tests.test_run import TINY
from tests.test_training import comparable
from tests.two_workers import two_workers


@pytest.fixture
def two_machines():
    """The address of a Ray of two nodes with one CPU each."""
    with ray_of([{"num_cpus": 1}, {"num_cpus": 1}]) as address:
        yield address


def ill_fated(cell, folder, *, data_dir, report):
    """``train_cell``, but in its second epoch the second worker dies, and the next time hangs."""
    make, passes = cell_module.create_model, []

    def mishap(module, inputs):
        passes.append(1)
        if len(passes) != 20 or workers.rank() == 0:
            return
        for name in ("died", "hung"):
            if not (folder / name).exists():
                (folder / name).touch()
                if name == "died":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1000)

    def create(**options):
        model = make(**options)
        model.register_forward_pre_hook(mishap)
        return model

    cell_module.create_model = create
    return train_cell(cell, folder, data_dir=data_dir, report=report)


def group(entry_resources, gpus=0.0, **place):
    entry = StudyCell(Cell({}, {}, {}, 0), "", Resources.parse(entry_resources, "test"))
    return executor._group(entry, Place(**place), Packing(Path("nowhere"), None, gpus))


def test_workers_get_a_gpu_each_where_there_are_any():
    assert (group({}, 0.25).count, group({}, 0.25).gpus) == (1, 0.25)
    for on, gpus, expected in (
        ({"workers": 2}, 0.0, (2, 1.0, 0.0)),
        ({"workers": 2}, 0.25, (2, 1.0, 1.0)),
        ({"gpus": 8, "cpus": 32}, 0.25, (8, 4.0, 1.0)),
        ({"workers": 2, "gpus": 1}, 0.25, (2, 1.0, 0.5)),
        ({"gpus": 1, "cpus": 4}, 0.25, (1, 4.0, 1.0)),
    ):
        found = group(on, gpus)
        assert (found.count, found.cpus, found.gpus) == expected
    assert group({"workers": 2}, 0.0, gpus_per_cell=0.0).gpus == 0
    assert group({"workers": 4}, cpus_per_cell=3.0).cpus == 3


def test_room_is_counted_machine_by_machine(monkeypatch):
    nodes = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}]
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    assert cluster.has_room(16, 8, 1, None)
    assert cluster.has_room(16, 8, 1, 2)
    assert not cluster.has_room(16, 8, 1, 1)
    assert not cluster.has_room(17, 1, 1, None)
    assert not cluster.has_room(16, 9, 1, None)
    assert cluster.has_room(3, 1, 0, 3)
    assert not cluster.has_room(3, 1, 1, 3)


@pytest.mark.parametrize(
    ("failures", "ending"),
    [
        ({1: RuntimeError("died")}, "RuntimeError: worker 1: died"),
        ({0: LostPeers("closed"), 1: ValueError("own")}, "ValueError: worker 1: own"),
        ({0: together._Ended({"failure": {"error": "E", "message": "m"}})}, "E: m"),
    ],
)
def test_what_a_worker_raises_is_the_failure_and_not_what_others_make_of_it(failures, ending):
    error = SimpleNamespace(worker_failures=failures)
    failure = together._ending(error, Cell({}, {}, {}, 0), 1)["failure"]
    assert f"{failure['error']}: {failure['message']}" == ending


def test_lost_workers_are_no_failure_and_a_full_disk_is_nobody_s():
    cell = Cell({}, {}, {}, 0)
    from ray.exceptions import RayActorError  # not before others have set what Ray reads

    both = SimpleNamespace(worker_failures={0: LostPeers("closed"), 1: RayActorError()})
    with pytest.raises(LostPeers, match="worker 0: closed; worker 1: The actor"):
        together._ending(both, cell, 1)
    with pytest.raises(RecordError, match="full"):
        together._ending(SimpleNamespace(worker_failures={0: RecordError("full")}), cell, 1)


@pytest.mark.slow
def test_a_cell_outlives_workers_that_die_and_hang_and_a_small_one_runs_beside_it(
    two_machines, tmp_path, monkeypatch, capsys
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(together, "HANG_SECONDS", 20.0)
    kernels.available()  # compiled now, not while one worker waits for another
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    on_two = ["model.scales=[1]", "resources.workers=2", "resources.nodes=2"]
    (large,) = load_study(str(grid), on_two, seeds=1).cells
    (small,) = load_study(str(grid), ["model.scales=[1,3]"], seeds=1).cells
    results = tmp_path / "results"
    display = Display([large, small], 0, 2)
    run_cells([large, small], results, Place(two_machines), display, train=ill_fated)

    told = capsys.readouterr().out
    assert told.count("it lost workers; going on from its checkpoint") == 2
    assert "workers" not in read_record(results, small.cell.id)
    folder = cell_folder(results, large.cell.id)
    log = (folder / "log.txt").read_text()
    assert (log.count("attempt"), log.count("resuming")) == (3, 2)
    assert (folder / "log-1.txt").exists()
    undisturbed, _ = two_workers(tmp_path, lambda rank: train_cell(large.cell, tmp_path / "again"))
    record = read_record(results, large.cell.id)
    assert comparable(record) == comparable(undisturbed)
    assert record["workers"]["count"] == 2
