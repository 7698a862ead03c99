"""Cells on several workers through Ray: two machines, where a leader and workers die or hang."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from msvit import kernels
from msvit.cells import Cell
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder, read_record
from msvit.training import train_cell
from studies import executor, room, together, waiting
from studies.cluster import Place
from studies.executor import run_cells
from studies.grids import load_study
from studies.packing import Packing
from studies.progress import Display
from studies.resources import Resources
from studies.room import Group, NoRoom
from studies.study import StudyCell
from studies.waiting import Task, Waiting
from studies.worker import LostPeers
from tests.mishaps import hanging, ill_fated, leading
from tests.ray_cluster import ENVIRONMENT, ray_of
from tests.test_run import TINY
from tests.test_training import comparable
from tests.two_workers import two_workers


@pytest.fixture
def two_machines():
    """The address of a Ray of two nodes with one CPU each."""
    with ray_of([{"num_cpus": 1}, {"num_cpus": 1}]) as address:
        yield address


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


def of(count, cpus, gpus, nodes=None):
    return Group(count, cpus, gpus, nodes)


def test_room_is_counted_machine_by_machine(monkeypatch):
    nodes = {"a": {"CPU": 64.0, "GPU": 8.0}, "b": {"CPU": 64.0, "GPU": 8.0}, "c": {"CPU": 4.0}}
    monkeypatch.setattr(room, "machines", lambda: nodes)
    assert room.has_room(of(16, 8, 1))
    assert room.has_room(of(16, 8, 1, 2))
    assert not room.has_room(of(16, 8, 1, 1))
    assert not room.has_room(of(17, 1, 1))
    assert not room.has_room(of(16, 9, 1))
    assert room.has_room(of(3, 1, 0, 3))
    assert not room.has_room(of(3, 1, 1, 3))


def test_workers_are_spread_over_as_many_machines_as_were_asked_for_or_wait():
    eight = {"CPU": 8.0}
    three = {"a": {"CPU": 3.0}, "b": eight, "c": eight}
    assert room.machines_for(of(4, 1, 0, 2), three) == ["b", "b", "c", "c"]
    assert room.machines_for(of(6, 1, 0, 3), three) == ["b", "b", "c", "c", "a", "a"]
    two = {"b": eight, "c": eight}
    assert room.machines_for(of(6, 1, 0, 3), two) == []
    assert room.machines_for(of(8, 1, 0, 4), three) == []
    assert room.machines_for(of(8, 1, 0, 2), three) == ["b"] * 4 + ["c"] * 4
    assert room.machines_for(of(2, 1, 0, 2), {}) == []


def test_what_was_started_has_its_room_before_ray_knows(monkeypatch):
    monkeypatch.setattr(room, "machines", lambda: {"a": {"CPU": 4.0}})
    monkeypatch.setattr(room, "free_machines", room.machines)
    assert room.is_free(of(4, 1, 0), [])
    assert room.is_free(of(3, 1, 0), [of(1, 1, 0)])
    assert not room.is_free(of(4, 1, 0), [of(1, 1, 0)])
    monkeypatch.setattr(room, "free_machines", lambda: {"a": {"CPU": 1.0}})
    assert not room.is_free(of(2, 1, 0), [])


@pytest.fixture
def queue(monkeypatch):
    """A cell on four workers before one of one process, on a machine that can change."""
    has = {"a": {"CPU": 4.0}}
    clock = [0.0]
    monkeypatch.setattr(room, "machines", lambda: has)
    monkeypatch.setattr(room, "free_machines", lambda: has)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    groups = {"large": of(4, 1, 0), "small": of(1, 1, 0)}
    tasks = [Task(StudyCell(Cell({}, {}, {}, 0), name)) for name in groups]
    return Waiting(tasks, lambda entry: groups[entry.group]), has, clock


def taken(tasks, started=()):
    found = tasks.take(started)
    return found and found[0].entry.group


def test_small_cells_wait_for_a_large_one_whose_room_cells_of_the_study_have(queue):
    tasks, _, _ = queue
    assert taken(tasks, [of(1, 1, 0)]) is None
    assert taken(tasks) == "large"
    assert taken(tasks, [of(4, 1, 0)]) == "small"  # started ahead of time


def test_small_cells_go_ahead_where_a_machine_is_gone_and_the_large_one_waits_its_time(queue):
    tasks, has, clock = queue
    has["a"]["CPU"] = 2.0
    assert taken(tasks, [of(1, 1, 0)]) == "small"
    assert taken(tasks) is None
    tasks.look(is_idle=True)
    assert tasks.told() is None
    clock[0] += waiting.ROOM_SECONDS - 1
    _, text = tasks.told()
    assert text.startswith("waits for room for 4 workers with 1 CPUs and 0 GPUs each; Ray sees 2 ")
    assert tasks.told() is None
    assert not list(tasks.overdue())
    tasks.look(is_idle=True)
    clock[0] += 1
    ((task, text),) = tasks.overdue()
    assert (task.entry.group, text.split(";")[0]) == (
        "large",
        "waited 1:00:00 for room for 4 workers with 1 CPUs and 0 GPUs each",
    )
    assert len(tasks) == 0


def test_a_wait_begins_anew_when_something_has_run(queue):
    tasks, _, clock = queue
    tasks.look(is_idle=True)
    clock[0] += waiting.ROOM_SECONDS
    tasks.look(is_idle=False)
    tasks.look(is_idle=True)
    assert not list(tasks.overdue())
    assert len(tasks) == 2


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


def test_lost_workers_are_no_failure_and_a_full_disk_or_memory_is_nobody_s():
    cell = Cell({}, {}, {}, 0)
    # Not before others have set what Ray reads.
    from ray.exceptions import OutOfMemoryError, RayActorError

    def ending(first, second):
        seen = RuntimeError("the health check has failed")
        seen.health_check_failure = second
        failures = {0: first, 1: seen}
        return together._ending(SimpleNamespace(worker_failures=failures), cell, 1)

    with pytest.raises(LostPeers, match="worker 0: closed; worker 1: The actor"):
        ending(LostPeers("closed"), RayActorError())
    with pytest.raises(RecordError, match="full"):
        ending(RecordError("full"), RayActorError())
    with pytest.raises(OutOfMemoryError):
        ending(LostPeers("closed"), OutOfMemoryError("killed"))


@pytest.mark.slow  # Ray Train is imported
def test_what_ends_who_watches_over_the_workers_is_a_loss_and_no_room_is_none(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.setattr(together, "_settle_ray_train", lambda: None)
    from ray.exceptions import RayActorError
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    def run(error):
        def fit(*_):
            raise error

        monkeypatch.setattr(together, "_fit", fit)
        together.run_together(of(2, 1, 0), Cell({}, {}, {}, 0).as_dict(), "results")

    for error in (RayActorError(), ControllerError(RuntimeError("no worker"))):
        with pytest.raises(LostPeers):
            run(error)
    with pytest.raises(NoRoom, match="no room for 2 workers"):
        run(ControllerError(WorkerGroupStartupTimeoutError(2)))


@pytest.fixture
def large(tmp_path):
    """A cell on two workers, each on a machine of its own, and its grid."""
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    on_two = ["model.scales=[1]", "training.epochs=4", "resources.workers=2", "resources.nodes=2"]
    (entry,) = load_study(str(grid), on_two, seeds=1).cells
    return entry, grid


@pytest.mark.slow
def test_workers_give_up_on_one_that_hangs_and_leave_the_cell_its_checkpoint(large, tmp_path):
    cell, results = large[0].cell, tmp_path / "results"
    task = {"cell": cell.as_dict(), "results": str(results), "data_dir": None, "gpus": 0.0}

    def work(rank):
        with pytest.raises(LostPeers):
            together._work({**task, "train": hanging, "attempt": 1})
        torch.save("gave up", tmp_path / f"{rank}.pt")
        os._exit(0)  # there is no group any more

    assert two_workers(tmp_path, work) == ["gave up"] * 2
    folder = cell_folder(results, cell.id)
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "failure.json").exists()


@pytest.mark.slow
def test_a_cell_outlives_its_leader_and_a_worker_and_a_small_one_runs_beside_it(
    two_machines, large, tmp_path, monkeypatch, capsys
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(executor, "run_together", leading)
    monkeypatch.setattr(executor, "RESUBMISSIONS", 1)  # without a new checkpoint between
    monkeypatch.setattr(waiting, "ROOM_SECONDS", 300.0)  # should what they had not be freed
    kernels.available()  # compiled now, not while one worker waits for another
    large, grid = large
    (small,) = load_study(str(grid), ["model.scales=[1,3]"], seeds=1).cells
    results = tmp_path / "results"
    results.mkdir()
    display = Display([large, small], 0, 2)
    run_cells([large, small], results, Place(two_machines), display, train=ill_fated)

    told = capsys.readouterr().out
    assert told.count("its process died; going on from its checkpoint") == 1
    assert told.count("it lost workers; going on from its checkpoint") == 1
    assert "workers" not in read_record(results, small.cell.id)
    folder = cell_folder(results, large.cell.id)
    log = (folder / "log.txt").read_text()
    assert (log.count("attempt"), log.count("resuming")) == (3, 2)
    assert (folder / "log-1.txt").exists()
    undisturbed, _ = two_workers(tmp_path, lambda rank: train_cell(large.cell, tmp_path / "again"))
    record = read_record(results, large.cell.id)
    assert comparable(record) == comparable(undisturbed)
    assert record["workers"]["count"] == 2
